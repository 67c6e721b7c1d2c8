"""Against another S3 server than ours: moto."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from haul import Haul
from real_rows import RealSeries

from pipeline.archive.index import FileLine
from pipeline.demo.bucket import Store
from pipeline.demo.site import DemoSite

pytestmark = pytest.mark.external
ARCHIVE = {"group_by": "run", "name": "real"}


@pytest.fixture(scope="module")
def moto(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a moto server of our own that holds the objects, for everybody to read."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto")
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as out:
        command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", "0"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while (running := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        url = running[1]
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
        )
        for name, bucket in store.buckets.items():
            client.create_bucket(Bucket=name, ACL="public-read")
            for key, item in bucket.objects.items():
                client.put_object(Bucket=name, Key=key, Body=item.read(), ACL="public-read")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def test_same_archive_from_moto_and_from_the_demo_site(
    real: list[RealSeries], store: Store, moto: str, tmp_path: Path
) -> None:
    """Real rows of the packaged index, hauled from moto and from the demo site, make the same archive, bit for bit."""
    select = {"series": [series.uid for series in real]}
    sums = []
    with DemoSite(store) as site:
        for name, url in (("moto", moto), ("demo", site.url)):
            haul = Haul(tmp_path / name, "packaged", url, select=select, archive=ARCHIVE, shards=3)
            sums.append(haul.all())
            lines = [line for line in haul.lines() if isinstance(line, FileLine)]
            assert {line.route for line in lines} == {f"idc:{url}"}
            assert {tuple(line.evidence) for line in lines} == {("md5", "size")}
    assert sums[0] == sums[1]
    found = sorted((member.size, member.sha256) for member in haul.members())
    objects = [item for bucket in store.buckets.values() for item in bucket.objects.values()]
    assert found == sorted((item.size, item.sha256.hex()) for item in objects)
    assert sum(item.size for item in objects) == sum(series.bytes for series in real)


def test_object_that_moto_refuses(real: list[RealSeries], store: Store, moto: str, tmp_path: Path) -> None:
    """An object that anonymous readers may not have fails its series as forbidden, and no other."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=moto, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    refused = real[0]
    key = next(key for key in store.buckets[refused.bucket].keys if key.startswith(f"{refused.uuid}/"))
    client.put_object_acl(Bucket=refused.bucket, Key=key, ACL="private")
    try:
        select = {"series": [series.uid for series in real[:3]]}
        haul = Haul(tmp_path / "haul", "packaged", moto, select=select, archive=ARCHIVE)
        haul.plan()
        assert haul.task().code == 3
        assert haul.failures() == {refused.uid: "forbidden"}
    finally:
        client.put_object_acl(Bucket=refused.bucket, Key=key, ACL="public-read")
