"""CPU seconds per GB of the transport beside other clients, whole processes, against one local nginx.

CPU seconds (user and system, start-up and child processes included) are compared because walls depend on what else a
machine does. The server is a process of its own and not counted. Needs nginx; s5cmd is measured when given.

    python benchmarks/download.py --nginx /usr/sbin/nginx --s5cmd .venv-s5cmd/bin/s5cmd
    python benchmarks/download.py --small-count 200 --large-count 4 --json result.json
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve()
CONFIG = """
daemon off; pid {prefix}/nginx.pid; error_log {prefix}/error.log; worker_processes 2; {user}
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; etag off;
  open_file_cache max=10000 inactive=600s; default_type binary/octet-stream;
  client_body_temp_path {prefix}/t1; proxy_temp_path {prefix}/t2; fastcgi_temp_path {prefix}/t3;
  uwsgi_temp_path {prefix}/t4; scgi_temp_path {prefix}/t5;
  server {{
    listen 127.0.0.1:{port} reuseport; root {prefix}/www;
    location ~ ^/(small|large)/?$ {{
      if ($args ~ "list-type=2") {{ rewrite ^/(small|large) /$1.xml break; }}
      return 200;
    }}
  }}
}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nginx", default=shutil.which("nginx") or "/usr/sbin/nginx")
    parser.add_argument("--s5cmd", default="", help="path of s5cmd; left out when not given")
    parser.add_argument("--small-count", type=int, default=2000)
    parser.add_argument("--small-bytes", type=int, default=512 << 10)
    parser.add_argument("--large-count", type=int, default=40)
    parser.add_argument("--large-bytes", type=int, default=100_000_000)
    parser.add_argument("--threads", type=int, nargs=2, default=(8, 4), help="for small and for large objects")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", default="", help="comma-separated names of clients")
    parser.add_argument("--dir", default="/dev/shm" if os.path.isdir("/dev/shm") else None, help="where objects lie")  # noqa: PTH112 - one line of a default
    parser.add_argument("--json", default="")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(json.loads(options.child))
        return
    names = [name for name in CLIENTS if options.s5cmd or not name.startswith("s5cmd")]
    if options.only:
        names = [name for name in names if name in options.only.split(",")]
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="medhaul-bench-") as folder:
        prefix = Path(folder)
        sets = [
            make_objects(prefix, "small", options.small_count, options.small_bytes),
            make_objects(prefix, "large", options.large_count, options.large_bytes),
        ]
        with serve(options.nginx, prefix) as base:
            runs = []
            for repeat in range(options.repeats):
                turn = repeat % len(names)  # no client always runs first
                for spec, threads in zip(sets, options.threads, strict=True):
                    order = [*names[turn:], *names[:turn]] if spec["count"] else []
                    runs += [measure(name, spec, base, threads, prefix, options.s5cmd) for name in order]
    rows = summarise(runs)
    print(render(rows))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def make_objects(prefix: Path, name: str, count: int, size: int) -> dict[str, object]:
    """Write `count` different objects of random bytes, and the listing that s5cmd asks for."""
    folder = prefix / "www" / name
    folder.mkdir(parents=True)
    # Block by block: the memory of this process would show up as the peak of its children.
    blocks = [random.Random(number).randbytes(1 << 20) for number in range(8)]
    hashes = []
    for number in range(count):
        digest = hashlib.md5()
        with (folder / f"{number:06}.dcm").open("wb") as file:
            for start in range(0, size, 1 << 20):
                block = (number.to_bytes(8, "big") + blocks[(number + start >> 20) % 8][8:])[: size - start]
                digest.update(block)
                file.write(block)
        hashes.append(digest.hexdigest())
    entry = (
        "<Contents><Key>{:06}.dcm</Key><LastModified>2020-01-01T00:00:00.000Z</LastModified><Size>{}</Size></Contents>"
    )
    listing = "".join(entry.format(number, size) for number in range(count))
    (prefix / "www" / f"{name}.xml").write_text(
        f"<ListBucketResult><Name>{name}</Name><IsTruncated>false</IsTruncated>{listing}</ListBucketResult>",
        encoding="utf-8",
    )
    manifest = prefix / f"{name}.json"
    manifest.write_text(json.dumps(hashes), encoding="utf-8")
    return {"name": name, "count": count, "size": size, "manifest": str(manifest)}


@contextlib.contextmanager
def serve(nginx: str, prefix: Path) -> Iterator[str]:
    """Run nginx on a free port; yields its base URL."""
    if not Path(nginx).exists():
        raise SystemExit(f"{nginx}: not found; install nginx or name it with --nginx")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = prefix / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(CONFIG.format(prefix=prefix, port=port, user=user), encoding="utf-8")
    process = subprocess.Popen([nginx, "-c", str(config), "-p", str(prefix), "-e", str(prefix / "error.log")])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def measure(name: str, spec: dict, base: str, threads: int, prefix: Path, s5cmd: str) -> dict[str, object]:
    """Run one client over one set in a process of its own and check what it left behind."""
    dest = prefix / "out"
    dest.mkdir()
    warm_memory(prefix / "warm", spec["count"] * spec["size"])
    child = {**spec, "client": name, "base": base, "threads": threads, "dest": str(dest), "s5cmd": s5cmd}
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, str(HERE), "--child", json.dumps(child)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - begun
    sizes = [path.stat().st_size for path in dest.iterdir()]
    shutil.rmtree(dest)
    if process.returncode or sizes != [spec["size"]] * spec["count"]:
        raise SystemExit(f"{name}: exit code {process.returncode}, {len(sizes)} files")
    total = spec["count"] * spec["size"]
    return {
        "client": name,
        "set": f"{spec['count']} x {spec['size']}",
        "threads": threads,
        "cpu_s_per_gb": (usage.ru_utime + usage.ru_stime) / total * 1e9,
        "user_s_per_gb": usage.ru_utime / total * 1e9,
        "sys_s_per_gb": usage.ru_stime / total * 1e9,
        "mb_per_s": total / wall / 1e6,
    }


def warm_memory(path: Path, size: int) -> None:
    """Write and remove as many bytes as a run will: memory new to a virtual machine costs whoever is first."""
    block = bytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(-(-size >> 20)):
            file.write(block)
    path.unlink()


def summarise(runs: list[dict]) -> list[dict]:
    """Take the median over the repeats, and the least CPU time: other work on the machine can only add to it."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for run in runs:
        groups.setdefault((run["set"], run["client"]), []).append(run)
    return [
        {
            key: round(statistics.median(run[key] for run in group), 3) if isinstance(value, float) else value
            for key, value in group[0].items()
        }
        | {"least_cpu_s_per_gb": round(min(run["cpu_s_per_gb"] for run in group), 3), "runs": len(group)}
        for group in groups.values()
    ]


def render(rows: list[dict]) -> str:
    """Render a table for people."""
    line = "{:<18} {:<19} {:>7} {:>4} {:>8} {:>6} {:>5} {:>5} {:>5}"
    out = [line.format("objects", "client", "threads", "runs", "CPU-s/GB", "median", "user", "sys", "MB/s")]
    numbers = ("least_cpu_s_per_gb", "cpu_s_per_gb", "user_s_per_gb", "sys_s_per_gb")
    out += [
        line.format(
            row["set"],
            row["client"],
            row["threads"],
            row["runs"],
            *(f"{row[key]:.2f}" for key in numbers),
            f"{row['mb_per_s']:.0f}",
        )
        for row in rows
    ]
    return "\n".join(out)


def run_child(spec: dict) -> None:
    """Download a whole set with one client: what is measured."""
    CLIENTS[spec["client"]](spec)


def run_medhaul(spec: dict) -> None:
    """Download with the transport: MD5 checked against the listing and SHA-256 recorded, both in flight."""
    sys.path.insert(0, str(HERE.parent.parent))
    from pipeline.transport.client import Transport
    from pipeline.transport.pool import ConnectionPool

    transport = Transport(ConnectionPool(spec["threads"], environ={}))

    def one(number: int, md5: str) -> None:
        url = f"{spec['base']}/{spec['name']}/{number:06}.dcm"
        got = transport.download(url, Path(spec["dest"], f"{number:06}.dcm"), size=spec["size"], etag=md5)
        assert got.evidence == ("md5", "size")

    for_all(spec, one)


def run_http_client(spec: dict) -> None:
    """Download with http.client and nothing else, MD5 checked and SHA-256 computed in flight."""
    local = threading.local()
    host = spec["base"].removeprefix("http://")

    def one(number: int, md5: str) -> None:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(host)
            local.buffer = memoryview(bytearray(512 << 10))
        local.connection.request("GET", f"/{spec['name']}/{number:06}.dcm")
        response = local.connection.getresponse()
        hashes = hashlib.md5(), hashlib.sha256()
        with Path(spec["dest"], f"{number:06}.dcm").open("wb", buffering=0) as file:
            while count := response.readinto(local.buffer):
                for digest in hashes:
                    digest.update(local.buffer[:count])
                file.write(local.buffer[:count])
        assert hashes[0].hexdigest() == md5

    for_all(spec, one)


def run_requests(spec: dict) -> None:
    """Download with requests, a session per thread, MD5 checked in flight."""
    import requests

    local = threading.local()

    def one(number: int, md5: str) -> None:
        if not hasattr(local, "session"):
            local.session = requests.Session()
            local.session.trust_env = False
        digest = hashlib.md5()
        url = f"{spec['base']}/{spec['name']}/{number:06}.dcm"
        with (
            local.session.get(url, stream=True) as response,
            Path(spec["dest"], f"{number:06}.dcm").open("wb", buffering=0) as file,
        ):
            for chunk in response.iter_content(256 << 10):
                digest.update(chunk)
                file.write(chunk)
        assert digest.hexdigest() == md5

    for_all(spec, one)


def run_s5cmd(spec: dict) -> None:
    """Download with s5cmd, nothing checked."""
    source = f"s3://{spec['name']}/*"
    command = [spec["s5cmd"], "--no-sign-request", "--endpoint-url", spec["base"], "--numworkers", "32"]
    environ = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    subprocess.run([*command, "cp", source, spec["dest"] + "/"], check=True, stdout=subprocess.DEVNULL, env=environ)


def run_s5cmd_md5(spec: dict) -> None:
    """Download with s5cmd, then read every file again and check its MD5: what knowing the bytes are right costs."""
    run_s5cmd(spec)

    def one(number: int, md5: str) -> None:
        with Path(spec["dest"], f"{number:06}.dcm").open("rb", buffering=0) as file:
            assert hashlib.file_digest(file, "md5").hexdigest() == md5

    for_all(spec, one)


def for_all(spec: dict, one: Callable[[int, str], None]) -> None:
    """Call `one` for each object in as many threads as the spec says; any exception ends the process."""
    hashes = json.loads(Path(spec["manifest"]).read_text(encoding="utf-8"))
    with ThreadPoolExecutor(spec["threads"]) as threads:
        for _ in threads.map(one, range(len(hashes)), hashes):
            pass


CLIENTS: dict[str, Callable[[dict], None]] = {
    "medhaul": run_medhaul,
    "http.client+sha256": run_http_client,
    "requests": run_requests,
    "s5cmd": run_s5cmd,
    "s5cmd+md5": run_s5cmd_md5,
}

if __name__ == "__main__":
    main()
