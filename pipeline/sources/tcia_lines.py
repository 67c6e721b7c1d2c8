"""Lists of UIDs as lines of text: read in little memory, and what is none told with its line."""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Self

from pipeline.dicom.header import is_uid
from pipeline.errors import ConfigError

MAX_LINE = 1 << 20  # characters
FORMS = "a .tcia or .s5cmd manifest, or a CSV, TSV or text file of SeriesInstanceUIDs"
_SHOWN = 9  # lines that are named beside the first


class Lines:
    """The lines of a text file with their number; refuses what no text file holds."""

    def __init__(self, file: BinaryIO, encoding: str, path: Path) -> None:
        self._text = io.TextIOWrapper(file, encoding=encoding, errors="replace", newline=None)
        self._path = path
        self._ahead: deque[str] = deque()
        self.number = 0

    def skip_comments(self) -> None:
        """Pass over what says nothing, up to the next line that says something."""
        while (line := next(iter(self.peek(1)), "")) and not says_something(line):
            self._ahead.popleft()
            self.number += 1

    def peek(self, count: int) -> Sequence[str]:
        """The next lines, which are still to come."""
        while len(self._ahead) < count and (line := self._read(self.number + len(self._ahead) + 1)):
            self._ahead.append(line)
        return self._ahead

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else self._read(self.number + 1)
        if not line:
            self._text.close()
            raise StopIteration
        self.number += 1
        return line

    def _read(self, number: int) -> str:
        try:
            line = self._text.readline(MAX_LINE + 1)
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{self._path}:{number}: {error}", hint=f"name {FORMS}") from None
        if len(line) > MAX_LINE:
            raise ConfigError(f"{self._path}:{number}: more than {MAX_LINE} characters", hint=f"name {FORMS}")
        if "\0" in line:
            hint = f"name {FORMS}, saved as UTF-8"
            raise ConfigError(f"{self._path}:{number}: not text: it has bytes of value 0", hint=hint)
        return line


class UidCheck:
    """Sorts out what is no UID, to tell all of it in one error at the end of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first = ""
        self._hint = ""
        self._lines: list[int] = []
        self._count = 0

    def fits(self, text: str, number: int) -> bool:
        """Say whether a word of a line is a UID, and remember the line if not."""
        why = explain_no_uid(text)
        if not why:
            return True
        if not self._first:
            self._first = f"{self._path}:{number}: {show(text)} is no UID ({why})"
            spoilt = "; a spreadsheet may have spoilt it" if _NUMBER.fullmatch(text) else ""
            self._hint = f"one SeriesInstanceUID: digits and dots, 64 at most{spoilt}"
            return False
        self._count += 1
        if len(self._lines) < _SHOWN:
            self._lines.append(number)
        return False

    def finish(self) -> None:
        """Raise `ConfigError` if anything was no UID."""
        if not self._first:
            return
        more = self._count - len(self._lines)
        said = f"; nor are lines {', '.join(map(str, self._lines))}" if self._count else ""
        raise ConfigError(self._first + said + (f" and {more:,} more" if more else ""), hint=self._hint)


_NUMBER = re.compile(r"[\d.,]+E\+?\d+", re.IGNORECASE)


def explain_no_uid(text: str) -> str:
    """What keeps a text from being the UID of a series; "" for one that may be. Pure."""
    if is_uid(text):
        return "" if "." in text else "no dot in it"
    if _NUMBER.fullmatch(text):
        return "a number, as a spreadsheet makes it"
    if odd := re.search(r"[^0-9.]", text):
        character = odd[0]
        return "letters" if character.isalpha() else "a space within" if character.isspace() else f"{character!r} in it"
    if len(text) > 64:
        return f"{len(text)} characters"
    if ".." in text:
        return "two dots in a row"
    return "it ends with a dot" if text.endswith(".") else "it begins with a dot"


def says_something(line: str) -> bool:
    """Say whether a line is neither blank nor a comment."""
    return bool(line.strip()) and not line.lstrip().startswith("#")


def show(text: str) -> str:
    """The beginning of a text, for messages."""
    return repr(text.strip()[:80])
