"""A whole run on the ISIC Archive: planned, hauled by a task, joined; the tar holds each image once, as it was sent."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.images.image_bytes import jpeg, make
from tests.sources.isic_archive import NOT_FOUND, image
from tests.sources.isic_kit import SearchArchive, serve
from tests.sources.test_tcia_http import _site, answer  # noqa: F401 -- the fixture

SOURCE = Path(__file__).parents[2]


def medhaul(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    environ = {**os.environ, "PYTHONPATH": str(SOURCE), "MEDHAUL_SCHEDULER": "local"}
    command = [sys.executable, "-m", "pipeline.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False)


@pytest.fixture(name="archive")
def _archive(site: Any) -> SearchArchive:
    """Twelve images with files; the last one was withdrawn from storage and API since it was listed."""
    made = SearchArchive(site)
    for number in range(1, 13):
        record = image(number)
        name = record["isic_id"]
        kind = ".png" if number == 3 else ".jpg"
        data = make("PNG", seed=number) if number == 3 else jpeg(name=name, seed=number)
        record["metadata"]["acquisition"] |= {"pixels_x": 40, "pixels_y": 30}
        urls = {"full": f"/images/{name}{kind}", "thumbnail_256": f"/thumbnails/{name}_thumbnail.jpg"}
        for part, path in urls.items():
            record["files"][part]["url"] = site.origin + path
        site.on(urls["full"], serve(data) if number < 12 else answer(403, b"<Code>AccessDenied</Code>"))
        site.on(urls["thumbnail_256"], serve(jpeg(20, 15, seed=number)))
        site.on(f"/api/v2/images/{name}/", NOT_FOUND)
        made.rows.append((f"2020-01-{number:02d}", record))
    made.add_licences()
    made.add_collection(1, [f"ISIC_{number:07d}" for number in range(1, 9)])
    made.add_collection(2, [f"ISIC_{number:07d}" for number in range(5, 13)])
    return made


def test_a_run(archive: SearchArchive, tmp_path: Path) -> None:
    """All images but the withdrawn one are in the archive, with thumbnails; it is listed as failed, with its reason."""
    config = tmp_path / "c.toml"
    config.write_text(
        f'[run]\nname = "r"\n[storage]\nroot = "{tmp_path}/runs"\n'
        '[select.isic]\ncollections = ["C1", "C2"]\nthumbnails = true\n'
        f'[sources.isic]\nbase_url = "{archive.site.origin}/api/v2"\n'
        '[archive]\ngroup_by = "run"\nname = "skin"\n'
        f'[task]\nscratch = "{tmp_path}"\nstart_jitter = 0\nretry_base = "1ms"\nsecond_round_wait = 0\n'
    )
    assert medhaul("plan", config).returncode == 0
    run = tmp_path / "runs" / "r"
    task = medhaul("task", run, "--shard", 0)
    assert task.returncode == 3, task.stderr
    assert medhaul("reduce", run, "--allow-partial").returncode == 3
    with tarfile.open(run / "archives" / "skin.tar.xz") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert found.pop(".medhaul/skin.index.jsonl.zst")
    assert len(found) == 22
    assert list(found)[:2] == ["C1/ISIC_0000001.jpg", "C1/ISIC_0000001.thumbnail.jpg"]
    assert found["C1/ISIC_0000003.png"] == make("PNG", seed=3)
    assert found["C2/ISIC_0000011.jpg"] == jpeg(name="ISIC_0000011", seed=11)
    receipt = json.loads((run / "receipts" / "00" / "000000.json").read_bytes())
    ((failed),) = receipt["failed"]
    assert (failed["id"], failed["reason"]) == ("ISIC_0000012", "withdrawn")
    sums = {line.split()[1]: line.split()[0] for line in (run / "archives" / "SHA256SUMS").read_text().splitlines()}
    assert sums["skin.tar.xz"] == hashlib.sha256((run / "archives" / "skin.tar.xz").read_bytes()).hexdigest()
    assert medhaul("verify", run / "archives" / "skin.tar.xz").returncode == 0
    assert (
        medhaul("extract", run / "archives" / "skin.tar.xz", "--item", "ISIC_0000003", tmp_path / "out").returncode == 0
    )
    assert (tmp_path / "out" / "C1" / "ISIC_0000003.png").read_bytes() == make("PNG", seed=3)
