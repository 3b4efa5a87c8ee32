"""What is known of one face, and how it is written as text: as csv, as jsonl, or as the field's `path score` lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple, get_args

import numpy as np

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.suffixes import get_suffix
from prefiqs_ext.utils.text import format_csv_line, format_csv_path, format_path

Status = Literal["ok", "no_face", "unreadable", "not_assessable"]
STATUSES: tuple[Status, ...] = get_args(Status)
"""What came of a face or a file.

"ok": it has all numbers. "no_face": the detector found none. "unreadable": the file gave no image. "not_assessable": a
ready crop is not of the preset's size, or the embedding has no direction.
"""

Format = Literal["csv", "jsonl", "txt", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
ENCODING, ERRORS = "utf-8", "surrogateescape"
"""How tables are encoded. Names that are not UTF-8 come out as the bytes they are."""


class Record(NamedTuple):
    """One face, or one file without any. Numbers are float32 values; None means that there is none."""

    path: str
    face: int | None
    """0 is the largest face of the photo; None for a file without a face."""
    status: Status
    score: float | None = None
    """HIGHER is better: the number to rank and to act on, as the scorer's `rank_by` says."""
    quality: float | None = None
    """[0, 1], HIGHER is better."""
    distance: float | None = None
    """[0, 2], LOWER is better."""
    embedding_norm: float | None = None
    x: float | None = None
    """Left edge of the face's box in the upright photo, in pixels. A ready crop has no box."""
    y: float | None = None
    """Upper edge."""
    w: float | None = None
    h: float | None = None
    detector_score: float | None = None
    """In [0, 1]; HIGHER means more surely a face."""
    reason: str = ""
    """One line if the status is not "ok". Of the tables, Parquet alone has it."""


COLUMNS = Record._fields[:-1]
"""The columns of csv and the names of jsonl."""


class TableRow(NamedTuple):
    """One record as it stands in a table."""

    path: str
    score: float | None
    text: str
    """The whole record, line end included."""


def choose_format(table: Path | None) -> Format:
    """Chooses the format by the file's suffix; csv for standard output (None).

    Raises:
        InputError: The suffix is none of .csv, .jsonl, .txt and .parquet.
    """
    if table is None:
        return "csv"
    for table_format in FORMATS:
        if get_suffix(table) == f".{table_format}":
            return table_format
    raise InputError(f"expected an output that ends in .csv, .jsonl, .txt or .parquet, got {format_path(str(table))}")


def format_header(table_format: Format) -> str:
    """Formats what stands before the first record of a text: a line with the columns in csv, else nothing."""
    return format_csv_line(COLUMNS) if table_format == "csv" else ""


def select_records(table_format: Format, records: Iterable[Record]) -> list[Record]:
    """Selects those records of one image that a table of this format has.

    txt has the largest face alone, if it has a score; the others have them all.
    """
    if table_format == "txt":
        return [record for record in records if record.face == 0 and record.status == "ok"]
    return list(records)


def format_record(table_format: Format, record: Record) -> str:
    """Formats a record, line end included. Each number has the fewest digits that give the same float32 back.

    In csv, a relative path that a spreadsheet would take for a formula begins with ``./``.
    """
    if table_format == "txt":
        return f"{escape_line_ends(record.path)} {_format_number(record.score)}\n"
    if table_format == "csv":
        numbers = (_format_number(value) if isinstance(value, float) else value for value in record[1:-1])
        return format_csv_line([format_csv_path(record.path), *numbers])
    values = (float(_format_number(value)) if isinstance(value, float) else value for value in record[:-1])
    return json.dumps(dict(zip(COLUMNS, values, strict=True))) + "\n"


def read_rows(table_format: Format, file: IO[str]) -> Iterator[TableRow]:
    """Reads the rows of a table that this module has written."""
    if table_format == "csv":
        reader = csv.reader(file)
        next(reader)
        place = COLUMNS.index("score")
        for cells in reader:
            score = float(cells[place]) if cells[place] else None
            yield TableRow(path=cells[0], score=score, text=format_csv_line(cells))
        return
    for line in file:
        if table_format == "jsonl":
            values = json.loads(line)
            yield TableRow(path=values["path"], score=values["score"], text=line)
        else:
            path, text = line.rsplit(" ", 1)
            yield TableRow(path=path, score=float(text), text=line)


def escape_line_ends(path: str) -> str:
    r"""Escapes line ends, which a name may have, as \n and \r: for a file with one path per line."""
    return path.replace("\n", "\\n").replace("\r", "\\r")


def _format_number(value: float | None) -> str:
    return str(np.float32(value))
