"""The TCIA client: every query, versions and hosts in turn, and no empty answer taken at its word."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, ItemError, SiteUnavailableError, UsageError
from pipeline.sources.tcia_api import BASE_URL, NLST_URL, Version, parse_base_url, render_since
from pipeline.sources.tcia_client import TciaClient
from pipeline.sources.tcia_rows import DoiEntry, SeriesSize, Tag
from pipeline.sources.tcia_search import Count, render_search
from pipeline.transport.retry import Policy
from tests.sources.test_tcia_http import (  # noqa: F401 -- the fixture
    EMPTY,
    SERIES,
    Asked,
    Handler,
    Site,
    Waits,
    _site,
    answer,
    kept,
    rows,
)

ONE = SERIES | {"PatientID": "P", "StudyInstanceUID": "1.2", "Modality": "CT"}
TWO = ONE | {"SeriesInstanceUID": "1.2.1", "PatientID": "Q", "Modality": "MR"}
COLLECTIONS = rows({"Collection": "X"}, {"Collection": "Other"})


def client(site: Site, **options: Any) -> TciaClient:
    """Open a client of the site that waits for nothing."""
    settings: dict[str, Any] = {"runtime": Waits().runtime, "policy": Policy(attempts=2, deadline=60.0)}
    return TciaClient(f"{site.root}/v4/", **settings | options)


QUERIES: dict[str, tuple[Callable[[TciaClient], Any], str, dict[str, str], Any, Any]] = {
    "collections": (lambda c: c.collections(), "getCollectionValues", {}, [{"Collection": "X"}], ["X"]),
    "modalities": (
        lambda c: c.modalities(collection="X", body_part="LUNG"),
        "getModalityValues",
        {"Collection": "X", "BodyPartExamined": "LUNG"},
        [{"Modality": "MR"}, {"Modality": "CT"}],
        ["CT", "MR"],
    ),
    "body parts": (
        lambda c: c.body_parts(modality="CT"),
        "getBodyPartValues",
        {"Modality": "CT"},
        [{}, {"BodyPartExamined": "LUNG"}],
        ["LUNG"],
    ),
    "manufacturers": (
        lambda c: c.manufacturers(collection="X", modality="CT"),
        "getManufacturerValues",
        {"Collection": "X", "Modality": "CT"},
        [{"Manufacturer": "GE"}],
        ["GE"],
    ),
    "patients": (
        lambda c: [(p.collection, p.PatientID, p.Phantom) for p in c.patients(patient="P")],
        "getPatient",
        {"PatientId": "P"},
        [{"PatientId": "P", "Collection": "Y"}, {"PatientId": "P", "Collection": "X", "Phantom": "NO"}],
        [("X", "P", False), ("Y", "P", None)],
    ),
    "patients by modality": (
        lambda c: c.patients_by_modality("X", "CT"),
        "getPatientByCollectionAndModality",
        {"Collection": "X", "Modality": "CT"},
        [{"PatientId": "Q"}, {"PatientId": "P"}],
        ["P", "Q"],
    ),
    "studies": (
        lambda c: [(s.StudyInstanceUID, s.StudyDate) for s in c.studies("X", patient="P")],
        "getPatientStudy",
        {"Collection": "X", "PatientID": "P"},
        {"StudyInstanceUID": "1.2", "StudyDate": "12-31-2000"},
        [("1.2", "2000-12-31")],
    ),
    "series": (
        lambda c: [s.SeriesInstanceUID for s in c.series("X", manufacturer="GE", model="m")],
        "getSeries",
        {"Collection": "X", "Manufacturer": "GE", "ManufacturerModelName": "m"},
        [TWO, ONE],
        ["1.2.3", "1.2.1"],
    ),
    "series size": (
        lambda c: c.series_size("1.2.3"),
        "getSeriesSize",
        {"SeriesInstanceUID": "1.2.3"},
        [{"TotalSizeInBytes": "16357620", "ObjectCount": 2}],
        SeriesSize(FileSize=16357620, ImageCount=2),
    ),
    "instances": (
        lambda c: c.instances("1.2.3"),
        "getSOPInstanceUIDs",
        {"SeriesInstanceUID": "1.2.3"},
        [{"SOPInstanceUID": "2"}, {"SOPInstanceUID": "1"}],
        ["1", "2"],
    ),
    "new patients": (
        lambda c: [p.PatientID for p in c.new_patients("X", "2020-03-01")],
        "NewPatientsInCollection",
        {"Collection": "X", "fromDate": "03-01-2020"},
        [{"PatientId": "P"}],
        ["P"],
    ),
    "new studies": (
        lambda c: [s.StudyInstanceUID for s in c.new_studies("X", dt.date(2020, 3, 1), patient="P")],
        "NewStudiesInPatientCollection",
        {"Collection": "X", "PatientID": "P", "fromDate": "03-01-2020"},
        [{"StudyInstanceUID": "1"}],
        ["1"],
    ),
    "updated series": (
        lambda c: [s.SeriesInstanceUID for s in c.updated_series(dt.datetime(2020, 3, 1, 12, tzinfo=dt.UTC))],
        "getUpdatedSeries",
        {"fromDate": "02-29-2020"},
        [ONE],
        ["1.2.3"],
    ),
    "descriptions": (
        lambda c: [(d.collection, d.DataDescriptionURI) for d in c.descriptions("X")],
        "getCollectionDescriptions",
        {"collectionName": "X"},
        [{"collectionName": "X", "description": "<p>", "descriptionURI": "https://doi.org/1"}],
        [("X", "https://doi.org/1")],
    ),
    "tags": (
        lambda c: c.dicom_tags("1.2.3"),
        "getDicomTags",
        {"SeriesUID": "1.2.3"},
        [{"element": "(0008,0060)", "name": "Modality", "data": "CT"}],
        [Tag(element="(0008,0060)", name="Modality", data="CT")],
    ),
    "counts": (
        lambda c: c.counts("modality", collection="X"),
        "getModalityValuesAndCounts",
        {"Collection": "X"},
        [{"criteria": "CT", "count": "12"}],
        [Count("CT", 12)],
    ),
    "doi": (
        lambda c: c.doi("https://doi.org/10.7937/abc", series=True),
        "getCollectionOrSeriesForDOI",
        {"DOI": "10.7937/abc", "CollectionOrSeries": "series"},
        [{"collection": "X", "seriesInstanceUID": "1", "thirdPartyAnanlysis": "YES", "authorized": True}],
        [DoiEntry(collection="X", SeriesInstanceUID="1", ThirdPartyAnalysis=True, Authorized=True)],
    ),
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_every_query(site: Site, query: tuple[Any, str, dict[str, str], Any, Any]) -> None:
    """Each method asks v4 once, with that version's names, gives rows in one spelling, and keeps the answer."""
    method, name, params, body, expected = query
    site.on(f"/v4/{name}", answer(200, json.dumps(body).encode()))
    with client(site) as tcia:
        assert method(tcia) == expected
        assert method(tcia) == expected
    (asked,) = site.asked
    assert asked.params == params


def test_the_simple_search(site: Site) -> None:
    """A search gives patients and counts; its series come by a manifest."""
    found = {"subjectId": "P", "project": "X", "totalNumberOfSeries": 3, "studyIdentifiers": {"studyIdentifier": "1.2"}}
    summary = {"resultSet": [found], "totalPatients": "7", "modalities": [{"value": "CT", "count": 7}]}
    site.on("/v4/getSimpleSearch", answer(200, json.dumps(summary).encode()))
    site.on("/v4/getManifestForSimpleSearch", answer(200, b"noOfrRetry=4\nListOfSeriesToDownload=\n1.2.3\n1.2.4"))
    with client(site) as tcia:
        result = tcia.search({"collection": "X"}, size=1)
        assert (result.total, result.modalities) == (7, (Count("CT", 7),))
        assert [(p.PatientID, p.collection, p.series) for p in result.patients] == [("P", "X", 3)]
        assert tcia.search_series({"collection": "X"}) == ["1.2.3", "1.2.4"]
    assert site.asked[0].params["value0"] == "X"
    assert (site.asked[0].params["size"], site.asked[1].params["size"]) == ("1", "1000000")


def test_carts_are_asked_of_v1(site: Site) -> None:
    """Only the old version has shared carts; one that there is not is an error."""
    site.on("/v1/getContentsByName", rows(ONE | {"Date Released": "2020-01-02 00:00:00.0"}), EMPTY)
    site.on("/v1/getCollectionValues", COLLECTIONS)
    with client(site) as tcia:
        assert tcia.cart("mine")[0].DateReleased == "2020-01-02"
        with pytest.raises(ConfigError, match="no shared cart 'yours'"):
            tcia.cart("yours")


@pytest.mark.parametrize("fault", [answer(404), answer(500), answer(200, b"<html>"), rows({"error": 1}), EMPTY])
def test_v1_steps_in(site: Site, fault: Any) -> None:
    """Where v4 fails, or says nothing, v1 is asked in its own names."""
    site.on("/v4/NewPatientsInCollection", fault)
    site.on("/v1/NewPatientsInCollection", rows({"PatientId": "P"}))
    with client(site) as tcia:
        assert [found.PatientID for found in tcia.new_patients("X", "2020-03-01")] == ["P"]
    assert site.asked[-1].params == {"Collection": "X", "Date": "2020/02/29"}


def test_one_version_only(site: Site) -> None:
    """A client for one version asks no other."""
    site.on("/v4/getSeries", answer(500))
    site.on("/v1/getSeries", rows(ONE))
    with client(site, api="v4") as tcia, pytest.raises(SiteUnavailableError, match="500"):
        tcia.series("X")
    with client(site, api="v1") as tcia:
        assert len(tcia.series("X")) == 1
        with pytest.raises(UsageError, match="not in v1"):
            tcia.dicom_tags("1.2")


def test_a_listed_collection_is_never_empty(site: Site, tmp_path: Path) -> None:
    """Nothing from both versions for a collection that the site lists is the site's failure."""
    site.on("/v4/getSeries", EMPTY)
    site.on("/v1/getSeries", EMPTY)
    site.on("/v4/getCollectionValues", COLLECTIONS)
    with client(site) as tcia, pytest.raises(SiteUnavailableError, match="no series of the collection x"):
        tcia.series("x")
    assert site.paths() == ["/v4/getSeries"] * 2 + ["/v1/getSeries"] * 2 + ["/v4/getCollectionValues"]
    assert not any(b"getSeries" in data for data in kept(tmp_path))


def test_a_collection_that_there_is_not(site: Site) -> None:
    """It is named, with the nearest that there is."""
    site.on("/v4/getSeries", EMPTY)
    site.on("/v1/getSeries", EMPTY)
    site.on("/v4/getCollectionValues", COLLECTIONS)
    with client(site) as tcia, pytest.raises(ConfigError, match="no collection 'othr' among 2") as caught:
        tcia.series("othr")
    assert caught.value.hint == "did you mean Other?"


def test_a_site_without_collections_is_down(site: Site) -> None:
    """When even the collections are empty, nothing is believed."""
    for version in ("v4", "v1"):
        site.on(f"/{version}/getSeries", EMPTY)
        site.on(f"/{version}/getCollectionValues", EMPTY)
    with client(site) as tcia:
        for ask in (lambda: tcia.series("X"), lambda: tcia.series(series="1.2"), tcia.collections):
            with pytest.raises(SiteUnavailableError, match="lists no collections"):
                ask()


def narrow(handler: Handler, asked: Asked) -> None:
    """Two series for the whole collection, nothing for any filter."""
    whole = asked.params == {"Collection": "X"}
    (rows(ONE, TWO) if whole else EMPTY)(handler, asked)


def test_a_narrow_answer_is_compared_with_the_whole(site: Site) -> None:
    """Nothing for a filter is believed where no series of the collection meets it, and else is a failure."""
    for version in ("v4", "v1"):
        site.on(f"/{version}/getSeries", narrow)
        site.on(f"/{version}/getPatient", EMPTY)
        site.on(f"/{version}/getModalityValues", EMPTY)
        site.on(f"/{version}/getBodyPartValues", EMPTY)
    site.on("/v4/getCollectionValues", COLLECTIONS)
    with client(site) as tcia:
        assert tcia.series("X", modality="PT") == []
        assert tcia.body_parts(collection="X") == []
        for ask in (
            lambda: tcia.series("X", modality="ct"),
            lambda: tcia.patients("X"),
            lambda: tcia.modalities(collection="X"),
        ):
            with pytest.raises(SiteUnavailableError, match="although getSeries lists"):
                ask()


def test_an_unknown_series(site: Site) -> None:
    """It has no rows, no size and no tags, once that is sure."""
    for version in ("v4", "v1"):
        for name in ("getSeries", "getSeriesSize", "getSOPInstanceUIDs", "getDicomTags"):
            site.on(f"/{version}/{name}", rows({}) if name == "getSeriesSize" else EMPTY)
    site.on("/v4/getCollectionValues", COLLECTIONS)
    with client(site) as tcia:
        assert tcia.series(series="9.9") == []
        assert tcia.instances("9.9") == []
        for ask in (tcia.series_size, tcia.dicom_tags):
            with pytest.raises(ConfigError, match=r"no series 9\.9"):
                ask("9.9")
        site.on("/v4/getSeries", rows(ONE))
        with pytest.raises(SiteUnavailableError, match=r"lists 1 such series, as 1\.2\.3"):
            tcia.instances("1.2.3")
        for wrong in ("", "1.2/3", "x", "1" * 65):
            with pytest.raises(UsageError):
                tcia.instances(wrong)


def test_nlst_has_a_host_of_its_own(site: Site) -> None:
    """Its collection is asked there; a UID that the main host refuses or does not know, there too."""
    nlst = Site()
    try:
        nlst.on("/v4/getSeries", rows(ONE | {"Collection": "NLST"}))
        nlst.on("/v4/getCollectionValues", rows({"Collection": "NLST"}, {"Collection": "junk"}))
        site.on("/v4/getSeries", answer(400, b"not here"))
        site.on("/v4/getCollectionValues", COLLECTIONS)
        with client(site, nlst_url=nlst.root) as tcia:
            assert tcia.series("nlst")[0].collection == "NLST"
            assert site.asked == []
            assert tcia.series(series="1.2.3")[0].collection == "NLST"
            assert site.paths() == ["/v4/getSeries", "/v1/getSeries"]
            assert tcia.collections() == ["NLST", "Other", "X"]
            assert (tcia.base_url_for("NLST"), tcia.base_url_for("X")) == (nlst.root, site.root)
            nlst.on("/v4/getSeries", answer(400, b"nor here"))
            with pytest.raises(ConfigError, match="not here"):
                tcia.series(series="1.2.4")
    finally:
        nlst.close()


def test_collections_without_nlst(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The host of NLST being down is a warning."""
    nlst = Site()
    nlst.close()
    site.on("/v4/getCollectionValues", COLLECTIONS)
    with client(site, nlst_url=nlst.root) as tcia:
        assert tcia.collections() == ["Other", "X"]
    assert "NLST is not among the collections" in caplog.text


def test_base_urls() -> None:
    """Any version at the end means the services; another site than TCIA's own does not lead to TCIA's host for NLST."""
    for url in ("http://h/a/services", "http://h/a/services/", "http://h/a/services/v4/", "http://h/a/services/v1"):
        assert parse_base_url(url) == "http://h/a/services"
        assert TciaClient(url).base_url_for("NLST") == "http://h/a/services"
    assert TciaClient().base_url_for("NLST") == parse_base_url(NLST_URL)
    assert TciaClient().base_url_for("X") == parse_base_url(BASE_URL)
    for url in ("", "ftp://x/", "http://", "http://h/?a=b", "http://h:x/", "http://h/#a", "http://a b/", "http://[/"):
        with pytest.raises(ConfigError):
            TciaClient(url)


def metadata(handler: Handler, asked: Asked) -> None:
    """A table of the series asked for, without those that end in 9, backwards."""
    uids = [uid for uid in asked.params["list"].split(",") if not uid.endswith("9")]
    lines = ['"PatientID","SeriesInstanceUID","ImageCount"', *(f'"P","{uid}","7"' for uid in reversed(uids))]
    answer(200, "\n".join(lines).encode(), Content_Type="text/csv")(handler, asked)


def test_metadata_in_batches(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """UIDs go in a few forms; rows come as asked for, without what the site does not know, which is asked twice."""
    monkeypatch.setattr("pipeline.sources.tcia_metadata.BATCH", 3)
    site.on("/v4/getSeriesMetadata", metadata)
    site.on("/v1/getSeriesMetaData", answer(204))
    with client(site) as tcia:
        found = tcia.series_metadata(["1.5", "1.1", "1.9", "1.1", "1.2"])
    assert [(row.SeriesInstanceUID, row.ImageCount) for row in found] == [("1.5", 7), ("1.1", 7), ("1.2", 7)]
    assert [(asked.method, asked.params) for asked in site.asked] == [
        ("POST", {"list": "1.5,1.1,1.9"}),
        *[("POST", {"list": "1.9"})] * 2,
        *[("GET", {"SeriesInstanceUID": "1.9"})] * 2,
        ("POST", {"list": "1.2"}),
    ]


def test_metadata_of_v1(site: Site) -> None:
    """Where the batched call fails, a few series are asked for one by one."""
    site.on("/v4/getSeriesMetadata", answer(500))
    site.on("/v1/getSeriesMetaData", rows({"Series UID": "1.1", "Subject ID": "P"}))
    with client(site) as tcia:
        assert [row.PatientID for row in tcia.series_metadata(["1.1"])] == ["P"]
        with pytest.raises(SiteUnavailableError, match="500"):
            tcia.series_metadata(f"1.{number}" for number in range(300))


@pytest.fixture(name="image")
def _image() -> tuple[bytes, str, str]:
    """A DICOM file with its series and instance UIDs."""
    import io

    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = SecondaryCaptureImageStorage, "1.2.3.4", "1.2.3"
    data.StudyInstanceUID, data.PatientID, data.Modality = "1.2", "P", "OT"
    data.Rows = data.Columns = data.SamplesPerPixel = 1
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.PhotometricInterpretation = 7, 0, "MONOCHROME2"
    data.add_new("PixelData", "OB", b"\x01\x02")
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    out = io.BytesIO()
    pydicom.dcmwrite(out, data, enforce_file_format=True)
    return out.getvalue(), "1.2.3", "1.2.3.4"


def test_a_single_image(site: Site, tmp_path: Path, image: tuple[bytes, str, str]) -> None:
    """It is compared with the site's MD5 and its UIDs, and never kept in the cache."""
    data, series, instance = image
    site.on("/v4/getSingleImage", answer(200, data))
    site.on("/v4/getMD5HashForImage", answer(200, hashlib.md5(data).hexdigest().encode()))
    path = tmp_path / "out" / "image.dcm"
    with client(site) as tcia:
        assert tcia.single_image(series, instance, path) == path
        assert path.read_bytes() == data
        assert site.asked[0].params == {"SeriesInstanceUID": series, "SOPInstanceUID": instance}
        path.unlink()
        for other in (("1.2.9", instance), (series, "1.2.3.9")):
            with pytest.raises(ItemError) as caught:
                tcia.single_image(*other, path)
            assert caught.value.reason == "wrong-uid"
        site.on("/v4/getMD5HashForImage", answer(200, b"0" * 32))
        with pytest.raises(ItemError) as caught:
            tcia.single_image(series, instance, path)
        assert caught.value.reason == "checksum"
    assert list(path.parent.iterdir()) == []
    assert kept(tmp_path) == []


def test_a_single_image_without_md5(site: Site, tmp_path: Path, image: tuple[bytes, str, str]) -> None:
    """The MD5 is asked of v1 by its misspelt name, and may be missing."""
    data, series, instance = image
    site.on("/v4/getSingleImage", answer(200, data))
    site.on("/v4/getMD5HashForImage", EMPTY)
    site.on("/v1/getM5HashForImage", EMPTY)
    site.on("/v4/getCollectionValues", COLLECTIONS)
    with client(site) as tcia:
        assert tcia.single_image(series, instance, tmp_path / "i.dcm").read_bytes() == data
        site.on("/v4/getSingleImage", answer(200, b"Server was not able to process your request"))
        site.on("/v1/getSingleImage", answer(500, b"Server was not able to process your request\nnull"))
        with pytest.raises(SiteUnavailableError, match="no DICOM file"):
            tcia.single_image(series, instance, tmp_path / "j.dcm")
    assert "/v1/getM5HashForImage" in site.paths()
    assert not (tmp_path / "j.dcm").exists()


def test_dates_are_checked(site: Site) -> None:
    """A day that is none is the caller's mistake, before anything is sent."""
    with client(site) as tcia, pytest.raises(UsageError, match="no date"):
        tcia.updated_series("01/02/2020")
    assert site.asked == []


@given(day=st.dates(), version=st.sampled_from(["v4", "v2", "v1"]))
def test_any_date_can_be_asked_from(day: dt.date, version: Version) -> None:
    """Every date of the calendar is written with a year of four digits, and never as a later day than it is."""
    for name in ("getUpdatedSeries", "NewPatientsInCollection", "NewStudiesInPatientCollection"):
        forms = ("%m-%d-%Y",) if version == "v4" else ("%d/%m/%Y",) if name == "getUpdatedSeries" else ("%Y/%m/%d",)
        (found,) = (
            dt.datetime.strptime(render_since(name, version, day), form).replace(tzinfo=dt.UTC) for form in forms
        )
        assert found.date() <= max(day, dt.date(1970, 1, 1))
    form = dict(render_search({"released": (day, day)}))
    assert form["fromDate0"] == form["toDate0"] == f"{day.month:02}-{day.day:02}-{day.year:04}"
