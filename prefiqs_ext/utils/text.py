"""The lines of a list or of a table of scores, as editors of all systems save them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence

from prefiqs_ext.exceptions import FileFormatError

_MARK = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_LONGEST = 1 << 16


def lines(file: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, without their end, with their numbers from 1.

    A byte order mark and CRLF do no harm. Names that are not UTF-8 are kept as os.fsdecode gives them.

    Raises:
        ValueError: the file is no text: UTF-16, NUL bytes, a line of more than 64 KiB.
        OSError: it cannot be read.
    """
    with open(file, "rb") as stream:
        number = 0
        while line := stream.readline(_LONGEST + 1):
            number += 1
            if number == 1 and line.startswith(_UTF_16):
                raise FileFormatError(
                    f"{format_path(os.fspath(file))}: expected UTF-8 text, got UTF-16; save it as UTF-8"
                )
            if b"\0" in line or len(line) > _LONGEST:
                what = "NUL bytes" if b"\0" in line else f"a line of more than {_LONGEST} bytes"
                raise FileFormatError(f"{format_path(os.fspath(file))}:{number}: expected text, got {what}")
            if number == 1:
                line = line.removeprefix(_MARK)
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if line.strip():
                yield number, os.fsdecode(line)


def format_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table's file; names that are not UTF-8 are kept as os.fsdecode gave them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue().encode("utf-8", "surrogateescape")


def format_path(path: str) -> str:
    """A path for a person to read: one printable line, whatever bytes the name has."""
    return escape_unprintable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def escape_unprintable(text: str) -> str:
    """Text in one line, with nothing in it that moves a terminal's cursor or changes its colour."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
