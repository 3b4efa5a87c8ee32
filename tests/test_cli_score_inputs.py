"""`prefiqs score` on archives and Parquet files, in parts, interrupted and resumed."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefiqs_ext.files import Writer
from tests.command import Command
from tests.containers import make_crops, write_parquet, write_tar, write_zip
from tests.onnx_files import write_small_network

_CROPS = make_crops(30, size=32)
_OPTIONS = ("--aligned", "--model", "small.onnx", "--preset", "arcface", "--size", "32", "--workers", "0")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_small_network(Path("small.onnx"), 32)
    os.mkdir("crops")
    for name, data in _CROPS.items():
        Path("crops", name).write_bytes(data)
    write_tar(Path("crops.tar"), _CROPS)
    write_zip(Path("crops.zip"), _CROPS)
    write_parquet(Path("crops.parquet"), list(_CROPS.values()), {"label": range(30)})
    fsspec.filesystem("memory").pipe("/bucket/crops.tar", Path("crops.tar").read_bytes())
    return tmp_path


def _score(command: Command, *arguments: str) -> pa.Table:
    result = command("score", *arguments, *_OPTIONS, "-o", "t.parquet", "--embedding-column")
    assert (result.code, result.out) == (0, ""), result.err
    table = pq.read_table("t.parquet")
    os.remove("t.parquet")
    return table


@pytest.mark.parametrize("source", ["crops.tar", "crops.zip", "crops.parquet", "memory://bucket/crops.tar"])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_rows_are_those_of_the_files(source: str, workers: str, command: Command) -> None:
    expected = _score(command, "crops")
    found = _score(command, source, "--workers", workers, "--batch-size", "7")
    names = [str(row) for row in range(30)] if source.endswith(".parquet") else list(_CROPS)
    assert found["path"].to_pylist() == [f"{source}/{name}" for name in names]
    columns = [name for name in expected.column_names if name != "path"]
    assert "content_hash" in columns
    assert found.select(columns).equals(expected.select(columns))
    if source.endswith(".parquet"):
        assert found["label"].to_pylist() == list(range(30))


def test_parts_are_the_whole(command: Command) -> None:
    for source in ("crops", "crops.tar", "crops.parquet"):
        whole = _score(command, source)
        parts = pa.concat_tables([_score(command, source, "--shard", f"{index}/3") for index in range(3)])
        assert parts.num_rows == 30
        assert parts.sort_by("path").equals(whole.sort_by("path"))
    result = command("score", "crops.tar", *_OPTIONS, "-o", "t.csv", "--shard", "30/31")
    assert (result.code, result.err) == (
        1,
        "Error: expected images in part 30/31 of this run, found none: make fewer parts\n",
    )
    result = command("score", "crops.tar", *_OPTIONS, "--shard", "3/3")
    assert (result.code, "--shard: expected INDEX/COUNT" in result.err) == (2, True)


@pytest.mark.parametrize("source", ["crops.tar", "crops.zip", "crops.parquet"])
def test_an_interrupted_run_goes_on(source: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _score(command, source)
    add, count = Writer.add, 0

    def interrupt(self: Writer, scored: object) -> None:
        nonlocal count
        if (count := count + 1) > 17:
            raise KeyboardInterrupt
        add(self, scored)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "add", interrupt)
        assert command("score", source, *_OPTIONS, "-o", "t.parquet", "--embedding-column").code == 130
    assert os.path.exists("t.parquet.part")
    refused = command("score", "crops", *_OPTIONS, "-o", "t.parquet", "--embedding-column", "--resume")
    assert refused.code == 2
    assert _score(command, source, "--resume").equals(expected)


def test_damage_is_a_row(command: Command) -> None:
    cut = Path("crops.tar").read_bytes()[:20000]
    Path("cut.tar").write_bytes(cut)
    Path("text.parquet").write_text("text")
    write_parquet(Path("mixed.parquet"), [_CROPS["000.png"], None, b"no image"], {"label": [7, 8, 9]})
    table = _score(command, "mixed.parquet", "cut.tar", "text.parquet")
    rows = [(row["path"], row["status"], row["label"]) for row in table.to_pylist()]
    assert rows[:3] == [
        ("mixed.parquet/0", "ok", 7),
        ("mixed.parquet/1", "unreadable", 8),
        ("mixed.parquet/2", "unreadable", 9),
    ]
    assert rows[-2:] == [("cut.tar", "unreadable", None), ("text.parquet", "unreadable", None)]
    assert all(
        reason or status == "ok"
        for reason, status in zip(table["reason"].to_pylist(), table["status"].to_pylist(), strict=True)
    )
    assert np.isfinite(table["score"].drop_null()).all()


def test_an_address_is_no_output_of_one_process(command: Command) -> None:
    result = command("score", "crops.tar", *_OPTIONS, "-o", "s3://faces/t.csv")
    assert result.code == 2
    assert "expected a file to write, got the URL s3://faces/t.csv: copy it there afterwards, or use" in result.err


def test_a_column_that_is_not_there_is_refused_before_the_work(command: Command) -> None:
    result = command("score", "crops.parquet", *_OPTIONS, "-o", "t.parquet", "--image-column", "jpg")
    assert result.code == 2
    assert "expected one column 'jpg' with images, there are: image, label; name one with --image-column" in result.err
    assert not os.path.exists("t.parquet.part")
