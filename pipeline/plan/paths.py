"""Paths in the archive: every value made path-safe without ever merging two names into one. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

_KEPT = re.compile(r"[A-Za-z0-9_=+,@][A-Za-z0-9._=+,@-]{0,199}")
_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-=+,@")
MAX_COMPONENT = 200
CUT_COMPONENT = 150


def safe_component(value: str, separators: str = "") -> str:
    """Make one value usable as (part of) a path component; different values stay different.

    Bytes other than A-Z a-z 0-9 . _ - = + , @ become `%XX`, so do a leading `-` or `.` and the `separators` that join
    it to other values; an empty value becomes `%`, which nothing else does.
    """
    if _KEPT.fullmatch(value) and not any(sign in value for sign in separators):
        return value
    if not value:
        return "%"
    encoded = []
    for position, byte in enumerate(value.encode("utf-8", "surrogatepass")):
        char = chr(byte)
        keep = byte in _BYTES and char not in separators and not (position == 0 and char in "-.")
        encoded.append(char if keep else f"%{byte:02X}")
    return "".join(encoded)


def shorten_component(component: str) -> str:
    """Cut a component that file systems would refuse, and mark it with its SHA-256: `%~` occurs in no other."""
    if len(component) <= MAX_COMPONENT:
        return component
    return component[:CUT_COMPONENT] + "%~" + hashlib.sha256(component.encode("ascii")).hexdigest()[:32]


class FolderTemplate:
    """Fills the folders of a path template (all but its last component) with the values of `fields`, in that order.

    Values that need no encoding, nearly all, take a fast way through: `literal` texts and fields one after another.

    Attributes
    ----------
    plain
        (field index, regular expression): a value for which all of them match whole needs no encoding. Of the syntax
        that Python's `re` and RE2 share.
    literal
        Texts, and indices of fields, that make the path of plain values.
    """

    def __init__(self, template: str, fields: Sequence[str]) -> None:
        self.plain: list[tuple[int, str]] = []
        self.literal: list[str | int] = []
        self._components: list[tuple[list[str], list[tuple[int, str]]]] = []
        for number, component in enumerate(template.rpartition("/")[0].split("/")):
            pieces = re.split(r"\{([^}]*)\}", component)
            texts, names = pieces[0::2], [fields.index(name) for name in pieces[1::2]]
            # Of several values in a component none may contain what separates them.
            separators = "".join(sorted(set("".join(texts[1:-1])))) if len(names) > 1 else ""
            self._components.append((texts, [(index, separators) for index in names]))
            kept = [chr(byte) for byte in sorted(_BYTES) if chr(byte) not in separators]
            rest = re.escape("".join(kept))
            first = re.escape("".join(sign for sign in kept if sign not in ".-"))
            longest = (MAX_COMPONENT - sum(map(len, texts))) // max(1, len(names))
            self.literal.append("/" * bool(number) + texts[0])
            for index, text in zip(names, texts[1:], strict=True):
                self.plain.append((index, f"[{first}][{rest}]{{0,{max(0, longest - 1)}}}"))
                self.literal += [index, text]
        self._plain = [(index, re.compile(pattern).fullmatch) for index, pattern in self.plain]

    def is_plain(self, values: Sequence[str]) -> bool:
        """Whether the path of these values is `literal`."""
        return all(match(values[index]) for index, match in self._plain)

    def __call__(self, values: Sequence[str]) -> str:
        if self.is_plain(values):
            return "".join([piece if isinstance(piece, str) else values[piece] for piece in self.literal])
        parts = []
        for texts, names in self._components:
            text = texts[0]
            for (index, separators), after in zip(names, texts[1:], strict=True):
                text += safe_component(values[index], separators) + after
            parts.append(shorten_component(text))
        return "/".join(parts)


def archive_name(template: str, group: str) -> str:
    """Name of a group's archive, without suffix: plain letters only, since people type it.

    A group that is not such a name itself is marked with its SHA-256, so that groups which differ only in signs or
    case do not share a name; so is a group that looks marked.
    """
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", group).strip("._-").lower()
    if plain != group or not 0 < len(plain) <= 100 or re.search(r"(^|-)[0-9a-f]{8}$", plain):
        digest = hashlib.sha256(group.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        plain = f"{plain[:90]}-{digest}".lstrip("-")
    return template.replace("{group}", plain)
