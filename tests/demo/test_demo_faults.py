"""Each fault of the demo site does on the wire what its name says, and as often as it says."""

from __future__ import annotations

import hashlib
import http.client
import socket
import time
import xml.etree.ElementTree as ET
from collections import Counter

import msgspec
import pytest
from demo_client import BIG, BUCKET, fetch_from

from pipeline.demo.faults import KINDS, PASSING_KINDS, Fault, FaultPlan, Faults, Rule, Sprinkle, choose_sprinkled
from pipeline.demo.site import DemoSite

BIG_PATH = f"/{BUCKET}/two/big.dcm"
NS = "{http://s3.amazonaws.com/doc/2006-03-01/}"


def listed(fetch, prefix: str) -> dict[str, str]:
    """ETags by key, as a listing gives them."""
    tree = ET.fromstring(fetch(f"/{BUCKET}?list-type=2&prefix={prefix}").body)
    return {e.findtext(NS + "Key"): e.findtext(NS + "ETag").strip('"') for e in tree.iter(NS + "Contents")}


@pytest.mark.parametrize(
    ("fault", "status", "word"),
    [
        (Fault(kind="error-500"), 500, "InternalError"),
        (Fault(kind="error-503"), 503, "ServiceUnavailable"),
        (Fault(kind="slow-down", seconds=7), 503, "SlowDown"),
        (Fault(kind="forbidden"), 403, "AccessDenied"),
        (Fault(kind="vanish"), 404, "NoSuchKey"),
    ],
)
def test_refusals(site, fetch, fault, status, word):
    """An error fault gives its status and S3's code on GET and HEAD, and other keys are served as ever."""
    site.faults.set("two/*", fault)
    got = fetch(BIG_PATH)
    assert (got.status, ET.fromstring(got.body).findtext("Code")) == (status, word)
    assert got.headers["Retry-After"] == ("7" if word == "SlowDown" else None)
    assert fetch(BIG_PATH, "HEAD").status == status
    assert fetch(f"/{BUCKET}/one/0.dcm").status == 200
    assert "two/big.dcm" in listed(fetch, "two/")


def test_html_is_a_page_with_status_200(site, fetch):
    """`html` answers 200 with a page that is not the object, as captive portals do."""
    site.faults.set("*", Fault(kind="html"))
    got = fetch(BIG_PATH)
    assert (got.status, got.headers["Content-Type"], got.headers["ETag"]) == (200, "text/html", None)
    assert got.body.startswith(b"<html>")


def test_hangup_gives_no_answer(site, fetch):
    """`hangup` closes the connection before a single byte."""
    site.faults.set("*", Fault(kind="hangup", times=1))
    with pytest.raises(http.client.RemoteDisconnected):
        fetch(BIG_PATH)
    assert fetch(BIG_PATH).body == BIG


def test_truncate_closes_early_under_the_full_length(site, fetch):
    """`truncate` promises the whole length and closes in order at the given place."""
    site.faults.set("*", Fault(kind="truncate", at=0.25))
    with pytest.raises(http.client.IncompleteRead) as caught:
        fetch(BIG_PATH)
    assert caught.value.partial == BIG[:75_000]
    assert caught.value.expected == 225_000


def test_reset_is_a_reset(site):
    """`reset` ends the body by a TCP reset, not by an orderly close."""
    site.faults.set("*", Fault(kind="reset", at=0.5))
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as raw:
        raw.sendall(f"GET {BIG_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: raw.recv(65536), b""))


def test_flip_changes_one_bit(site, fetch):
    """`flip` changes one bit of a body whose length and ETag are right; a range of it likewise."""
    site.faults.set("*", Fault(kind="flip", at=0.5))
    for headers, true in (({}, BIG), ({"Range": "bytes=1000-"}, BIG[1000:])):
        got = fetch(BIG_PATH, **headers)
        different = [a ^ b for a, b in zip(got.body, true, strict=True) if a != b]
        assert len(different) == 1
        assert different[0].bit_count() == 1
        assert got.headers["ETag"] == f'"{hashlib.md5(BIG).hexdigest()}"'


def test_short_is_short_and_says_so(site, fetch):
    """`short` gives fewer bytes under a Content-Length that agrees with them."""
    site.faults.set("*", Fault(kind="short", at=0.5))
    got = fetch(BIG_PATH)
    assert (got.status, got.body) == (200, BIG[: len(BIG) // 2])


def test_stall_holds_and_goes_on(site):
    """`stall` sends up to its place and then nothing for so long; afterwards the rest, all right."""
    site.faults.set("*", Fault(kind="stall", at=0.5, seconds=0.5))
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as raw:
        raw.sendall(f"GET {BIG_PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.partition(b"\r\n\r\n")[2] == BIG
    assert time.monotonic() - start >= 0.5


def test_stall_ends_with_the_site(store):
    """A stall of an hour does not keep the site from closing, nor from noticing that its client has gone."""
    with DemoSite(store) as site:
        site.faults.set("*", Fault(kind="stall", seconds=3600))
        clients = [socket.create_connection(("127.0.0.1", site.port), timeout=10) for _ in range(2)]
        for client in clients:
            client.sendall(f"GET {BIG_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            client.recv(10)
        clients[0].close()
        end = time.monotonic() + 10
        while site.stats.snapshot().open_connections > 1 and time.monotonic() < end:
            time.sleep(0.01)
        assert site.stats.snapshot().open_connections == 1
        start = time.monotonic()
    assert time.monotonic() - start < 5
    clients[1].close()


def test_drip_is_slow_and_whole(site, fetch):
    """`drip` sends the second part at its rate, and all of it."""
    site.faults.set("*", Fault(kind="drip", at=0.9, rate=60_000))
    start = time.monotonic()
    assert fetch(BIG_PATH).body == BIG
    assert time.monotonic() - start > 0.4


def test_delay_answers_late(site, fetch):
    """`delay` answers rightly after so many seconds."""
    site.faults.set("*", Fault(kind="delay", seconds=0.3))
    start = time.monotonic()
    assert fetch(BIG_PATH).body == BIG
    assert time.monotonic() - start >= 0.3


def test_ignored_range_gives_the_whole(site, fetch):
    """`ignore-range` answers a range by 200 and the whole object."""
    site.faults.set("*", Fault(kind="ignore-range"))
    got = fetch(BIG_PATH, Range="bytes=100-")
    assert (got.status, got.body) == (200, BIG)


@pytest.mark.parametrize(("kind", "in_get", "in_list"), [("etag-get", 0, 1), ("etag-list", 1, 0), ("etag-both", 0, 0)])
def test_wrong_etags(site, fetch, kind, in_get, in_list):
    """A wrong ETag stands where the fault says and only there."""
    site.faults.set("two/big.dcm", Fault(kind=kind))
    true = hashlib.md5(BIG).hexdigest()
    assert (fetch(BIG_PATH).headers["ETag"] == f'"{true}"') == bool(in_get)
    assert (listed(fetch, "two/")["two/big.dcm"] == true) == bool(in_list)


def test_hidden_and_extra_objects(site, fetch):
    """`hide` leaves a key out of listings though GET serves it; `extra` lists a second name that GET serves too."""
    site.faults.set("one/1.dcm", Fault(kind="hide"))
    site.faults.set("two/big.dcm", Fault(kind="extra"))
    assert "one/1.dcm" not in listed(fetch, "one/")
    assert fetch(f"/{BUCKET}/one/1.dcm").status == 200
    assert set(listed(fetch, "two/")) == {"two/big-extra.dcm", "two/big.dcm", "two/empty.dcm"}
    assert fetch(f"/{BUCKET}/two/big-extra.dcm").body == BIG
    assert fetch(f"/{BUCKET}/one/2-extra.dcm").status == 404


def test_listings_fail_too(site, fetch):
    """A fault on listings meets the prefix, and no object."""
    site.faults.set("one/", Fault(kind="slow-down", on="list", times=1))
    site.faults.set("two/", Fault(kind="truncate", on="list"))
    assert fetch(f"/{BUCKET}?list-type=2&prefix=one/").status == 503
    assert len(listed(fetch, "one/")) == 3
    with pytest.raises(http.client.IncompleteRead):
        listed(fetch, "two/")
    assert fetch(BIG_PATH).body == BIG


def test_times_count_for_each_key(site, fetch):
    """`times=2` fails the first two requests of each key, and set again it does so again."""
    fault = Fault(kind="error-503", times=2)
    for _ in range(2):
        site.faults.set("one/*", fault)
        for n in (0, 1):
            assert [fetch(f"/{BUCKET}/one/{n}.dcm").status for _ in range(4)] == [503, 503, 200, 200]
    assert site.faults.struck == {"error-503": 8}
    site.faults.clear()
    assert fetch(f"/{BUCKET}/one/2.dcm").status == 200


def test_probability_is_repeatable():
    """A fault by chance strikes at about its rate, the same requests on every run, whatever the order of keys."""
    keys = [f"k{n}" for n in range(400)]
    plan = FaultPlan((Rule("*", Fault(kind="reset", probability=0.3, seed=4)),))
    runs = []
    for order in (keys, keys[::-1]):
        faults = Faults(plan)
        runs.append({key for key in order if faults.strike(key, "object", kinds=frozenset(KINDS))})
    assert runs[0] == runs[1]
    assert 80 < len(runs[0]) < 160


def test_sprinkle_meets_a_fraction_in_every_way():
    """A sprinkle meets about its fraction of keys, uses every kind, and depends on nothing but seed and key."""
    sprinkle = Sprinkle(fraction=0.4, seed=1)
    chosen = {f"k{n}": choose_sprinkled(sprinkle, f"k{n}") for n in range(1000)}
    kinds = Counter(fault.kind for fault in chosen.values() if fault)
    assert 340 < kinds.total() < 460
    assert set(kinds) == set(PASSING_KINDS)
    assert chosen == {key: choose_sprinkled(sprinkle, key) for key in chosen}
    assert any(choose_sprinkled(Sprinkle(fraction=0.4, seed=2), key) != fault for key, fault in chosen.items())


def test_sprinkled_faults_pass(store):
    """Under the default sprinkle of everything, whoever asks twice gets each object right."""
    with DemoSite(store) as site:
        site.faults.sprinkle(1.0, seed=3)
        fetch = fetch_from(site)
        for key, item in store.buckets[BUCKET].objects.items():
            for _ in range(2):
                try:
                    got = fetch(f"/{BUCKET}/{key}")
                except (http.client.HTTPException, ConnectionError):
                    continue
            assert (got.status, got.body) == (200, item.read())
        assert sum(site.faults.struck.values()) > 0


def test_a_plan_is_plain_json(tmp_path, store):
    """A faults file holds for the next request after it is written, and one that is broken changes nothing."""
    file = tmp_path / "faults.json"
    with DemoSite(store, faults_file=file) as site:
        fetch = fetch_from(site)
        assert fetch(BIG_PATH).status == 200
        file.write_text('{"rules": [{"pattern": "two/*", "fault": {"kind": "forbidden"}}]}')
        assert fetch(BIG_PATH).status == 403
        file.write_text('{"rules": [{"pattern": "two/*", "fault": {"kind": "forbid')
        assert fetch(BIG_PATH).status == 403
        file.unlink()
        assert fetch(BIG_PATH).status == 200


def test_unknown_kinds_are_refused():
    """A kind of fault that does not exist is refused where a plan is read."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode('{"rules": [{"pattern": "*", "fault": {"kind": "gremlin"}}]}', type=FaultPlan)
