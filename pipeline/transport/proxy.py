"""Which proxy a request goes through, by the environment variables that every other tool on the machine obeys."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError


class Proxy:
    """An HTTP proxy. Its credentials never show in `repr` or `str`."""

    __slots__ = ("_authorization", "host", "port")

    def __init__(self, host: str, port: int, authorization: str = "") -> None:
        self.host = host
        self.port = port
        self._authorization = authorization

    def __repr__(self) -> str:
        return f"Proxy({self.host!r}, {self.port})"

    @property
    def headers(self) -> dict[str, str]:
        """Headers that the proxy itself wants."""
        return {"Proxy-Authorization": self._authorization} if self._authorization else {}


def choose_proxy(scheme: str, host: str, port: int, environ: Mapping[str, str]) -> Proxy | None:
    """Choose the proxy for an origin, or None: `http_proxy`, `https_proxy`, `no_proxy`, lower case before upper.

    Raises
    ------
    ConfigError
        When the variable does not hold an `http://` proxy; the message never shows its value.
    """
    name = f"{scheme}_proxy"
    value = _lookup(environ, name)
    if not value or matches_no_proxy(host, port, _lookup(environ, "no_proxy")):
        return None
    return parse_proxy(value, name)


def parse_proxy(value: str, name: str) -> Proxy:
    """Read a proxy URL; `name` is its variable, for the message of `ConfigError`."""
    hint = f"set {name} to http://HOST:PORT"
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        port = parts.port or 80
    except ValueError:
        raise ConfigError(f"{name}: not a URL", hint=hint) from None
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"{name}: only proxies of the form http://HOST:PORT can be used", hint=hint)
    authorization = ""
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(credentials.encode()).decode("ascii")
    return Proxy(parts.hostname, port, authorization)


def matches_no_proxy(host: str, port: int, no_proxy: str) -> bool:
    """Say whether `no_proxy` excepts a host: `*`, domains with subdomains, addresses, networks; any with `:port`."""
    host = host.lower().rstrip(".")
    address = None
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
    for entry in no_proxy.lower().replace(",", " ").split():
        if entry == "*":
            return True
        if address is not None and _covers(entry, address):
            return True
        domain, colon, only = entry.rpartition(":")
        if colon and only.isdigit() and "]" not in only and domain.count(":") != 1:
            if int(only) != port:
                continue
            entry_host = domain
        else:
            entry_host = entry
        entry_host = entry_host.strip("[]").lstrip("*").strip(".")
        if entry_host and (host == entry_host or (address is None and host.endswith(f".{entry_host}"))):
            return True
    return False


def _covers(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False


def _lookup(environ: Mapping[str, str], name: str) -> str:
    # HTTP_PROXY in upper case is what a CGI server makes of a client's Proxy header (CVE-2016-5385).
    if name == "http_proxy" and "REQUEST_METHOD" in environ and name not in environ:
        return ""
    return environ.get(name, environ.get(name.upper(), "")).strip()
