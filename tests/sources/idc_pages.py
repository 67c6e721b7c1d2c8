"""Listings as an S3 site writes them."""

from __future__ import annotations

from urllib.parse import quote_plus
from xml.sax.saxutils import escape

from pipeline.model import RemoteFile

NS = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
ETAG = "d41d8cd98f00b204e9800998ecf8427e"


def page(
    files: list[tuple[str, str]],
    *,
    token: str = "",
    truncated: str | None = None,
    namespace: str = NS,
    encode: bool = True,
    more: str = "",
) -> bytes:
    """A page of ListObjectsV2 as the site would write it."""
    truncated = ("true" if token else "false") if truncated is None else truncated
    rows = "".join(
        f"<Contents><Key>{escape(quote_plus(key) if encode else key)}</Key>"
        f'<Size>{size}</Size><ETag>"{ETAG}"</ETag></Contents>'
        for key, size in files
    )
    encoding = "<EncodingType>url</EncodingType>" if encode else ""
    flag = f"<IsTruncated>{truncated}</IsTruncated>" if truncated else ""
    next_ = f"<NextContinuationToken>{escape(token)}</NextContinuationToken>" if token else ""
    text = f"<ListBucketResult{namespace}>{encoding}{flag}{next_}{rows}{more}</ListBucketResult>"
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode()


def files_of(*sizes: int, uuid: str = "uuid-00000") -> list[RemoteFile]:
    """A listing."""
    return [RemoteFile(f"{uuid}/{n}.dcm", size, ETAG) for n, size in enumerate(sizes)]
