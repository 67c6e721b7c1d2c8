"""Many small images of the ISIC Archive: hauled through faults to the same archives, and listed in bounded memory."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from haul import MEASURED, TASK, Ended, Haul, render_toml, start_medhaul

from pipeline.archive.index import FailedLine, ItemLine
from pipeline.demo.faults import Fault, FaultKind, FaultPlan, Rule, Sprinkle, choose_sprinkled
from pipeline.demo.isic import IsicSite
from pipeline.demo.isic_bodies import make_body
from pipeline.demo.isic_data import CHALLENGE, DERMOSCOPY, TILES, build_isic, make_generated, number_of
from pipeline.demo.isic_records import IsicArchive, IsicImage
from pipeline.manifest import Manifest

SECONDS = 280
CONNECTIONS = 16
PAGE = 100
# What comes of each switch that stays on for an image's file; empty: it is archived.
LASTING: dict[FaultKind, str] = {
    "error-429": "unavailable",
    "error-500": "unavailable",
    "error-502": "unavailable",
    "error-503": "unavailable",
    "error-504": "unavailable",
    "slow-down": "unavailable",
    "html": "unavailable",
    "hangup": "unavailable",
    "reset": "unavailable",
    "truncate": "unavailable",
    "vanish": "unavailable",  # the archive still tells of it
    "forbidden": "forbidden",
    "expired": "forbidden",
    "flip": "checksum",
    "short": "checksum",
    "long": "checksum",
    "etag-get": "checksum",
    "swap": "malformed",
    "drip": "",
    "ignore-range": "",
    "octet-stream": "",
}
# One image in a hundred fails: most for good, the others once, which nobody may notice in the end.
STAYING = Sprinkle(fraction=0.007, seed=1, kinds=tuple(LASTING), times=0)
PASSING = Sprinkle(fraction=0.003, seed=2, kinds=tuple(LASTING), times=1)
PAGE_FAULTS = tuple(
    Rule("isic/images", Fault(kind=kind, probability=0.01, seed=seed))
    for seed, kind in enumerate(("error-500", "error-503", "html", "truncate", "reset"))
)


class IsicHaul(Haul):
    """A haul from the ISIC Archive, of frames as large as they are by default; `tables` replace those of the config."""

    def __init__(self, folder: Path, site: IsicSite, **tables: Mapping[str, Any]) -> None:
        super().__init__(folder, "", "", shards=3, connections=CONNECTIONS)
        del self.settings["select.idc"], self.settings["sources.idc"]
        self.settings |= {
            "select.isic": {},
            "sources.isic": {"base_url": site.api_url},
            "archive": {"group_by": "licence"},
            # Patient, since no fault here stalls: a machine that is busy must not look like one.
            "task": {**TASK, "cores": 1, "stall": 20, "scratch": str(self.scratch)},
            **tables,
        }
        # Nothing is taken from the cache of another haul.
        self.environ = {"XDG_CACHE_HOME": str(folder / "cache")}

    def command(self, *words: object, through: Path | None = None) -> Ended:
        """Run a command to its end, however long it takes within a test."""
        process = start_medhaul(*words, through=through, environ=self.environ)
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            _, err = process.communicate()
            raise AssertionError(f"{words} did not end within {SECONDS} s:\n{err}") from None
        return Ended(process.returncode, out, err)

    def run_all(self) -> Ended:
        """`medhaul run`: plan, submit to the local scheduler, and wait."""
        self.config.write_text(render_toml(self.settings))
        return self.command("run", self.config, "--scheduler", "local")

    def frames(self) -> dict[str, int]:
        """How many frames the manifest has for each archive."""
        index = json.loads(self.run.manifest_index.read_bytes())
        return {one["name"]: one["frames"] for one in index["archives"]}

    def planned(self) -> list[str]:
        """The ids of all planned images, as often as they are planned."""
        return [entry.item.id for _, entry in Manifest(self.run).all_entries(self.shards)]

    def check_images(self, archive: IsicArchive, *, without: Mapping[str, str] | None = None) -> None:
        """Compare what the archives hold with what was served: each image once, but for those of `without`."""
        expected = Counter(
            (f"isic/{image.isic_id}.{image.kind}", hashlib.sha256(make_body(image)).hexdigest())
            for image in archive.images
            if image.isic_id not in (without or ())
        )
        assert Counter((path, sha256) for path, _, sha256 in self.members()) == expected


def expect_failures(archive: IsicArchive, withdrawn: IsicImage) -> tuple[dict[str, str], set[FaultKind]]:
    """Which images are to fail by what stays on, with the reason; and the kinds that any of them suffer."""
    expected = {withdrawn.isic_id: "withdrawn"}
    struck: set[FaultKind] = set()
    for place, image in enumerate(archive.images):
        fault = choose_sprinkled(STAYING, image.key)
        if fault is None or image == withdrawn:
            continue
        struck.add(fault.kind)
        reason = LASTING[fault.kind]
        if fault.kind == "swap":
            other = archive.images[(place + 1) % len(archive.images)]
            alike = (image.width, image.height) == (other.width, other.height)
            reason = "wrong-uid" if alike else reason
        if reason:
            expected[image.isic_id] = reason
    return expected, struck


@pytest.mark.timeout(900)
def test_twenty_thousand_images_through_faults(tmp_path: Path) -> None:
    """With one image in a hundred failing, all others are archived and each failure is listed with its reason.

    Once nothing fails any more, `resume` makes the archives of a haul without faults, byte for byte.
    """
    archive = build_isic(tmp_path / "site", "many").archive
    with IsicSite(archive) as site:
        calm = IsicHaul(tmp_path / "calm", site)
        ended = calm.run_all()
        assert ended.code == 0, ended.err
        assert site.calls()["file"] < 1.01 * len(archive.images)
        assert calm.leftovers() == []
        calm.check_images(archive)
        # As few frames as `archive.cut_files` and `archive.group_bytes` allow: one for each licence's archive.
        assert list(calm.frames().values()) == [1, 1, 1]

        withdrawn = archive.images[1234]
        gone = [Rule(key, Fault(kind="vanish")) for key in (withdrawn.key, f"isic/images/{withdrawn.isic_id}")]
        site.faults.plan = FaultPlan((*gone, *PAGE_FAULTS), (STAYING, PASSING))
        expected, struck = expect_failures(archive, withdrawn)
        assert struck == LASTING.keys()

        haul = IsicHaul(tmp_path / "haul", site)
        before = site.calls()["file"]
        ended = haul.run_all()
        assert ended.code == 3, ended.err
        # What fails does so beside thousands that do not, and these are fetched once.
        assert site.calls()["file"] - before < 1.06 * len(archive.images)
        assert "Traceback" not in ended.err
        assert {"html", "truncate"} <= site.faults.struck.keys()
        check_account(haul, archive, expected)

        site.faults.clear()
        before = site.calls()["file"]
        ended = haul.command("resume", haul.run.path, "--wait", "--scheduler", "local")
        assert ended.code == 0, ended.err
        # Each thread of the three tasks may look whether storage is awake.
        assert site.calls()["file"] - before <= len(expected) + 3 * CONNECTIONS
        assert haul.failures() == {}
        assert not list(haul.run.archives.glob("*.failed.csv"))
        assert haul.leftovers() == []
        assert haul.sums() == calm.sums()


def check_account(haul: IsicHaul, archive: IsicArchive, expected: Mapping[str, str]) -> None:
    """Receipts, `medhaul failed`, indexes, tables and archives say the same of a haul in which `expected` failed."""
    everything = {image.isic_id for image in archive.images}
    planned = haul.planned()
    assert len(planned) == len(everything)
    assert set(planned) == everything
    receipts = haul.receipts()
    assert haul.failures() == expected
    assert all(item.message for receipt in receipts for item in receipt.failed)
    assert sum(receipt.archived for receipt in receipts) == len(everything) - len(expected)
    told = json.loads(haul.command("failed", haul.run.path, "--json").out)
    assert {item["id"]: item["reason"] for item in told["items"]} == expected
    # An archive that lacks images is made only when that is asked for.
    assert haul.archives() == []
    assert haul.command("reduce", haul.run.path, "--allow-partial").code == 3
    haul.check_images(archive, without=expected)
    lines = list(haul.lines())
    assert {line.id: line.reason for line in lines if isinstance(line, FailedLine)} == expected
    assert {line.id for line in lines if isinstance(line, ItemLine)} == everything - expected.keys()
    tables = "".join(path.read_text() for path in haul.run.archives.glob("*.failed.csv"))
    assert all(f"{isic_id}," in tables for isic_id in expected)


def test_images_grouped_by_collection_share_frames(tmp_path: Path) -> None:
    """Thousands of images of three collections are planned into an archive for each, of a frame or two."""
    archive = build_isic(tmp_path / "site", "many").archive
    wanted = {CHALLENGE, DERMOSCOPY, TILES}
    with IsicSite(archive) as site:
        haul = IsicHaul(
            tmp_path / "haul",
            site,
            archive={"group_by": "collection"},
            **{"select.isic": {"collections": [str(number) for number in sorted(wanted)]}},
        )
        haul.config.write_text(render_toml(haul.settings))
        ended = haul.command("plan", haul.config)
        assert ended.code == 0, ended.err
    members = {image.isic_id for image in archive.images if wanted & {*image.collections}}
    planned = haul.planned()
    assert len(planned) == len(members) > 10_000
    assert set(planned) == members
    frames = haul.frames()
    assert len(frames) == len(wanted)
    assert max(frames.values()) <= 2


@pytest.mark.timeout(600)
def test_fifty_thousand_listed_images_in_bounded_memory(tmp_path: Path) -> None:
    """500 real pages, images of one time across page edges, are planned whole, within 350 MB, and it tells how far."""
    count = 50_000
    archive = make_generated(count)
    edges = range(PAGE, count, PAGE)
    assert sum(archive.created(edge - 1) == archive.created(edge) for edge in edges) == count // 1000
    with IsicSite(archive) as site:
        with urllib.request.urlopen(f"{site.api_url}/images/?limit={PAGE}") as answer:
            cursor = parse_qs(urlsplit(json.load(answer)["next"]).query)["cursor"][0]
        assert base64.b64decode(cursor).startswith(b"o=5&p=")  # five of the ten images of one time are on this page
        before = site.calls()["images"]
        haul = IsicHaul(tmp_path / "haul", site, archive={"group_by": "run"})
        haul.config.write_text(render_toml(haul.settings))
        ended = haul.command("plan", haul.config, through=MEASURED)
        assert ended.code == 0, ended.err
        assert site.calls()["images"] - before == count // PAGE + 1  # at the end it asks once more for the count
    told, _, peak = ended.err.rpartition("peak ")
    assert told.splitlines() == ["listing: 50,000 images"]
    planned = haul.planned()
    assert len(planned) == count
    assert set(planned) == {number_of(place) for place in range(count)}
    assert list(haul.frames().values()) == [count // 10_000]
    assert int(peak) < 350_000_000, peak
