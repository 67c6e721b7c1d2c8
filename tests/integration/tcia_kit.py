"""Hauls from TCIA: a config that selects from it, what a haul must hold by its route, and the faults of NBIA."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from haul import Ended, Haul, run_medhaul

from pipeline.archive.index import ItemLine
from pipeline.demo.faults import GET_KINDS, LIST_KINDS, LISTING_KINDS, Fault, FaultKind
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import NAMES, ONLY_NBIA, NbiaDemo
from pipeline.demo.nbia_faults import ANY_FAULTS, ZIP_FAULTS
from pipeline.manifest import Manifest
from pipeline.model import NbiaLocation

ALL = [*NAMES.values(), ONLY_NBIA]
SERVICES = "/nbia-api/services"
# Stalls and drips strike too: a second without a byte, or below so many bytes a second, and the body is given up.
IMPATIENT = {"attempts": 2, "min_rate": "150 kB"}


def sort_kinds(kinds: Iterable[FaultKind]) -> tuple[FaultKind, ...]:
    """In an order that is the same in every process."""
    return tuple(sorted(kinds))


NBIA_KINDS = sort_kinds(ANY_FAULTS | ZIP_FAULTS)
S3_KINDS, S3_LIST_KINDS = sort_kinds(GET_KINDS | LISTING_KINDS), sort_kinds(LIST_KINDS)


class TciaHaul(Haul):
    """A haul that selects from TCIA, served by one site that is NBIA and IDC."""

    def __init__(
        self,
        folder: Path,
        demo: NbiaDemo,
        site: NbiaSite,
        *,
        select: Mapping[str, Any] | None = None,
        route: str = "auto",
        archive: Mapping[str, Any] | None = None,
        task: Mapping[str, Any] | None = None,
        shards: int = 1,
    ) -> None:
        super().__init__(folder, demo.idc.index, site.url, archive=archive, task=task, shards=shards)
        del self.settings["select.idc"]
        self.settings["select.tcia"] = {"collections": ALL} if select is None else dict(select)
        self.settings["sources.tcia"] = {"base_url": site.url + SERVICES, "route": route}
        self.demo = demo

    def resume(self) -> Ended:
        """`medhaul resume`, waiting for its end."""
        return run_medhaul("resume", self.run.path, "--wait", "--scheduler", "local")

    def routes(self) -> dict[str, str]:
        """By which way each series of the manifest comes."""
        return {
            entry.item.id: "nbia" if isinstance(entry.item.location, NbiaLocation) else "idc"
            for _, entry in Manifest(self.run).all_entries(self.shards)
        }

    def contents(self) -> Counter[tuple[str, str, int, str]]:
        """Series, instance, size and SHA-256 of every file of the archives."""
        return Counter(
            (Path(path).parent.name.partition("_")[2], Path(path).stem, size, sha256)
            for path, size, sha256 in self.members()
        )

    def check_contents(self, *, without: Collection[str] = ()) -> None:
        """Compare the archives with what was served by the route of each planned series; `without` must be absent."""
        assert self.contents() == served(self.demo, self.routes(), without)

    def check_account(self) -> dict[str, str]:
        """Every planned series is in an archive or in the failure list with a reason, never both; the failures."""
        failed = self.failures()
        archived = {line.id for line in self.lines() if isinstance(line, ItemLine)}
        assert archived | failed.keys() >= self.routes().keys()
        assert not archived & failed.keys()
        return failed


def served(
    demo: NbiaDemo, routes: Mapping[str, str], without: Collection[str] = ()
) -> Counter[tuple[str, str, int, str]]:
    """What an archive must hold of the series of `routes`, less those of `without`."""
    nbia = {one.uid: one.files for one in demo.archive.series}
    idc = {one.uid: one.files for one in demo.idc.series}
    return Counter(
        (uid, file.sop_instance_uid, file.size, file.sha256)
        for uid, way in routes.items()
        if uid not in without
        for file in (nbia if way == "nbia" else idc)[uid]
    )


def read_members(path: Path) -> dict[str, bytes]:
    """All members of an archive by Python's tarfile, catalogue included, in order."""
    with tarfile.open(path, "r:xz") as archive:
        found = {}
        for info in archive:
            data = archive.extractfile(info)
            assert data is not None
            found[info.name] = data.read()
    return found


def break_images(site: NbiaSite, uid: str, fault: Fault, *, versions: str = "*") -> None:
    """Let all image calls of a series fail, or those of some versions."""
    site.faults.set(f"nbia/{versions}/getImage*/{uid}", fault)


def sprinkle_all(site: NbiaSite, fraction: float, seed: int, *, times: int) -> None:
    """A fraction of all zips, objects and listings fail, by every switch that there is for each."""
    site.faults.sprinkle(fraction, seed, kinds=NBIA_KINDS, times=times)
    site.faults.sprinkle(fraction, seed + 1, kinds=S3_KINDS, times=times)
    site.faults.sprinkle(fraction, seed + 2, kinds=S3_LIST_KINDS, times=times, on="list")
