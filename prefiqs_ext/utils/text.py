"""Tables, and paths and errors for people to read."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What spreadsheets take for the beginning of a formula. Source: OWASP, CSV Injection."""


def format_csv_path(path: str) -> str:
    """Formats a path for a CSV file: one that looks like a formula gets ``./`` before it, and names the same file."""
    return f"./{path}" if path.startswith(_FORMULA) else path


def format_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Formats a CSV file: one line with the columns' names, then one line per row.

    Names that are not UTF-8, as os.fsdecode gives them, come out as the bytes they are. A text that spreadsheets would
    take for a formula gets an apostrophe before it, as OWASP says; paths go through :func:`format_csv_path` first.
    """
    text = "".join(format_csv_line(map(quote_formula, row)) for row in (columns, *rows))
    return text.encode("utf-8", "surrogateescape")


def format_csv_line(cells: Iterable[object]) -> str:
    """Formats one line of a CSV file, its end included. None becomes an empty cell."""
    line = io.StringIO()
    # csv quotes those line ends alone that it writes itself, and readers take a carriage return for one too.
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def quote_formula(cell: object) -> object:
    """Puts an apostrophe before a text that a spreadsheet would take for a formula; leaves anything else as it is."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


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
