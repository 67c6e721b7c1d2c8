"""The verified path of one body: downloaded, compared with the site's evidence, checked as what it is, and named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pipeline.dicom.check import check_dicom
from pipeline.dicom.choose import choose_chain
from pipeline.dicom.header import DicomHeader
from pipeline.errors import ItemError
from pipeline.model import IsicLocation, RawFile
from pipeline.sources.base import Body, Fetcher, Judged


class Verified(NamedTuple):
    """A file that is whole and belongs to its series or image, and what is odd about it all the same."""

    file: RawFile
    warnings: tuple[str, ...]


def judge_file(body: Body, path: Path, header: DicomHeader | None = None) -> Judged:
    """Check that a file is what its body must be; `header`: its own, where it was checked as DICOM already.

    Raises
    ------
    ItemError
        It is not: see `check_dicom` and `judge_image`.
    """
    item = body.entry.item
    if isinstance(item.location, IsicLocation):
        from pipeline.sources.isic_body import judge_image

        return judge_image(body, path)
    header = header or check_dicom(path, series_uid=item.id)
    return Judged(f"{header.sop_instance_uid}.dcm", choose_chain(header, ".dcm"), (), header.warnings)


def fetch_verified(fetcher: Fetcher, body: Body, path: Path, deadline: float) -> Verified:
    """Bring a body to `path`; what is not whole and right never gets that name.

    Raises
    ------
    ItemError
        Why it is not: what the fetcher says, or the check of the file.
    StorageError, InterruptedRunError
        From the fetcher.
    """
    partial = path.with_suffix(".tmp")
    received = fetcher.fetch(body, partial, deadline)
    try:
        name, chain, found, warnings = judge_file(body, partial, received.header)
    except ItemError as error:
        partial.unlink(missing_ok=True)
        # Without a hash from the site the bytes may have been damaged on the way.
        doubtful = not {"md5", "sha256"} & set(received.evidence)
        raise ItemError(error.reason, f"{body.file.key}: {error}", transient=doubtful) from None
    os.replace(partial, path)
    evidence = received.evidence
    if found:  # hashes say most of the bytes, then what the image says of itself; their number says least
        evidence = (*(word for word in evidence if word != "size"), *found, "size")
    file = RawFile(
        name=name,
        local=str(path),
        size=received.size,
        sha256=received.sha256,
        md5=received.md5,
        key=body.file.key,
        evidence=evidence,
        route=received.route,
        chain=chain,
        etag=received.etag,
    )
    return Verified(file, warnings)
