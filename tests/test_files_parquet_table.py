"""The .parquet table: the same numbers as csv, carried columns, picks, and runs that end early and go on."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prefiqs_ext.files import COLUMNS, Pick, Record, ScoredFile, Writer
from prefiqs_ext.files.image import CarriedRow

_PATHS = [f"a.parquet/{index}" for index in range(40)]
_CARRIED = pa.schema([("label", pa.int64()), ("path", pa.string()), ("tags", pa.list_(pa.string()))])


def _scored() -> list[ScoredFile]:
    """One face, two, none; equal scores; rows that carry columns batch by batch, and one that carries nothing."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(40, generator=generator).mul(8).round().tolist()
    columns = [list(range(40)), [f"own {index}" for index in range(40)], [["x"] * (index % 3) for index in range(40)]]
    whole = pa.record_batch(columns, schema=_CARRIED)
    everything = []
    for index, (path, score) in enumerate(zip(_PATHS, scores, strict=True)):
        rows = [Record(path, face, "ok", score, 0.1 * score, 1.5, 12.5, 1.0) for face in range(1 + (index % 5 == 0))]
        embeddings = torch.rand(len(rows), 4, generator=generator)
        if index % 7 == 3:
            rows, embeddings = [Record(path, None, "no_face", reason="none")], torch.full((1, 4), torch.nan)
        carried = None if index == 11 else CarriedRow(whole.slice(index // 16 * 16, 16), index % 16)
        content_hash = None if index == 12 else bytes([index] * 16)
        everything.append(ScoredFile(path, rows, embeddings, content_hash, carried))
    return everything


def _run(table: Path, *, stop: int | None = None, resume: bool = False, pick: Pick | None = None) -> None:
    more = {"embedding_column": True, "carried": _CARRIED} if table.suffix == ".parquet" else {}
    with Writer(table, settings={}, paths=_PATHS, resume=resume, pick=pick, **more) as results:  # type: ignore[arg-type]
        for one in _scored()[results.progress.paths : stop]:
            results.add(one)
        if stop is None:
            results.finish()


def test_columns(tmp_path: Path) -> None:
    _run(tmp_path / "t.parquet")
    assert os.listdir(tmp_path) == ["t.parquet"]
    table = pq.read_table(tmp_path / "t.parquet")
    carried = ["label", "input_path", "tags"]
    assert table.column_names == [*COLUMNS, "reason", "content_hash", "embedding", *carried]
    pairs = [(record, one, row) for one in _scored() for row, record in enumerate(one.records)]
    assert table.num_rows == len(pairs)
    for cells, (record, one, row) in zip(table.to_pylist(), pairs, strict=True):
        own = [None if value is None else np.float32(value) if isinstance(value, float) else value for value in record]
        assert [cells[name] for name in (*COLUMNS, "reason")] == own
        assert cells["content_hash"] == one.content_hash
        embedding = one.embeddings[row].tolist()
        assert cells["embedding"] == (None if record.status != "ok" else embedding)
        index = _PATHS.index(record.path)
        expected = [index, f"own {index}", ["x"] * (index % 3)] if one.carried else [None] * 3
        assert [cells[name] for name in carried] == expected


@pytest.mark.parametrize("pick", [None, Pick(top=5), Pick(top=100), Pick(below=3.0), Pick(below=-1.0)])
def test_picks_are_those_of_csv(pick: Pick | None, tmp_path: Path) -> None:
    for name in ("t.csv", "t.parquet"):
        _run(tmp_path / name, pick=pick)
    with (tmp_path / "t.csv").open(newline="") as file:
        expected = [(row["path"], row["face"], row["score"]) for row in csv.DictReader(file)]
    table = pq.read_table(tmp_path / "t.parquet", columns=["path", "face", "score"]).to_pylist()
    found = [tuple("" if value is None else str(value) for value in row.values()) for row in table]
    assert found == expected
    assert sorted(os.listdir(tmp_path)) == ["t.csv", "t.parquet"]


@pytest.mark.parametrize("stop", [1, 17, 40])
def test_a_run_that_ends_early_goes_on(stop: int, tmp_path: Path) -> None:
    _run(tmp_path / "whole.parquet")
    _run(tmp_path / "t.parquet", stop=stop if stop < 40 else 39)
    assert sorted(os.listdir(tmp_path)) == ["t.parquet.part", "t.parquet.part.state", "whole.parquet"]
    with (tmp_path / "t.parquet.part").open("ab") as part:
        part.write(b"what a kill left behind the last state")
    _run(tmp_path / "t.parquet", resume=True)
    assert sorted(os.listdir(tmp_path)) == ["t.parquet", "whole.parquet"]
    assert pq.read_table(tmp_path / "t.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(b"caf\xe9\n.jpg")
    with Writer(tmp_path / "t.parquet", settings={}, paths=[path]) as results:
        results.add(ScoredFile(path, [Record(path, 0, "ok", 1.0)], torch.ones(1, 4)))
        results.finish()
    assert pq.read_table(tmp_path / "t.parquet")["path"].to_pylist() == ["caf\\xe9\n.jpg"]


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give --embedding-column, no \.npy"):
        Writer(tmp_path / "t.parquet", tmp_path / "e.npy", settings={}, paths=[])
    with pytest.raises(ValueError, match=r"needs an output that ends in \.parquet"):
        Writer(tmp_path / "t.csv", settings={}, paths=[], embedding_column=True)
    assert not os.listdir(tmp_path)
