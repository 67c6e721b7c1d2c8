"""Which image XMP packets say that they belong to. Pure.

The ISIC Archive writes an image's id as dc:title and plus:ImageSupplierImageID (XMP 1.0, PLUS LDF). Packets may come
from anybody: they are searched with bounded patterns, and never parsed as XML, which may define what expands.
"""

from __future__ import annotations

import re

MAX_PACKET = 1 << 20  # bytes of a packet that are looked at
MAX_SEARCHED = 4 << 20  # of a file: packets may be made so that a MiB takes a fifth of a second
_ID = rb"(ISIC_[0-9]{7,12})(?![0-9])"
_PATTERNS = (
    # As an attribute or a simple element, whatever the prefix of the namespace.
    re.compile(rb"ImageSupplierImageID\s{0,16}=\s{0,16}[\"']\s{0,16}" + _ID),
    re.compile(rb"ImageSupplierImageID[^<>]{0,256}>\s{0,256}" + _ID),
    # A language alternative: title, Alt, li. What stands before the name is looked at last: a pattern that begins with
    # letters is found many times faster.
    re.compile(rb"title(?<=[:<]title)[^<>]{0,256}>\s{0,256}(?:<[^<>]{0,256}>\s{0,256}){0,2}" + _ID),
)


def find_identities(packet: bytes) -> tuple[str, ...]:
    """ISIC ids in the places of a packet that name the image; each once, in order of their places."""
    head = packet[:MAX_PACKET]
    if b"ISIC_" not in head:
        return ()
    found = {match.start(1): match[1].decode("ascii") for pattern in _PATTERNS for match in pattern.finditer(head)}
    return tuple(dict.fromkeys(found[place] for place in sorted(found)))


class Identities:
    """The ids in the packets of one file, each once, in order. What exceeds `MAX_SEARCHED` is not searched."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}
        self._searched = 0
        self.skipped = False

    def search(self, packet: bytes) -> None:
        """Search one packet."""
        head = packet[:MAX_PACKET]
        if self._searched + len(head) > MAX_SEARCHED:
            self.skipped = True
            return
        self._searched += len(head)
        self._found |= dict.fromkeys(find_identities(head))

    def names(self) -> tuple[str, ...]:
        """What was found."""
        return tuple(self._found)

    def warnings(self) -> tuple[str, ...]:
        """Whether packets were left out."""
        return ("more XMP than is searched",) if self.skipped else ()
