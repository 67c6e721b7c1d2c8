"""Base URLs of archive sites' APIs, as people write them. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pipeline.errors import ConfigError


def parse_site_url(url: str, *, site: str, default: str, secret: bool = False) -> str:
    """Check the base URL of a site's API and return it without slashes at the end.

    Parameters
    ----------
    site, default
        What messages call the site, and the URL that they suggest.
    secret
        Whether credentials will be sent there.

    Raises
    ------
    ConfigError
        When it is no http(s) URL, holds credentials, a query or a fragment, or (`secret`) would carry credentials
        unencrypted over a network.
    """
    hint = f"the default is {default}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.query or parts.fragment or re.search(r"[\s\x00-\x1f\\]", url):
        raise ConfigError(f"the base URL of {site} is no plain http(s) URL without credentials and query", hint=hint)
    local = parts.hostname in {"localhost", "::1"} or re.fullmatch(r"127(\.\d+){3}", parts.hostname or "")
    if secret and parts.scheme != "https" and not local:
        raise ConfigError(f"{parts.hostname}: credentials are not sent over plain http", hint="use an https URL")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
