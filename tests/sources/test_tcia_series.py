"""What counts as a whole series: each way in which a sound zip lacks or has too much is told for what it is."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_kit import make_dicom, make_item
from zip_kit import list_md5s, make_series_zip, make_zip, opened

from pipeline.demo.nbia_data import build_nbia
from pipeline.dicom.check import check_dicom
from pipeline.errors import ItemError
from pipeline.model import Item
from pipeline.sources.tcia_series import HEAD, Found, check_series, parse_md5_list, peek_instance

UID = "1.2.826.0.1.1"
FILES = {f"1-{n}.dcm": make_dicom(UID, f"{UID}.{n}") for n in (3, 1, 2)}
ITEM = make_item(0, 3, sum(map(len, FILES.values())), uid=UID)
UNSTATED = msgspec.structs.replace(ITEM, files=-1, bytes=-1)
MD5S = list_md5s(FILES)


def check(folder: Path, data: bytes, item: Item = ITEM, limit: int = 1 << 30) -> list[Found]:
    """What a zip holds."""
    with opened(folder, data) as fd:
        return check_series(fd, item, limit=limit)


def refuse(folder: Path, data: bytes, item: Item = ITEM, limit: int = 1 << 30) -> tuple[str, bool]:
    """Why a zip is not the series."""
    with pytest.raises(ItemError) as caught:
        check(folder, data, item, limit)
    assert str(caught.value).isprintable()
    return caught.value.reason, caught.value.transient


@pytest.mark.parametrize("item", [ITEM, UNSTATED])
@pytest.mark.parametrize("licence", [True, False])
def test_a_whole_series(tmp_path, item, licence):
    """All images are found, by SOPInstanceUID, with MD5 and size."""
    found = check(tmp_path, make_series_zip(FILES, licence=licence), item)
    assert [each.file.sop for each in found] == [f"{UID}.{n}" for n in (1, 2, 3)]
    assert {each.file.md5: each.member.name for each in found} == {
        md5: name for name, md5 in parse_md5_list(MD5S).items()
    }


@given(st.permutations(sorted(FILES.items())), st.permutations([f"{n:08d}.dcm" for n in range(3)]))
def test_order_and_names_in_the_zip_leave_no_trace(tmp_path_factory, files, names):
    """At each request names may mean other images: what is listed is the same."""
    folder = tmp_path_factory.mktemp("zip")
    renamed = {name: data for name, (_, data) in zip(names, files, strict=True)}
    found = check(folder, make_series_zip(renamed, licence=False))
    usual = check(folder, make_series_zip(FILES))
    assert [each.file for each in found] == [each.file for each in usual]


def without(name: str) -> dict[str, bytes]:
    """The files but one."""
    return {each: data for each, data in FILES.items() if each != name}


CUT = FILES | {"1-2.dcm": FILES["1-2.dcm"][:-50]}
DEFECTS: dict[str, tuple[bytes, str, str]] = {
    # kind: zip, reason where the manifest states counts, reason where it does not
    "22 bytes": (make_zip({}), "count", "empty"),
    "licence only": (make_zip({"LICENSE": b""}), "count", "empty"),
    "licence and list only": (make_zip({"LICENSE": b"", "md5hashes.csv": b"Filename,MD5Hash\n"}), "count", "empty"),
    "sound but short": (make_zip({"LICENSE": b"x", **without("1-2.dcm")}), "count", "unavailable"),
    "short with a list that fits": (make_series_zip(without("1-2.dcm")), "count", ""),
    "short with the whole list": (make_series_zip(without("1-2.dcm"), md5s=MD5S), "count", "count"),
    "a file too many": (make_series_zip(FILES | {"9.dcm": FILES["1-1.dcm"] + b"\0\0"}), "count", "duplicate"),
    "no list": (make_zip(FILES), "unavailable", "unavailable"),
    "two lists": (make_zip({**FILES, "md5hashes.csv": MD5S, "MD5Hashes.CSV": MD5S}), "unavailable", "unavailable"),
    "a row too many": (make_series_zip(FILES, md5s=MD5S + b"9.dcm," + b"0" * 32 + b"\n"), "count", "count"),
    "a row for the licence": (make_series_zip(FILES, md5s=MD5S + b"LICENSE," + b"0" * 32 + b"\n"), "count", "count"),
    "an image without a row": (make_series_zip(FILES, md5s=list_md5s(without("1-2.dcm"))), "count", "count"),
    "an image cut under a CRC that fits": (make_series_zip(CUT, md5s=MD5S), "size", "checksum"),
    "wrong MD5": (make_series_zip(FILES, md5s=list_md5s(FILES | {"1-2.dcm": b"?"})), "checksum", "checksum"),
    "list is a page": (make_series_zip(FILES, md5s=b"<html>"), "unavailable", "unavailable"),
    "list is empty": (make_series_zip(FILES, md5s=b""), "unavailable", "unavailable"),
    "list names files twice": (make_series_zip(FILES, md5s=MD5S + MD5S[17:]), "unavailable", "unavailable"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "stated", "unstated"), DEFECTS.values(), ids=DEFECTS)
def test_each_defect_has_its_reason_and_may_pass(tmp_path, data, stated, unstated):
    """Faults of the server that end in a sound zip: told by count, bytes, list and MD5, and worth another request."""
    assert refuse(tmp_path, data) == (stated, True)
    if unstated:
        assert refuse(tmp_path, data, UNSTATED) == (unstated, unstated != "duplicate")


def test_one_instance_twice_is_a_duplicate_for_good(tmp_path):
    """Both could not be in the archive, whatever is asked again."""
    files = FILES | {"1-2.dcm": make_dicom(UID, f"{UID}.1", seed=9)}
    assert refuse(tmp_path, make_series_zip(files)) == ("duplicate", False)


def test_a_series_without_images_in_the_manifest(tmp_path):
    """Nothing was to be had, and asking again brings nothing either."""
    item = msgspec.structs.replace(ITEM, files=0, bytes=0)
    assert refuse(tmp_path, make_series_zip({}), item) == ("empty", False)


def test_other_files_are_told_and_left_out(tmp_path, caplog):
    """Annotations lie beside the images of some series: they are no images, and the log has their names."""
    data = make_series_zip({"notes.xml": b"<xml/>", "odd\u2028name.txt": b"", **FILES}, md5s=MD5S)
    with caplog.at_level(logging.WARNING, "medhaul.task"):
        assert len(check(tmp_path, data)) == 3
    assert "2 files in its zip are no images, and left out: notes.xml, odd name.txt" in caplog.text
    caplog.clear()
    check(tmp_path, make_series_zip(FILES))
    assert not caplog.records


def test_an_image_of_another_name_counts_by_its_row(tmp_path):
    """Originals may have had another ending, or none: the list of MD5s says what the images are."""
    files = {f"0000000{n}": data for n, data in enumerate(FILES.values())}
    assert len(check(tmp_path, make_series_zip(files))) == 3


def test_damaged_others_fail_the_zip(tmp_path):
    """A zip is whole only if each member has its CRC, the licence too."""
    data = bytearray(make_zip({"LICENSE": b"free" * 50, **FILES, "md5hashes.csv": MD5S}))
    data[40] ^= 8
    assert refuse(tmp_path, bytes(data)) == ("checksum", True)


def test_bytes_are_bounded_before_they_are_inflated(tmp_path):
    """Where the manifest states no bytes, the limit holds for the images, and always one for the rest."""
    assert refuse(tmp_path, make_series_zip(FILES), UNSTATED, limit=ITEM.bytes - 1) == ("size", False)
    rest = make_series_zip(FILES | {"notes.xml": bytes(257 << 20)}, md5s=MD5S)
    assert refuse(tmp_path, rest) == ("size", True)


@pytest.mark.parametrize(
    "text",
    [
        "Filename,MD5Hash\na.dcm,0123456789abcdef0123456789abcdef\n",
        "\ufefffilename, md5hash\r\na.dcm,0123456789ABCDEF0123456789ABCDEF\r\n\r\n",
        'Filename,MD5Hash\n"a.dcm","0123456789abcdef0123456789abcdef"',
    ],
)
def test_lists_of_md5s(text):
    """As NBIA writes them, and as a later one might: quoted, in capitals, with other ends of lines."""
    assert parse_md5_list(text.encode()) == {"a.dcm": "0123456789abcdef0123456789abcdef"}


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_no_list_of_md5s_ends_in_anything_but_an_item_error(data):
    """Whatever bytes follow the header, with or without it."""
    for each in (data, b"Filename,MD5Hash\n" + data):
        rows, reason = {"": "0" * 32}, "unavailable"
        try:
            rows = parse_md5_list(each)
        except ItemError as error:
            reason = error.reason
        assert reason == "unavailable"
        assert all(len(md5) == 32 for md5 in rows.values())


@settings(max_examples=500)
@given(st.binary(max_size=600), st.integers(0, 400))
def test_peeking_never_fails(data, cut):
    """From bytes that may be anything, there is a UID or none."""
    whole = FILES["1-1.dcm"]
    for head in (data, bytes(128) + b"DICM" + data, whole[:cut] + data, whole[:cut]):
        assert isinstance(peek_instance(head), str)


def test_peeking_finds_what_the_check_finds(tmp_path):
    """In each transfer syntax of the demo, the beginning of a file has the SOPInstanceUID that it is archived by."""
    demo = build_nbia(tmp_path, "tiny")
    seen = 0
    for one in demo.archive.series:
        for file in one.files:
            data = Path(demo.archive.root, file.path).read_bytes()
            header = check_dicom(Path(demo.archive.root, file.path), series_uid=one.uid)
            assert peek_instance(data[:HEAD]) == header.sop_instance_uid
            seen += 1
    assert seen > 50
