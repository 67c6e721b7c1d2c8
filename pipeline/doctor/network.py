"""Sites: is there a way to each, the way the transport would go."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import msgspec

from pipeline.doctor.records import CONFIG, SITE, Finding, failure, good, warning
from pipeline.errors import ConfigError
from pipeline.schedulers.slurm_jobs import PROXIES, passed_environment
from pipeline.settings import SourceIdc
from pipeline.transport.exchange import RequestError, ask, parse_target
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.proxy import choose_proxy, parse_proxy
from pipeline.transport.retry import ProxyRefusedError
from pipeline.transport.wire import DeadlineError, Guard, NoAnswerError, StallError

GROUP = "network"
SECONDS = 10.0
BODY = 64 << 10
# A public bucket that both clouds have; one key of it is the cheapest thing to ask for.
BUCKET = "idc-open-data"
PAGE_MARK = b"ListBucketResult"


class Site(NamedTuple):
    """A site to reach. `kind`: an S3 endpoint, one file, or the base URL of anything else."""

    name: str
    url: str
    kind: Literal["s3", "file", "api"] = "api"


class SiteAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How a site answered one request. `status` 0: it did not, and `problem` says at which step and why."""

    route: str
    seconds: float
    status: int = 0
    problem: str = ""
    location: str = ""
    page: bool = False


def list_sites(idc: SourceIdc, more: Sequence[Site] = ()) -> tuple[list[Site], list[Finding]]:
    """List the sites of a config that can be asked, and say of the others why not. `more`: further sites. Pure."""
    if idc.s3_endpoint == "demo":
        text = "the embedded demo site: starts when it is needed, nothing to reach"
        return list(more), [good(GROUP, "IDC", text)]
    sites = [Site("IDC endpoint", idc.s3_endpoint, "s3")]
    if idc.mirror_endpoint:
        sites.append(Site("IDC mirror", idc.mirror_endpoint, "s3"))
    if idc.index.startswith(("http://", "https://")):
        sites.append(Site("IDC index", idc.index, "file"))
    return [*sites, *more], []


def site_request(site: Site) -> str:
    """The URL of one cheap request to a site, without credentials. Pure."""
    parts = urlsplit(site.url)
    host = parts.netloc.rpartition("@")[2]
    if site.kind == "s3":
        path = f"{parts.path.rstrip('/')}/{BUCKET}"
        return urlunsplit((parts.scheme, host, path, "list-type=2&max-keys=1", ""))
    return urlunsplit((parts.scheme, host, parts.path or "/", parts.query, ""))


def probe_sites(
    sites: Sequence[Site], environ: Mapping[str, str] = os.environ, *, seconds: float = SECONDS
) -> list[SiteAnswer]:
    """Ask each site one thing, all at the same time; each has `seconds` for name, connection, TLS and answer."""
    if not sites:
        return []
    with ThreadPoolExecutor(min(8, len(sites))) as threads:
        return list(threads.map(lambda site: probe_site(site, environ, seconds=seconds), sites))


def probe_site(
    site: Site, environ: Mapping[str, str], *, seconds: float = SECONDS, context: ssl.SSLContext | None = None
) -> SiteAnswer:
    """Ask a site one thing, as the transport would: same proxy, same TLS, same headers; redirects are not followed."""
    begun = time.monotonic()
    route = "directly"
    guard = Guard(time.monotonic, threading.Event(), stall=seconds, min_rate=0, deadline_at=begun + seconds)
    try:
        target = parse_target(site_request(site))
        proxy = choose_proxy(target.origin.scheme, target.origin.host, target.origin.port, environ)
        route = f"through the proxy {proxy.host}:{proxy.port}" if proxy else "directly"
        with ConnectionPool(1, environ=environ, connect_timeout=seconds, context=context) as pool:
            exchange, _ = ask(pool, target, {}, guard)
            with exchange:
                status, headers = exchange.head.status, exchange.head.headers
                body = bytearray(BODY if site.kind == "s3" else 0)
                count = 0
                while count < len(body) and (got := exchange.body.readinto(memoryview(body)[count:])):
                    count += got
    except (RequestError, OSError, http.client.HTTPException, ConfigError, ValueError) as error:
        taken = time.monotonic() - begun
        return SiteAnswer(route=route, seconds=taken, problem=explain_error(error, seconds))
    return SiteAnswer(
        route=route, seconds=time.monotonic() - begun, status=status, page=PAGE_MARK in body,
        location=urlsplit(headers.get("location", "")).netloc.rpartition("@")[2] if 300 <= status < 400 else "",
    )  # fmt: skip


def explain_error(error: Exception, seconds: float) -> str:
    """Say at which step a request failed. Pure."""
    text = " ".join(str(error).split())
    if isinstance(error, socket.gaierror):
        return f"its name cannot be looked up (DNS): {error.strerror or text}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or text}" + (f" ({text})" if "verify" in text.lower() else "")
    if isinstance(error, ProxyRefusedError):
        return text
    if isinstance(error, DeadlineError | StallError):
        return f"connected, but no answer within {seconds:g} s"
    if isinstance(error, NoAnswerError):
        return "connected, but the connection was closed without an answer"
    if isinstance(error, http.client.HTTPException):
        return f"what answers is not HTTP: {text}"
    if isinstance(error, TimeoutError):
        return f"no connection: {text or f'nothing within {seconds:g} s'}"
    if isinstance(error, OSError):
        return f"no connection: {error.strerror or text}"
    return text


def classify_site(site: Site, answer: SiteAnswer) -> Finding:
    """Judge how a site answered. Pure."""
    shown = urlsplit(site.url).netloc.rpartition("@")[2]
    route = f"{shown} {answer.route}"
    if not answer.status:
        hint = "does this machine reach the internet? a proxy (https_proxy) or another partition may be needed"
        return failure(GROUP, site.name, f"{route}: {answer.problem}", hint, SITE)
    text = f"{route}: {answer.status} after {answer.seconds:.2f} s"
    status = answer.status
    if status == 407:
        hint = "the proxy wants credentials: ask the site's administrators"
        return failure(GROUP, site.name, f"{text}: refused by the proxy", hint, SITE)
    if status == 511 or (site.kind == "s3" and 200 <= status < 300 and not answer.page):
        hint = "something on the way answers in its place: a log-in page or a filter"
        return failure(GROUP, site.name, f"{text}, but not with a listing as S3 gives", hint, SITE)
    if 200 <= status < 300:
        return good(GROUP, site.name, text)
    if 300 <= status < 400:
        if site.kind == "s3":
            hint = "redirects are not followed: set the endpoint to where it leads, or see what is on the way"
            return failure(GROUP, site.name, f"{text}, a redirect to {answer.location or 'nowhere'}", hint, SITE)
        return good(GROUP, site.name, f"{text}, a redirect to {answer.location or 'another path'}")
    if status == 429 or status >= 500:
        return warning(GROUP, site.name, f"{text}: reachable, but busy or in trouble", "try again later")
    if site.kind == "s3" and status == 404:
        return warning(GROUP, site.name, f"{text}: reachable, but it has no bucket {BUCKET}", "is it a mirror of IDC?")
    if site.kind == "api":
        return good(GROUP, site.name, f"{text}: reachable")
    hint = "check its URL, and whether this machine's address is allowed there"
    return failure(GROUP, site.name, f"{text}: reachable, but refused", hint, SITE)


def classify_proxies(environ: Mapping[str, str], names: Sequence[str], *, slurm: bool) -> list[Finding]:
    """Judge the proxy variables, without ever showing credentials. Pure.

    `names` are the variables that the config passes on to jobs beside the usual ones.
    """
    given = sorted(name for name, value in environ.items() if name.lower() in PROXIES and value.strip())
    if not given:
        return [good("proxy", "proxy", "no proxy variable is set: sites are asked directly")]
    passed = passed_environment(environ, names)
    return [_classify_proxy(name, environ[name], slurm=slurm, passed=name in passed) for name in given]


def _classify_proxy(name: str, value: str, *, slurm: bool, passed: bool) -> Finding:
    kind = name.lower()
    if kind == "no_proxy":
        shown = ", ".join(word.rpartition("@")[2] for word in value.replace(",", " ").split())
    else:
        try:
            proxy = parse_proxy(value.strip(), name)
        except ConfigError as error:
            if kind == "all_proxy":  # the transport does not use it
                return good("proxy", name, "is set, but not used by medhaul")
            return failure("proxy", name, str(error), error.hint, CONFIG)
        shown = f"{proxy.host}:{proxy.port}" + (", with credentials" if proxy.headers else "")
        if kind == "all_proxy":
            shown += "; not used by medhaul"
    if not slurm:
        return good("proxy", name, shown)
    if passed:
        return good("proxy", name, f"{shown}; passed on to jobs")
    hint = "it holds credentials, which would be for all to see: set it in the file that MEDHAUL_ENV names"
    return warning("proxy", name, f"{shown}; not passed on to jobs", hint)
