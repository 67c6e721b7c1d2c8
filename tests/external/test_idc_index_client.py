"""Another client against our site: idc-index and its s5cmd fetch what the demo site serves, byte for byte."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
from haul import Haul
from real_rows import RealSeries, choose_series, fill_series

from pipeline.demo.bucket import Store
from pipeline.demo.faults import Fault
from pipeline.demo.site import DemoSite

pytestmark = pytest.mark.external
VERSION = "0.13.4"
ENVIRONMENTS = Path(__file__).parents[2] / ".venv-idc-index"
VENV = ENVIRONMENTS / VERSION

# The endpoints are globals of the module, read at each call; a setting for them there is none.
DOWNLOAD = """
import json, sys
from idc_index import index
url, folder, cloud, series = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
index.aws_endpoint_url = index.gcp_endpoint_url = url
client = index.IDCClient()
client.download_from_selection(
    downloadDir=folder, seriesInstanceUID=series, dirTemplate="%SeriesInstanceUID", show_progress_bar=False,
    source_bucket_location=cloud,
)
"""


@pytest.fixture(scope="session")
def client() -> Path:
    """The bin folder of an environment of its own with idc-index; it is kept for later sessions."""
    marker = VENV / "complete"
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of one session
        if not marker.exists():
            shutil.rmtree(VENV, ignore_errors=True)
            venv.create(VENV, with_pip=True)
            command = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet", f"idc-index=={VERSION}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                shutil.rmtree(VENV, ignore_errors=True)
                pytest.skip(f"pip cannot install idc-index=={VERSION}: {done.stderr.strip().splitlines()[-1:]}")
            marker.touch()
    return VENV / "bin"


@pytest.fixture(scope="session")
def known(client: Path, real: list[RealSeries]) -> list[RealSeries]:
    """The chosen series, or others, that also the index of that environment has under the same uuid."""
    code = (
        "import idc_index_data, pyarrow.parquet as p;"
        "t = p.read_table(idc_index_data.IDC_INDEX_PARQUET_FILEPATH, columns=['crdc_series_uuid']);"
        "import json; print(json.dumps(t.column(0).to_pylist()))"
    )
    done = subprocess.run([client / "python", "-c", code], capture_output=True, text=True, check=True)
    theirs = set(json.loads(done.stdout))
    if all(series.uuid in theirs for series in real):
        return real
    return choose_series(sorted(theirs))


@pytest.fixture
def served(known: list[RealSeries], store: Store) -> Store:
    """The objects of the series."""
    missing = [
        series for series in known if not any(k.startswith(series.uuid) for k in store.bucket(series.bucket).keys)
    ]
    for series in missing:
        for key, content in fill_series(series):
            store.put(series.bucket, key, content)
    return store


def run(command: list[object], home: Path) -> subprocess.CompletedProcess[str]:
    """Run a program without proxies and credentials of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "TMPDIR"}}
    environ = {**kept, "HOME": str(home), "AWS_EC2_METADATA_DISABLED": "true"}
    environ["PATH"] = f"{Path(str(command[0])).parent}{os.pathsep}{environ.get('PATH', '')}"
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environ, check=False, timeout=240
    )


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 by file name of all files below a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def stored(store: Store, series: list[RealSeries]) -> dict[str, str]:
    """SHA-256 by file name of the objects of some series."""
    return {
        key.rpartition("/")[2]: item.sha256.hex()
        for one in series
        for key, item in store.buckets[one.bucket].objects.items()
        if key.startswith(f"{one.uuid}/")
    }


@pytest.mark.parametrize("cloud", ["aws", "gcs"])
def test_idc_index_fetches_from_the_demo_site(
    cloud: str, client: Path, known: list[RealSeries], served: Store, tmp_path: Path
) -> None:
    """IDCClient.download_from_selection brings real series of the packaged index with the bytes that we serve."""
    folder = tmp_path / "files"
    folder.mkdir()
    with DemoSite(served, mirror="only" if cloud == "gcs" else "") as site:
        uids = json.dumps([series.uid for series in known])
        done = run([client / "python", "-c", DOWNLOAD, site.url, folder, cloud, uids], tmp_path)
        assert done.returncode == 0, done.stderr
        assert sums(folder) == stored(served, known), done.stderr
        assert site.stats.count("GET") >= len(stored(served, known))
    assert sorted(path.name for path in folder.iterdir()) == sorted(series.uid for series in known)


def test_s5cmd_fetches_from_the_demo_site(client: Path, known: list[RealSeries], served: Store, tmp_path: Path) -> None:
    """`s5cmd cp s3://bucket/uuid/*` lists over several pages and brings every object of a series, byte for byte."""
    series = max(known, key=lambda one: one.files)
    with DemoSite(served, page_size=3) as site:
        source = f"s3://{series.bucket}/{series.uuid}/*"
        options = ["--no-sign-request", "--endpoint-url", site.url]
        done = run([client / "s5cmd", *options, "cp", source, f"{tmp_path}/files/"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert sums(tmp_path / "files") == stored(served, [series])
        assert site.stats.count("LIST") >= series.files // 3


def test_s5cmd_and_medhaul_agree(client: Path, known: list[RealSeries], served: Store, tmp_path: Path) -> None:
    """What medhaul archives of the packaged index is what s5cmd downloads."""
    series = known[:3]
    with DemoSite(served) as site:
        haul = Haul(tmp_path / "haul", "packaged", site.url, select={"series": [one.uid for one in series]})
        haul.all()
        for one in series:
            source = f"s3://{one.bucket}/{one.uuid}/*"
            options = ["--no-sign-request", "--endpoint-url", site.url]
            done = run([client / "s5cmd", *options, "cp", source, f"{tmp_path}/files/"], tmp_path)
            assert done.returncode == 0, done.stderr
    assert sorted(sums(tmp_path / "files").values()) == sorted(member.sha256 for member in haul.members())


def test_s5cmd_exit_code_on_refusal(client: Path, known: list[RealSeries], served: Store, tmp_path: Path) -> None:
    """A refused object is an error to s5cmd, as it is to medhaul: the site's 403 is understood as S3's."""
    series = known[0]
    with DemoSite(served) as site:
        site.faults.set(f"{series.uuid}/*", Fault(kind="forbidden"))
        source = f"s3://{series.bucket}/{series.uuid}/*"
        options = ["--no-sign-request", "--endpoint-url", site.url]
        done = run([client / "s5cmd", *options, "cp", source, f"{tmp_path}/files/"], tmp_path)
    assert done.returncode == 1
    assert "AccessDenied" in done.stderr
