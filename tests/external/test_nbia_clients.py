"""Other clients against our NBIA: tcia_utils and nbiatoolkit, unmodified, list and fetch what the demo site serves.

Compared are the sets of collections and of series that they list with those of the archive, and the SHA-256 of every
file that they write, series by series or as a multiset, with those of the files served.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import venv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.demo.faults import Fault
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import CART, NAMES, ONLY_NBIA, NbiaDemo, build_nbia

pytestmark = pytest.mark.external
VERSIONS = {"tcia_utils": "3.3.5", "nbiatoolkit": "1.3.1"}
ENVIRONMENTS = Path(__file__).parents[2] / ".venv-nbia"
VENV = ENVIRONMENTS / "-".join(VERSIONS.values())

# Python runs this before anything else: requests for TCIA's hosts go to the demo site; the clients stay as they are.
REDIRECT = """
import os, re
import requests.sessions
_request = requests.sessions.Session.request
def request(self, method, url, *args, **kwargs):
    url = re.sub(r"^https://[a-z.-]*cancerimagingarchive[.]net", os.environ["NBIA_DEMO"], url)
    return _request(self, method, url, *args, **kwargs)
requests.sessions.Session.request = request
"""
# What the programs say goes to standard output as one line of JSON.
TCIA_UTILS = """
import json, sys
from tcia_utils import nbia
collection, cart, folder, hashes = sys.argv[1:5]
series = nbia.getSeries(collection=collection)
nbia.downloadSeries(series, path=folder, hash=hashes)
uids = [one["SeriesInstanceUID"] for one in series]
print(json.dumps({
    "collections": [one["Collection"] for one in nbia.getCollections()],
    "series": uids,
    "counts": {one["SeriesInstanceUID"]: one["ImageCount"] for one in series},
    "metadata": sorted(nbia.getSeriesList(uids=uids)["SeriesInstanceUID"]),
    "cart": [one["SeriesInstanceUID"] for one in nbia.getSharedCart(cart)],
}))
"""
NBIATOOLKIT = """
import json, sys
from nbiatoolkit import NBIAClient
if __name__ == "__main__":
    collection, folder = sys.argv[1:3]
    with NBIAClient(log_level="ERROR") as client:
        uids = [one["SeriesInstanceUID"] for one in client.getSeries(Collection=collection)]
        done = client.downloadSeries(uids, folder, "%SeriesInstanceUID-%SeriesNumber/%InstanceNumber.dcm", nParallel=2)
        print(json.dumps({
            "collections": [one["Collection"] for one in client.getCollections()],
            "patients": [one["PatientId"] for one in client.getPatients(Collection=collection)],
            "series": uids,
            "done": done,
        }))
"""


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment of its own with both clients; it is kept for later sessions."""
    marker = VENV / "complete"
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of one session
        if not marker.exists():
            shutil.rmtree(VENV, ignore_errors=True)
            venv.create(VENV, with_pip=True)
            wanted = [f"{name}=={version}" for name, version in VERSIONS.items()]
            command = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet", *wanted]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                shutil.rmtree(VENV, ignore_errors=True)
                pytest.skip(f"pip cannot install {wanted}: {done.stderr.strip().splitlines()[-1:]}")
            marker.touch()
    return VENV / "bin" / "python"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> NbiaDemo:
    """The tiny demo data, with an archive of NBIA."""
    return build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")


@pytest.fixture
def site(demo: NbiaDemo) -> Iterator[NbiaSite]:
    """A site that serves them."""
    with NbiaSite(demo.archive) as running:
        yield running


def run(python: Path, site: NbiaSite, home: Path, program: str, *arguments: object) -> dict[str, object]:
    """Run a program with its requests redirected; what it says."""
    (home / "hook").mkdir(exist_ok=True)
    (home / "hook" / "sitecustomize.py").write_text(REDIRECT)
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "TMPDIR"}}
    environ = {**kept, "HOME": str(home), "PYTHONPATH": str(home / "hook"), "NBIA_DEMO": site.url}
    (home / "program.py").write_text(program)
    command = [python, home / "program.py", *arguments]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environ, cwd=home, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def written(folder: Path) -> Counter[str]:
    """SHA-256 of the DICOM files below a folder, and how often each is there."""
    return Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.dcm"))


def served(demo: NbiaDemo, collection: str) -> dict[str, Counter[str]]:
    """SHA-256 of the files of each series of a collection."""
    return {
        one.uid: Counter(file.sha256 for file in one.files)
        for one in demo.archive.series
        if one.collection == collection
    }


@pytest.mark.parametrize("hashes", ["y", ""])
@pytest.mark.parametrize("collection", [NAMES["demo_mixed"], ONLY_NBIA])
def test_tcia_utils_fetches_from_the_demo_site(
    hashes: str, collection: str, python: Path, site: NbiaSite, demo: NbiaDemo, tmp_path: Path
) -> None:
    """The client tcia_utils lists just our collections and series, and writes each series byte for byte."""
    said = run(python, site, tmp_path, TCIA_UTILS, collection, CART, tmp_path / "files", hashes)
    expected = served(demo, collection)
    assert set(said["collections"]) == {*NAMES.values(), ONLY_NBIA}
    assert set(said["series"]) == set(expected) == set(said["metadata"])
    assert len(said["series"]) == len(expected)
    assert said["counts"] == {uid: sum(files.values()) for uid, files in expected.items()}
    assert set(said["cart"]) == set(demo.archive.carts[0].series)
    folders = {path.name: path for path in (tmp_path / "files").iterdir()}
    assert {uid: written(path) for uid, path in folders.items()} == expected
    others = {path.name for path in (tmp_path / "files").rglob("*") if path.is_file() and path.suffix != ".dcm"}
    assert others == ({"md5hashes.csv"} if hashes else {"LICENSE"})


def test_nbiatoolkit_fetches_from_the_demo_site(python: Path, site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """The client nbiatoolkit logs in as guest, lists just our collections and series, and writes our files."""
    collection = NAMES["demo_ct_mr"]
    said = run(python, site, tmp_path, NBIATOOLKIT, collection, tmp_path / "files")
    expected = served(demo, collection)
    assert set(said["collections"]) == {*NAMES.values(), ONLY_NBIA}
    assert set(said["series"]) == set(expected)
    assert set(said["patients"]) == {one.patient_id for one in demo.archive.series if one.collection == collection}
    assert said["done"] is True
    assert written(tmp_path / "files") == sum(expected.values(), Counter())
    assert site.calls()["v2/getImageWithMD5Hash"] == len(expected)


def test_clients_see_the_faults(python: Path, site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """A short zip is a sound one to tcia_utils, which keeps what there is: the fault is one that clients do not see."""
    uid = demo.named["no-description"]
    site.faults.set(f"nbia/v4/getImage*/{uid}", Fault(kind="zip-short", at=0.5))
    run(python, site, tmp_path, TCIA_UTILS, ONLY_NBIA, CART, tmp_path / "files", "")
    assert written(tmp_path / "files" / uid).total() == 2
    assert served(demo, ONLY_NBIA)[uid].total() == 4
