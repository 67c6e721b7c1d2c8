"""Raw HTTP for the tests of the demo archive site, and the objects they ask for."""

from __future__ import annotations

import http.client
import random
from collections.abc import Callable

from pipeline.demo.site import DemoSite

BUCKET = "idc-open-data-two"
BIG = random.Random(7).randbytes(300_000)


class Got:
    """An answer, read to its end."""

    def __init__(self, answer: http.client.HTTPResponse, body: bytes) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.body = body


Fetch = Callable[..., Got]


def fetch_from(site: DemoSite) -> Fetch:
    """A function that asks a site for a path, each time on a connection of its own."""

    def fetch(path: str, method: str = "GET", **headers: str) -> Got:
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
        try:
            connection.request(method, path, headers={n.replace("_", "-"): v for n, v in headers.items()})
            answer = connection.getresponse()
            return Got(answer, answer.read())
        finally:
            connection.close()

    return fetch
