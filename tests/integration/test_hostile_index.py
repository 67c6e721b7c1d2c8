"""An index and files as no site should have them: names that attack, rows that lie, DICOM that is none."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from haul import Haul

from pipeline.archive.index import FailedLine
from pipeline.demo.data import DemoData, build_series
from pipeline.demo.dicoms import make_fitting_series
from pipeline.demo.encode import make_uid
from pipeline.demo.hostile import BREAKERS, PATIENTS, build_broken, build_hostile, build_lying
from pipeline.demo.index import IndexRow
from pipeline.demo.rows import describe_series
from pipeline.demo.site import DemoSite

# Values of the index that CSV, JSON and terminals are hurt by, as free text of a series.
TEXTS = (
    "=1+1",
    'say "x"',
    "a,b;c\td",
    "one\rtwo",
    "one\ntwo",
    "one\r\ntwo",
    "nul\0end",
    "\x1b[2J",
    "\ud7ff\u2028\ufeff",
    "'",
)


def made_series(name: str, total: int, files: int, **changes: object) -> tuple[IndexRow, list[bytes]]:
    """A series of fitting DICOM with a row that says other things of it."""
    content = make_fitting_series(make_uid("series", name), make_uid("study", name), "P", "MR", files, total, 1)
    row = describe_series(content, collection_id="demo_hostile", aws_bucket="idc-open-data")
    return msgspec.structs.replace(row, **changes), content


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    """Series whose PatientIDs attack, one without files, one with NULLs."""
    return build_hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def hauled(hostile: DemoData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Haul]:
    """The hostile data, hauled as far as they can be."""
    with DemoSite(hostile.store()) as site:
        haul = Haul(tmp_path_factory.mktemp("hauled") / "haul", hostile.index, site.url, shards=3)
        haul.plan()
        haul.tasks()
        assert haul.reduce("--allow-partial").code == 3
        yield haul


def test_hostile_names_fail_nothing(hostile: DemoData, hauled: Haul) -> None:
    """Only the series without files fails; all other content is in the archive, each file once."""
    [empty] = [series.uid for series in hostile.series if not series.files]
    assert hauled.failures() == {empty: "empty"}
    hauled.check_members(hostile)
    folders = {member.path.split("/")[1] for member in hauled.members()}
    assert len(folders) == len(PATIENTS) + 1


def test_gnu_tar_stays_in_its_folder(hostile: DemoData, hauled: Haul, tmp_path: Path) -> None:
    """GNU tar unpacks every member below the folder that it is given, as a plain file, and nothing beside it."""
    inside = tmp_path / "outer" / "inside"
    inside.mkdir(parents=True)
    [archive] = hauled.archives()
    subprocess.run(["tar", "-xJf", archive, "-C", inside], check=True, capture_output=True)
    files = [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert all(inside in path.parents and path.is_file() and not path.is_symlink() for path in files)
    members = [path for path in files if ".medhaul" not in path.parts]
    assert len(members) == sum(len(series.files) for series in hostile.series)
    assert all(set(path.relative_to(inside).as_posix()) <= PLAIN for path in members)
    listed = subprocess.run(["tar", "-tJf", archive], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(listed) == len(members) + 1


PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-=+,@%~/")


def test_metadata_round_trips(hostile: DemoData, hauled: Haul) -> None:
    """Python's csv reads back from metadata.csv what the index has, NULL as nothing; no row is lost or broken."""
    rows = read_metadata(hauled)
    expected = {series.uid: series.row for series in hostile.series if series.files}
    assert len(rows) == len(expected)
    for row in rows:
        truth = msgspec.structs.asdict(expected[row["SeriesInstanceUID"]])
        for name in ("PatientID", "Modality", "SeriesDescription", "instanceCount", "aws_bucket"):
            assert row[name] == ("" if truth[name] is None else str(truth[name]))


def read_metadata(haul: Haul) -> list[dict[str, str]]:
    """The rows of the one metadata.csv; each must have all columns and no more."""
    [path] = haul.run.archives.glob("*.metadata.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert all(None not in row and None not in row.values() for row in rows)
    return rows


def test_any_text_round_trips(tmp_path: Path) -> None:
    """Text of the index with quotes, separators, line ends of any kind and control signs comes back from the CSV."""
    data = build_series(
        tmp_path / "site",
        [made_series(f"text {n}", 4000, 1, SeriesDescription=text, PatientID=f"P{n}") for n, text in enumerate(TEXTS)],
    )
    with DemoSite(data.store()) as site:
        haul = Haul(tmp_path / "haul", data.index, site.url)
        haul.all()
    assert [row["SeriesDescription"] for row in sorted(read_metadata(haul), key=lambda row: row["PatientID"])] == list(
        TEXTS
    )


def test_rows_that_lie(tmp_path: Path) -> None:
    """Counts and sizes of the index that the site contradicts fail their items, with the reason, and no others."""
    data = build_lying(tmp_path / "site")
    patients = {series.uid: series.row.PatientID for series in data.series}
    with DemoSite(data.store()) as site:
        haul = Haul(tmp_path / "haul", data.index, site.url)
        haul.plan()
        assert haul.task().code == 3
        reasons = {patients[uid]: reason for uid, reason in haul.failures().items()}
        assert reasons == {"MORE": "count", "FEWER": "count", "BYTES": "size"}
        assert haul.reduce("--allow-partial").code == 3
    haul.check_members(data, without=list(haul.failures()))


def test_files_that_are_broken(tmp_path: Path) -> None:
    """DICOM that is none, torn, of another series or there twice fails its item with the reason; no archive is made."""
    data = build_broken(tmp_path / "site")
    patients = {series.uid: series.row.PatientID for series in data.series}
    with DemoSite(data.store()) as site:
        haul = Haul(tmp_path / "haul", data.index, site.url)
        haul.plan()
        assert haul.task().code == 3
        assert {patients[uid]: reason for uid, reason in haul.failures().items()} == {name: name for name in BREAKERS}
        assert haul.reduce("--allow-partial").code == 3
    assert haul.archives() == []


@pytest.mark.parametrize("shards", [1, 4])
def test_duplicate_in_a_cut_series(shards: int, tmp_path: Path) -> None:
    """Two files with one SOPInstanceUID fail their series also when they lie in different frames, or shards."""
    row, content = made_series("cut", 1_200_000, 4)
    content[0] = content[3][:-2] + b"\1\1"
    data = build_series(tmp_path / "site", [(row, content), made_series("sound", 1_200_000, 4)])
    uid = row.SeriesInstanceUID or ""
    sizes = {"group_bytes": "200 kB", "cut_bytes": "300 kB"}
    with DemoSite(data.store()) as site:
        haul = Haul(tmp_path / "haul", data.index, site.url, archive=sizes, shards=shards)
        haul.plan()
        haul.tasks()
    refused = haul.reduce()
    assert refused.code == 3
    assert f"{uid}: duplicate" in refused.err
    assert haul.reduce("--allow-partial").code == 3
    haul.check_members(data, without=[uid])
    assert [(line.id, line.reason) for line in haul.lines() if isinstance(line, FailedLine)] == [(uid, "duplicate")]


def test_rows_with_nulls(tmp_path: Path) -> None:
    """A row without counts is hauled as the site lists it; one without a place fails; the others are not disturbed."""
    rows = [
        made_series("uncounted", 90_000, 3, instanceCount=None, series_size_MB=None),
        (made_series("no bucket", 90_000, 3, aws_bucket=None)[0], []),
        (made_series("no folder", 90_000, 3, crdc_series_uuid=None)[0], []),
        made_series("no licence", 90_000, 3, license_short_name=None, source_DOI=None, PatientID=None),
        made_series("no collection", 90_000, 3, collection_id=None),
    ]
    data = build_series(tmp_path / "site", rows)
    lost = sorted(series.uid for series in data.series if not series.files)
    with DemoSite(data.store()) as site:
        haul = Haul(tmp_path / "haul", data.index, site.url)
        haul.plan()
        haul.tasks()
        assert sorted(haul.failures().items()) == [(uid, "unavailable") for uid in lost]
        assert haul.reduce("--allow-partial").code == 3
    haul.check_members(data)
    assert len(haul.archives()) == 2
