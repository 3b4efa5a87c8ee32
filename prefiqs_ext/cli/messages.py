"""What a command prints: results on standard output, and all else on standard error, so that results can be piped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from prefiqs_ext.utils.partial_file import StandardOutput
from prefiqs_ext.utils.text import escape_unprintable, format_path


def open_closed_descriptors() -> None:
    """Open what the caller has closed of the descriptors 0 to 2, as the null device.

    The next file that is opened would get the number of a closed one. Whatever writes to that number, as C libraries
    do with their complaints, would then write into the file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stderr is None:  # print() and tqdm would take standard output instead
        sys.stderr = os.fdopen(2, "w")


def print_result(text: str) -> None:
    """Print one line of results, or several, to standard output.

    Raises:
        FileAccessError: standard output cannot be written, for example because the disk is full.
    """
    output = StandardOutput()
    output.write(f"{text}\n".encode("utf-8", "surrogateescape"))
    output.flush()


def tell(line: str) -> None:
    """Print one line to standard error, above a bar of progress."""
    tqdm.write(f"prefiqs: {escape_unprintable(line)}", file=sys.stderr)


def describe_counts(counts: Iterable[tuple[str, int]]) -> str:
    """Return `6 ok, 1 no face, 1 unreadable` from statuses and how many rows have each; "nothing" if there are none."""
    from prefiqs_ext.files.records import STATUSES

    known = dict(counts)
    found = [f"{known[status]:,} {status.replace('_', ' ')}" for status in STATUSES if known.get(status)]
    return ", ".join(found) or "nothing"


def describe_number(count: int, noun: str) -> str:
    """Return `1 file` or `8 files`, where "file" is the noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def tell_summary(images: int, counts: Iterable[tuple[str, int]], *outputs: Path | None) -> None:
    """Print the last line of a command that scores: how many images, what became of them, where the results are."""
    places = " and ".join(format_path(str(output)) for output in outputs if output is not None)
    tell(f"{describe_number(images, 'image')}: {describe_counts(counts)}{f'; written to {places}' if places else ''}")
