"""The demo NBIA's zips hold the files that it should, under the names and in the order of the real ones."""

from __future__ import annotations

import hashlib
import http.client
import io
import re
import zipfile
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_nbia_client import SERVICES, Api

from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import ONLY_NBIA, NbiaDemo, build_nbia
from pipeline.demo.nbia_records import NbiaFile
from pipeline.demo.nbia_zip import ZipOptions, choose_new_names, plan_zip, render_zip

REFUSED_V1 = "Image with given SeriesInstanceUID,{}, is not in public domain."
REFUSED = (
    "The user has not been granted the access to image with given SeriesInstanceUID,{}. "
    "Please contact System Admin to resolve this issue."
)
NEW_NAMES = {"NewFileNames": "Yes", "IncludeMD5": "Yes"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> NbiaDemo:
    """The tiny demo data."""
    return build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")


@pytest.fixture(scope="module")
def api(demo: NbiaDemo) -> Iterator[Api]:
    """A client with a token of a site that serves them."""
    with NbiaSite(demo.archive) as site:
        client = Api(site.url)
        client.login()
        yield client


def open_zip(body: bytes) -> zipfile.ZipFile:
    """A zip whose members have all been found sound."""
    opened = zipfile.ZipFile(io.BytesIO(body))
    assert opened.testzip() is None
    return opened


def listed(opened: zipfile.ZipFile) -> dict[str, str]:
    """MD5s by name, as md5hashes.csv has them."""
    head, *lines = opened.read("md5hashes.csv").decode().splitlines()
    assert head == "Filename,MD5Hash"
    return dict(line.split(",") for line in lines)


@pytest.mark.parametrize(
    ("path", "params", "first", "last"),
    [
        ("v1/getImage", {}, "LICENSE", "00000002.dcm"),
        ("v2/getImage", {"NewFileNames": "Yes"}, "LICENSE", "1-2.dcm"),
        ("v1/getImage", {"NewFileNames": "Yes", "IncludeMD5": "Yes"}, "LICENSE", "1-2.dcm"),
        ("v4/getImage", {"IncludeMD5": "Yes"}, "LICENSE", "md5hashes.csv"),
        ("v4/getImage", NEW_NAMES, "LICENSE", "md5hashes.csv"),
        ("v1/getImageWithMD5Hash", {}, "00000001.dcm", "md5hashes.csv"),
        ("v2/getImageWithMD5Hash", {}, "00000001.dcm", "md5hashes.csv"),
        ("v4/getImageWithMD5Hash", {}, "00000001.dcm", "md5hashes.csv"),
        ("v1/getDCMImage", {"MD5Verification": "true", "IncludeAnnotation": "false"}, "1-1.dcm", "md5hashes.csv"),
        ("v4/getDCMImage", {}, "1-1.dcm", "1-2.dcm"),
    ],
)
def test_members(api, demo, path, params, first, last):
    """Each call has its own members in its own order, and the files of the series byte for byte."""
    one = demo.archive.find(demo.named["tail-a"])
    got = api.get(path, SeriesInstanceUID=one.uid, **params)
    assert (got.status, got.type) == (200, "application/octet-stream")
    assert got.headers["Content-Disposition"] == f'attachment; filename="{one.uid}.zip"'
    opened = open_zip(got.body)
    names = opened.namelist()
    assert (names[0], names[-1]) == (first, last)
    files = [name for name in names if name.endswith(".dcm")]
    assert files == sorted(files)
    assert {hashlib.sha256(opened.read(name)).hexdigest() for name in files} == {file.sha256 for file in one.files}
    assert len(files) == len(one.files)
    if last == "md5hashes.csv":
        assert listed(opened) == {name: hashlib.md5(opened.read(name)).hexdigest() for name in files}
    if first == "LICENSE":
        assert ONLY_NBIA in opened.read("LICENSE").decode()
        assert "CC BY 3.0" in opened.read("LICENSE").decode()


def test_stream(api, demo):
    """A zip comes in chunks without a length, and each member's size and CRC stand after it."""
    got = api.get("v4/getImage", SeriesInstanceUID=demo.named["single"])
    assert got.headers["Transfer-Encoding"] == "chunked"
    assert not {"content-length", "etag", "accept-ranges"} & {name.lower() for name in got.headers}
    members = open_zip(got.body).infolist()
    assert all(member.flag_bits & 8 and member.compress_type == zipfile.ZIP_DEFLATED for member in members)
    assert got.body[14:18] == b"\0\0\0\0"  # the CRC in the first local header
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=20)
    for method in ("HEAD", "GET", "GET"):
        connection.request(method, f"{SERVICES}v4/getImage?SeriesInstanceUID={demo.named['single']}")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Transfer-Encoding"]) == (200, "chunked")
        assert answer.read() == (b"" if method == "HEAD" else got.body)
    connection.close()


def test_numbers_say_nothing(api, demo):
    """`00000001.dcm` is not the first instance, and md5hashes.csv is in an order of its own."""
    one = demo.archive.find(demo.named["no-instance-numbers"])
    opened = open_zip(api.get("v4/getImageWithMD5Hash", SeriesInstanceUID=one.uid).body)
    written = [hashlib.sha256(opened.read(name)).hexdigest() for name in opened.namelist()[:-1]]
    assert written != [file.sha256 for file in sorted(one.files, key=lambda file: file.path)]
    assert list(listed(opened)) != sorted(listed(opened))


def test_new_names(api, demo):
    """New names follow InstanceNumber, padded to its digits; without instance numbers they are not padded."""
    one = demo.archive.find(demo.named["tail-b"])
    opened = open_zip(api.get("v4/getImage", SeriesInstanceUID=one.uid, **NEW_NAMES).body)
    by_number = {hashlib.md5(opened.read(f"1-{file.instance}.dcm")).hexdigest(): file for file in one.files}
    assert by_number == {file.md5: file for file in one.files}
    uid = demo.named["no-instance-numbers"]
    names = open_zip(api.get("v4/getImage", SeriesInstanceUID=uid, NewFileNames="Yes").body).namelist()
    assert names == ["LICENSE", *(f"1-{n}.dcm" for n in range(1, 12))]
    uid = demo.named["acquisitions"]
    names = open_zip(api.get("v4/getImage", SeriesInstanceUID=uid, NewFileNames="Yes").body).namelist()
    assert len(set(names)) == 13
    assert all(re.fullmatch(r"\d+-\d+\.dcm", name) for name in names[1:])
    assert len({name.partition("-")[0] for name in names[1:]}) > 1


def _file(instance: int | None, acquisition: int | None) -> NbiaFile:
    return NbiaFile("", "", 0, "", "", instance, acquisition)


def test_padding():
    """Twenty slices of one acquisition are 1-01 to 1-20; two acquisitions, one after the other, are 1-01 and 2-01."""
    names = choose_new_names([_file(n, 1) for n in range(1, 21)])
    assert (names[0], names[-1]) == ("1-01.dcm", "1-20.dcm")
    names = choose_new_names([_file(n, 1 + (n > 6)) for n in range(1, 13)])
    assert (names[0], names[5], names[6], names[11]) == ("1-01.dcm", "1-06.dcm", "2-01.dcm", "2-06.dcm")


@given(st.lists(st.tuples(st.none() | st.integers(0, 30), st.none() | st.integers(0, 3)), min_size=1, max_size=50))
def test_new_names_never_collide(numbers):
    """Whatever the headers say, each file has a name of its own."""
    names = choose_new_names([_file(*pair) for pair in numbers])
    assert len(set(names)) == len(numbers)


@pytest.mark.parametrize("call", ["getImage", "getImageWithMD5Hash", "getDCMImage"])
def test_refusals(api, demo, call):
    """An unknown series and a forbidden one are the same 400, in v1 in other words than in v2 and v4."""
    for uid in ("9.9", demo.named["restricted"]):
        for version, text in (("v1", REFUSED_V1), ("v2", REFUSED), ("v4", REFUSED)):
            got = api.get(f"{version}/{call}", SeriesInstanceUID=uid)
            assert (got.status, got.type, got.body.decode()) == (400, "application/json", text.format(uid))


def test_single_image(api, demo):
    """One instance comes as it is; one that is unknown is an error of the server."""
    one = demo.archive.find(demo.named["tail-a"])
    for file in one.files:
        got = api.get("v4/getSingleImage", SeriesInstanceUID=one.uid, SOPInstanceUID=file.sop_instance_uid)
        assert (got.type, hashlib.sha256(got.body).hexdigest()) == ("application/dicom", file.sha256)
        assert got.headers["Content-Disposition"] == f"attachment; filename={file.sop_instance_uid}.dcm"
    assert api.get("v1/getSingleImage", SeriesInstanceUID=one.uid, SOPInstanceUID="9").status == 500


def test_a_file_that_is_gone_ends_the_zip(demo):
    """A file that is missing on the server's disk: the rest of the zip and its MD5s are missing, without a word."""
    one = demo.archive.find(demo.named["no-instance-numbers"])
    gone = msgspec.structs.replace(one.files[3], path="nowhere.dcm")
    broken = msgspec.structs.replace(one, files=(*one.files[:3], gone, *one.files[4:]))
    opened = open_zip(render_zip(plan_zip(demo.archive, broken, ZipOptions(md5=True, licence=True))))
    assert len(opened.namelist()) < 12
    assert "md5hashes.csv" not in opened.namelist()
    unlicensed = msgspec.structs.replace(broken, licence="none", files=(gone,))
    opened = open_zip(render_zip(plan_zip(demo.archive, unlicensed, ZipOptions(licence=True))))
    assert [(member.filename, member.file_size) for member in opened.infolist()] == [("LICENSE", 0)]


def test_every_public_series_is_served_whole(api, demo):
    """All shared and all other series come as the catalogue has them."""
    for one in demo.archive.series:
        if one.restricted:
            continue
        opened = open_zip(api.get("v4/getImageWithMD5Hash", SeriesInstanceUID=one.uid).body)
        assert sorted(listed(opened).values()) == sorted(file.md5 for file in one.files)
        assert sorted(hashlib.md5(opened.read(n)).hexdigest() for n in opened.namelist()[:-1]) == sorted(
            file.md5 for file in one.files
        )
