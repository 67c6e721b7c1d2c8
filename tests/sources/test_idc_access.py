"""Single series, outside a run, by the verified path."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pipeline.cli.main import run_cli
from pipeline.demo.data import DemoData, DemoSeries, build_demo
from pipeline.demo.faults import Fault
from pipeline.demo.site import DemoSite
from pipeline.errors import ItemError, StorageError
from pipeline.model import IdcLocation, Item
from pipeline.settings import SourceIdc
from pipeline.sources.idc_access import IdcAccess
from pipeline.sources.idc_client import IdcClient


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    """The tiny demo data."""
    return build_demo(tmp_path_factory.mktemp("demo"), "tiny")


def item_of(series: DemoSeries) -> Item:
    """A demo series as the planner would make it an item."""
    return Item(
        id=series.uid,
        path=series.uid,
        files=len(series.files),
        bytes=sum(file.size for file in series.files),
        location=IdcLocation(series.bucket, series.files[0].key.partition("/")[0]),
        licence="",
    )


def test_series_is_downloaded_whole_and_named_by_uid(data: DemoData, tmp_path: Path) -> None:
    """A downloaded series is a folder of its SOPInstanceUIDs with the site's bytes, and the progress adds up."""
    series = max(data.series, key=lambda one: len(one.files))
    sizes: list[int] = []
    with DemoSite(data.store()) as site, IdcAccess(SourceIdc(s3_endpoint=site.url, mirror_endpoint="")) as access:
        paths = access.download_series(item_of(series), tmp_path, sizes.append)
        listed = access.list_files(item_of(series))
    assert [path.name for path in paths] == sorted(f"{file.sop_instance_uid}.dcm" for file in series.files)
    assert sorted(path.stat().st_size for path in paths) == sorted(file.size for file in series.files)
    assert sum(sizes) == sum(file.size for file in series.files)
    assert [file.key for file in listed] == sorted(file.key for file in series.files)
    assert [path.name for path in tmp_path.iterdir()] == [series.uid]


def test_bad_file_leaves_nothing(data: DemoData, tmp_path: Path) -> None:
    """When one file of a series cannot be had, no folder of it is left, not even a partial one."""
    series = max(data.series, key=lambda one: len(one.files))
    with DemoSite(data.store()) as site, IdcAccess(SourceIdc(s3_endpoint=site.url, mirror_endpoint="")) as access:
        site.faults.set(series.files[0].key, Fault(kind="vanish"))
        with pytest.raises(ItemError) as caught:
            access.download_series(item_of(series), tmp_path)
    assert caught.value.reason == "withdrawn"
    assert list(tmp_path.iterdir()) == []


def test_index_that_states_other_counts_is_refused(data: DemoData, tmp_path: Path) -> None:
    """A series whose listing contradicts the index is refused before anything is downloaded."""
    item = msgspec.structs.replace(item_of(data.series[0]), files=999)
    with DemoSite(data.store()) as site, IdcAccess(SourceIdc(s3_endpoint=site.url, mirror_endpoint="")) as access:
        with pytest.raises(ItemError) as caught:
            access.download_series(item, tmp_path)
        assert site.stats.count(key="*.dcm") == 0
    assert caught.value.reason == "count"
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_not_touched(data: DemoData, tmp_path: Path) -> None:
    """A folder that is there already is refused and stays as it is."""
    item = item_of(data.series[0])
    (tmp_path / item.id).mkdir()
    (tmp_path / item.id / "mine").write_text("mine")
    with (
        DemoSite(data.store()) as site,
        IdcAccess(SourceIdc(s3_endpoint=site.url, mirror_endpoint="")) as access,
        pytest.raises(StorageError, match="exists already"),
    ):
        access.download_series(item, tmp_path)
    assert (tmp_path / item.id / "mine").read_text() == "mine"


def test_client_gives_urls_and_downloads_by_index(data: DemoData, tmp_path: Path) -> None:
    """IdcClient finds a series in the index, names its files' URLs in key order, and downloads it verified."""
    series = max(data.series, key=lambda one: len(one.files))
    with DemoSite(data.store()) as site:
        endpoints = SourceIdc(s3_endpoint=site.url, mirror_endpoint="")
        with IdcClient(data.index, endpoints=endpoints) as client:
            urls = client.file_urls(series.uid)
            paths = client.download_series(series.uid, tmp_path)
    assert urls == sorted(f"{site.url}/{series.bucket}/{file.key}" for file in series.files)
    assert {path.stem for path in paths} == {file.sop_instance_uid for file in series.files}


def test_query_downloads_a_series_from_the_shell(
    data: DemoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`query idc download` writes a series; one that cannot be had is exit code 3 and no folder."""
    good, bad = data.series[0], data.series[1]
    with DemoSite(data.store()) as site:
        site.faults.set(bad.files[0].key, Fault(kind="vanish"))
        monkeypatch.setenv("MEDHAUL_IDC_S3_ENDPOINT", site.url)
        monkeypatch.setenv("MEDHAUL_IDC_MIRROR_ENDPOINT", "")
        monkeypatch.setenv("MEDHAUL_IDC_INDEX", str(data.index))
        assert run_cli(["query", "idc", "download", good.uid, str(tmp_path)]) == 0
        assert run_cli(["query", "idc", "files", good.uid]) == 0
        assert run_cli(["query", "idc", "download", bad.uid, str(tmp_path)]) == 3
    assert [path.name for path in tmp_path.iterdir()] == [good.uid]
