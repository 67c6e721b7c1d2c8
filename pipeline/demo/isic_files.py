"""Files of the demo ISIC Archive: the public bucket's, and those behind signed URLs."""

from __future__ import annotations

import re

import msgspec

from pipeline.demo import s3, wire
from pipeline.demo.bucket import StoredObject
from pipeline.demo.faults import Fault
from pipeline.demo.isic_answer import answer_page, make_reply, plan_refusal
from pipeline.demo.isic_bodies import CONTENT_TYPES
from pipeline.demo.isic_faults import FILE_STATUSES
from pipeline.demo.isic_records import IsicImage
from pipeline.demo.isic_view import BUCKET, CONTENT, IsicView, name_folder
from pipeline.demo.site import plan_object, plan_status_fault
from pipeline.demo.wire import Reply, Request

_NAME = re.compile(
    r"(?:images|(?P<folder>[0-9a-f-]{36}))/(?P<id>ISIC_[0-9]{7})\.(?P<kind>jpg|png|tif)"
    r"|(?:thumbnails|(?P<small_folder>[0-9a-f-]{36}))/(?P<small>ISIC_[0-9]{7})_thumbnail\.jpg",
    re.ASCII,
)
_MORE = 1000  # bytes
_EXPIRED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Access denied</Message></Error>'
)


class FoundFile(msgspec.Struct, frozen=True):
    """The file that a request names; `fault_key` is what faults know it by."""

    image: IsicImage
    thumbnail: bool
    fault_key: str


def find_file(view: IsicView, target: s3.Target) -> FoundFile | None:
    """The file of a request, or None where there is none."""
    match = _NAME.fullmatch(target.key)
    if match is None:
        return None
    isic_id, small = match["id"] or match["small"], match["id"] is None
    place = view.archive.find(isic_id)
    if place is None or place >= view.published or place in view.withdrawn:
        return None
    image = view.archive.images[place]
    folder = match["folder"] or match["small_folder"]
    wanted = name_folder(image) if target.bucket == CONTENT else None
    if (
        folder != wanted
        or (not small and match["kind"] != image.kind)
        or (target.bucket == BUCKET and not image.public)
    ):
        return None
    name = target.key if target.bucket == BUCKET else f"{CONTENT}/{target.key.partition('/')[2]}"
    return FoundFile(image, small, name)


def refuse_file(fault: Fault, target: s3.Target, *, head_only: bool) -> Reply | None:
    """The answer of a fault that needs no file; None for the others. Raises `S3Error`."""
    if fault.kind in FILE_STATUSES:
        return make_reply(plan_refusal(fault) or answer_page(503), None, zipped=False)
    if fault.kind == "expired":
        return refuse_signature(head_only=head_only)
    if fault.kind == "vanish":
        raise s3.S3Error("NoSuchKey", Key=target.key)
    return plan_status_fault(fault, head_only=head_only)


def refuse_signature(*, head_only: bool) -> Reply:
    """What a signed URL answers that is not good, or not any more."""
    return wire.make_reply(
        403, ("Content-Type: text/xml", "X-Cache: Error from cloudfront"), _EXPIRED, head_only=head_only
    )


def plan_file(request: Request, found: FoundFile, item: StoredObject, fault: Fault | None) -> Reply:
    """The answer to GET or HEAD of a file: all of it, a range, or that it has not changed. Raises `S3Error`. Pure.

    Some objects were written anew without saying what they are: those whose number ends in 7.
    """
    kind = fault.kind if fault is not None else ""
    if kind == "long":
        item = msgspec.structs.replace(item, data=item.read() + bytes(_MORE), size=item.size + _MORE)
    reply = plan_object(request, item, fault)
    if kind == "octet-stream" or (found.image.number % 10 == 7 and not found.thumbnail):
        described: tuple[str, ...] = ("Content-Type: binary/octet-stream",)
    else:
        content_type = CONTENT_TYPES["jpg" if found.thumbnail else found.image.kind]
        described = (f"Content-Type: {content_type}", "Content-Disposition: attachment")
    headers = tuple(header for header in reply.headers if not header.startswith("Content-Type:"))
    return msgspec.structs.replace(reply, headers=(*headers, *described) if reply.status != 304 else headers)
