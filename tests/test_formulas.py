"""Nothing in a CSV file is a formula to a spreadsheet, and paths still name their files."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
import torch

from prefiqs_ext.files import Pick, Record, ScoredFile, Writer
from prefiqs_ext.utils.text import format_csv, format_csv_path

_PATHS = [
    "=1+1.jpg",
    "+a.jpg",
    "-b/c.jpg",
    "@SUM(1).jpg",
    "\ttab.jpg",
    "\rreturn.jpg",
    "\nline.jpg",
    '=,".jpg',
    "a=b.jpg",
]
_FORMULA = tuple("=+-@\t\r\n")


def _write(file: Path, pick: Pick | None = None) -> bytes:
    with Writer(file, file.with_suffix(".npy"), settings={}, paths=_PATHS, pick=pick) as results:
        for at, path in enumerate(_PATHS):
            records = [Record(path, 0, "ok", -0.5 - at, 0.5, 1.0, 1e-7, -3.0, 2.0, 3.0, 4.0, 0.1)]
            results.add(ScoredFile(path, records, torch.ones(1, 2)))
        results.finish()
    return file.read_bytes()


@pytest.mark.parametrize("pick", [None, Pick(top=100)])
def test_paths_in_csv_name_their_files_and_are_no_formulas(pick: Pick | None, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(_write(tmp_path / "t.csv", pick).decode(), newline="")))
    for path, row in zip(_PATHS, rows, strict=True):
        assert not row["path"].startswith(_FORMULA)
        assert os.path.normpath(row["path"]) == os.path.normpath(path)
    assert [row["score"] for row in rows] == [str(-0.5 - at) for at in range(len(rows))]  # numbers stay numbers
    assert {row["x"] for row in rows} == {"-3.0"}
    assert rows[-1]["path"] == "a=b.jpg"


def test_other_outputs_have_the_paths_as_they_are(tmp_path: Path) -> None:
    lines = _write(tmp_path / "t.txt").decode().split("\n")
    escaped = [path.replace("\n", "\\n").replace("\r", "\\r") for path in _PATHS]
    assert [line.rsplit(" ", 1)[0] for line in lines[:-1]] == escaped
    assert (tmp_path / "t.paths").read_bytes().decode().split("\n")[:-1] == escaped
    assert b'{"path": "=1+1.jpg", ' in _write(tmp_path / "t.jsonl")


def test_text_cells_get_owasp_s_apostrophe() -> None:
    rows = [["=1+1", -1, -0.5, None, "-1"], ["plain", "a=b", "", "@x", "\tx"]]
    found = list(csv.reader(io.StringIO(format_csv(["+name", "b", "c", "d", "e"], rows).decode(), newline="")))
    assert found == [
        ["'+name", "b", "c", "d", "e"],
        ["'=1+1", "-1", "-0.5", "", "'-1"],
        ["plain", "a=b", "", "'@x", "'\tx"],
    ]


@pytest.mark.parametrize("path", ["/=a.jpg", "./=a.jpg", "a/=b.jpg", "", "a.jpg"])
def test_other_paths_stay(path: str) -> None:
    assert format_csv_path(path) == path
