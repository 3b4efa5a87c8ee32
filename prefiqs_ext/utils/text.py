"""Lines of text files, tables, and paths for people to read."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.utils.os_errors import explain_read_errors

if TYPE_CHECKING:
    import torch

_MARK = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_LONGEST = 1 << 16


def read_lines(file: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Reads the lines of a text file that are not blank, as editors of all systems save them.

    A byte order mark and CRLF do no harm. Names that are not UTF-8 are kept as os.fsdecode gives them.

    Args:
        file: The path of the file.

    Yields:
        Each line's number, from 1, and the line without its end.

    Raises:
        MissingFileError: There is no such file.
        FileAccessError: It cannot be read.
        FileFormatError: It is no text: UTF-16, NUL bytes, or a line of more than 64 KiB.
    """
    name = format_path(os.fspath(file))
    with explain_read_errors(name), open(file, "rb") as stream:
        number = 0
        while line := stream.readline(_LONGEST + 1):
            number += 1
            if number == 1 and line.startswith(_UTF_16):
                raise FileFormatError(f"{name}: expected UTF-8 text, got UTF-16; save it as UTF-8")
            if b"\0" in line or len(line) > _LONGEST:
                what = "NUL bytes" if b"\0" in line else f"a line of more than {_LONGEST} bytes"
                raise FileFormatError(f"{name}:{number}: expected text, got {what}")
            if number == 1:
                line = line.removeprefix(_MARK)
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if line.strip():
                yield number, os.fsdecode(line)


def format_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Formats a CSV file: one line with the columns' names, then one line per row.

    Names that are not UTF-8, as os.fsdecode gives them, come out as the bytes they are.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue().encode("utf-8", "surrogateescape")


def format_path(path: str) -> str:
    """Formats a path for a person to read: one printable line, whatever bytes the name has."""
    return escape_unprintable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def name_dtype(dtype: torch.dtype) -> str:
    """Returns the name of a type: "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def describe_wrong_size(got: Sequence[int], expected: tuple[int, int], *, why: str = "") -> str:
    """Says that an image is no crop of the expected size, width first.

    Args:
        got: The shape of the image, [H, W, ...].
        expected: Height and width.
        why: Who expects that, to stand in brackets.
    """
    height, width = expected
    return f"expected a crop of {width} x {height} pixels{why and f' ({why})'}, got {got[1]} x {got[0]}"


def join_lines(text: object) -> str:
    """Joins the lines of a text, such as that of an error, into one. Any run of white space becomes one blank."""
    return " ".join(str(text).split())


def describe_error(error: BaseException) -> str:
    """Gives the text of an error as one line; the name of its class where it has none, as MemoryError has."""
    return join_lines(error) or type(error).__name__


def format_untrusted(text: object, longest: int = 80) -> str:
    """Formats a text that a file or a server may have made up: one printable line of bounded length.

    Args:
        text: A name in a file, a message of another program, or the like.
        longest: The most characters of the result, 4 or more. A longer text loses its end.
    """
    line = escape_unprintable(join_lines(str(text)[: longest + 1]))
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def escape_unprintable(text: str) -> str:
    """Escapes all that would move a terminal's cursor, change its colour or begin a new line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
