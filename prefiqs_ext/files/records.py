"""What is known of one face, and how it is written: csv, jsonl, or the field's `path quality`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import IO, Literal, NamedTuple

import numpy as np
import torch

from prefiqs_ext.calibration import Calibration

Status = Literal["ok", "no_face", "unreadable", "not_assessable"]
Format = Literal["csv", "jsonl", "txt"]

FORMATS: tuple[Format, ...] = ("csv", "jsonl", "txt")
ENCODING, ERRORS = "utf-8", "surrogateescape"
"""Names that are not UTF-8 come out as the bytes they are."""


class Record(NamedTuple):
    """One face, or one path without any. Numbers are float32 values; None: there is none.

    status: "ok"; "no_face": the detector found none; "unreadable": not decoded; "not_assessable": not of the preset's
    size, or its embedding has no direction. reason: one line on a status other than ok, not part of a table.
    """

    path: str
    face: int | None
    """0 is the largest face of the photo."""
    status: Status
    quality: float | None = None
    """[0, 1], HIGHER is better."""
    distance: float | None = None
    """[0, 2], LOWER is better."""
    embedding_norm: float | None = None
    x: float | None = None
    """Box in the upright photo, in pixels; x, y: its upper left corner. None for ready crops."""
    y: float | None = None
    w: float | None = None
    h: float | None = None
    detector_score: float | None = None
    reason: str = ""


COLUMNS = Record._fields[:-1]
SCORE = "score"
"""A last column with a calibration: an integer of 0 to 100, HIGHER is better, -1 for a row without a quality."""


class TableRecord(NamedTuple):
    """One record of a table as it stands there."""

    path: str
    quality: float | None
    text: str


def format_header(form: Format, calibration: Calibration | None = None) -> str:
    columns = COLUMNS if calibration is None else (*COLUMNS, SCORE)
    return _csv(columns) if form == "csv" else ""


def select_records(form: Format, rows: Iterable[Record]) -> list[Record]:
    """The rows of one path that this form of table has: all; in txt the largest face alone, if it has a quality."""
    if form == "txt":
        return [row for row in rows if row.face == 0 and row.status == "ok"]
    return list(rows)


def format_record(form: Format, row: Record, calibration: Calibration | None = None) -> str:
    """The row as text, line end included; numbers are the shortest that give the same float32 back. calibration: the
    scale of the column `score`, which csv and jsonl then have."""
    if form == "txt":
        return f"{escape_line_ends(row.path)} {_short(row.quality)}\n"
    scores = {} if calibration is None else {SCORE: _score(row, calibration)}
    if form == "csv":
        return _csv([*(_short(value) if isinstance(value, float) else value for value in row[:-1]), *scores.values()])
    values = (float(_short(value)) if isinstance(value, float) else value for value in row[:-1])
    return json.dumps(dict(zip(COLUMNS, values, strict=True)) | scores) + "\n"


def read_records(form: Format, file: IO[str]) -> Iterator[TableRecord]:
    """The records of a table that this module has written."""
    if form == "csv":
        reader = csv.reader(file)
        next(reader)
        for record in reader:
            quality = record[COLUMNS.index("quality")]
            yield TableRecord(record[0], float(quality) if quality else None, _csv(record))
    for line in file:
        if form == "jsonl":
            values = json.loads(line)
            yield TableRecord(values["path"], values["quality"], line)
        else:
            path, quality = line.rsplit(" ", 1)
            yield TableRecord(path, float(quality), line)


def escape_line_ends(path: str) -> str:
    r"""A path for a file with one path a line: line ends, which a name may have, become \n and \r."""
    return path.replace("\n", "\\n").replace("\r", "\\r")


def _score(row: Record, calibration: Calibration) -> int:
    quality = torch.tensor([torch.nan if row.quality is None else row.quality])
    return int(calibration(quality)[0])


def _short(value: float | None) -> str:
    return str(np.float32(value))


def _csv(values: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(["" if value is None else value for value in values])
    return line.getvalue()
