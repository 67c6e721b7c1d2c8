"""Memory is bounded by settings, not by the size of a series, a shard or an archive."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from haul import MEASURED, SECONDS, Haul, run_medhaul

from pipeline.demo.bucket import Store
from pipeline.demo.data import DemoData, build_series
from pipeline.demo.dicoms import iterate_fitting_series, make_fitting_series
from pipeline.demo.encode import make_uid
from pipeline.demo.rows import describe_series
from pipeline.demo.site import DemoSite

BOUND = 300 << 20
FILES, BYTES = 40, 400_000_000
MEMORY = {"memory": "300 MiB", "scratch_bytes": "150 MB"}


class Big(msgspec.Struct):
    """A series larger than the bound, as demo data and as objects on the disk."""

    data: DemoData
    store: Store


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Big]:
    """One series of 400 MB in 40 files, made one at a time; removed in the end."""
    root = tmp_path_factory.mktemp("big")
    series, study = make_uid("big series"), make_uid("big study")
    first = make_fitting_series(series, study, "BIG", "CT", 1, BYTES // FILES, 0)
    row = describe_series(first, collection_id="demo_big", aws_bucket="idc-open-data")
    row = msgspec.structs.replace(row, instanceCount=FILES, series_size_MB=BYTES / 1e6)
    data = build_series(root, [(row, [])])
    store = Store()
    for n, content in enumerate(iterate_fitting_series(series, study, "BIG", "CT", FILES, BYTES, 0)):
        path = root / f"{n:03d}.dcm"
        if n % 10:  # mostly black, for speed: what is zeroed lies within the pixels
            black = bytes(len(content) - 4096 - (256 << 10))
            path.write_bytes(content[:4096] + black + content[-(256 << 10) :])
        else:
            path.write_bytes(content)
        store.put("idc-open-data", f"{row.crdc_series_uuid}/{n:03d}.dcm", path)
    yield Big(data, store)
    for path in root.glob("*.dcm"):
        path.unlink()


def run_measured(*arguments: object) -> int:
    """Run a command, which must end well; returns the most memory that it held, in bytes."""
    ended = run_medhaul(*arguments, through=MEASURED)
    assert ended.code == 0, ended.err
    return int(ended.err.rpartition("peak ")[2])


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"group_bytes": "16 MB", "cut_bytes": "64 MB", "block_bytes": "4 MiB"},
        {"group_bytes": "1 GB", "cut_bytes": "1 GB", "block_bytes": "1 MiB"},
    ],
    ids=["cut", "one frame"],
)
def test_series_larger_than_the_bound(sizes: dict[str, str], big: Big, tmp_path: Path) -> None:
    """A series of 400 MB, cut or in one frame, is hauled and joined within 300 MiB."""
    with DemoSite(big.store) as site:
        haul = Haul(tmp_path / "haul", big.data.index, site.url, archive=sizes, task=MEMORY, connections=16)
        haul.plan()
        held = run_measured("task", haul.run.path, "--shard", 0)
        [receipt] = haul.receipts()
        assert receipt.bytes == BYTES
        assert held / 2 < receipt.max_rss <= held
        assert held < BOUND
    assert run_measured("reduce", haul.run.path) < BOUND
    [archive] = haul.archives()
    subprocess.run(["xz", "-t", archive], check=True)
    archive.unlink()


@pytest.mark.timeout(SECONDS)
def test_long_listing(tmp_path: Path) -> None:
    """Two series of 2,500 files each, listed in many pages, are planned, hauled and joined within 300 MiB."""
    files, rows = 2500, []
    for name in ("long one", "long two"):
        content = make_fitting_series(make_uid("series", name), make_uid("study"), "LONG", "SR", files, files * 1000, 0)
        row = describe_series(content[:1], collection_id="demo_long", aws_bucket="idc-open-data")
        row = msgspec.structs.replace(row, instanceCount=files, series_size_MB=files / 1e3)
        rows.append((row, content))
    data = build_series(tmp_path / "site", rows)
    with DemoSite(data.store()) as site:
        haul = Haul(tmp_path / "haul", data.index, site.url, task=MEMORY)
        haul.plan()
        assert run_measured("task", haul.run.path, "--shard", 0) < BOUND
        # Each page of 1,000 keys is asked for once for every piece of a series, and each object once.
        assert site.stats.count("GET") == 2 * files
    assert run_measured("reduce", haul.run.path) < BOUND
    haul.check_members(data)
