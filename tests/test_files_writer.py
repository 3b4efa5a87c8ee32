"""Tables: what stands in them, and runs that end early and go on."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from prefiqs_ext.exceptions import FileAccessError
from prefiqs_ext.files import COLUMNS, Pick, Record, ScoredFile, Writer
from prefiqs_ext.files.records import choose_format, read_rows
from prefiqs_ext.utils.atomic_write import atomic_write

_PATHS = ["a.jpg", 'b "x", y.jpg', "c\nd.jpg", os.fsdecode(b"caf\xe9.jpg"), "e f.jpg", "g.jpg"]
_SETTINGS = {"sparsity": 0.4}


def _scored() -> list[ScoredFile]:
    """Two faces, no face, and odd numbers."""
    generator = torch.Generator().manual_seed(1)
    qualities = torch.rand(6, generator=generator).tolist()
    everything = []
    for path, quality in zip(_PATHS, qualities, strict=True):
        rows = [Record(path, 0, "ok", 10 * quality, quality, 2 - 2 * quality, 12.5, 1.0, 2.0, 3.0, 4.0, 0.1)]
        if path == "a.jpg":
            rows.append(Record(path, 1, "ok", 2.5, 0.25, 1.5, 1e-7))
        if path == "e f.jpg":
            rows = [Record(path, None, "no_face", reason="none")]
        embeddings = torch.rand(len(rows), 4, generator=generator)
        everything.append(ScoredFile(path, rows, embeddings))
    return everything


def _run(
    table: Path, scored: Iterable[ScoredFile], finish: bool = True, resume: bool = False, **options: object
) -> None:
    paths = [one.path for one in _scored()]
    everything = {"settings": _SETTINGS, "paths": paths, "resume": resume} | options
    with Writer(table, table.with_suffix(".npy"), **everything) as results:  # type: ignore[arg-type]
        for one in list(scored)[results.progress.paths :]:
            results.add(one)
        if finish:
            results.finish()


def _contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_csv(tmp_path: Path) -> None:
    _run(tmp_path / "t.csv", _scored())
    assert sorted(_contents(tmp_path)) == ["t.csv", "t.npy", "t.paths"]
    with (tmp_path / "t.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        records = list(csv.DictReader(file))
    rows = [row for one in _scored() for row in one.records]
    assert tuple(records[0]) == COLUMNS
    assert [record["path"] for record in records] == [row.path for row in rows]
    assert [np.float32(record["quality"] or "nan") for record in records] == pytest.approx(
        [np.float32(row.quality if row.quality is not None else "nan") for row in rows], rel=0, abs=0, nan_ok=True
    )
    assert records[5] == dict.fromkeys(COLUMNS, "") | {"path": "e f.jpg", "status": "no_face"}
    assert records[1]["embedding_norm"] == "1e-07"


def test_jsonl(tmp_path: Path) -> None:
    _run(tmp_path / "t.jsonl", _scored())
    records = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    rows = [row for one in _scored() for row in one.records]
    assert [tuple(record) for record in records] == [COLUMNS] * len(rows)
    for record, row in zip(records, rows, strict=True):
        for name, value in zip(COLUMNS, row[:-1], strict=True):
            same = np.float32(record[name]) == np.float32(value) if isinstance(value, float) else record[name] == value
            assert same, (name, record[name], value)


def test_txt_has_the_largest_face_and_one_line_a_path(tmp_path: Path) -> None:
    _run(tmp_path / "t.txt", _scored())
    lines = (tmp_path / "t.txt").read_bytes().split(b"\n")
    assert [line.rsplit(b" ", 1)[0] for line in lines[:-1]] == [
        b"a.jpg", b'b "x", y.jpg', b"c\\nd.jpg", b"caf\xe9.jpg", b"g.jpg",
    ]  # fmt: skip
    assert [np.float32(line.rsplit(b" ", 1)[1].decode()) for line in lines[:-1]] == [
        np.float32(one.records[0].score) for one in _scored() if one.records[0].score is not None
    ]


@pytest.mark.parametrize("name", ["t.csv", "t.txt"])
def test_embeddings_are_numpy_s_own_and_in_the_order_of_rows(name: str, tmp_path: Path) -> None:
    _run(tmp_path / name, _scored())
    array = np.load(tmp_path / "t.npy")
    txt = name == "t.txt"
    scored = [one for one in _scored() if not (txt and one.records[0].status == "no_face")]
    expected = torch.cat([one.embeddings[:1] if txt else one.embeddings for one in scored]).numpy()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, expected)
    paths = (tmp_path / "t.paths").read_bytes().splitlines()
    assert len(paths) == len(array)
    assert paths[-1] == b"g.jpg"
    np.save(tmp_path / "numpy.npy", expected)
    assert (tmp_path / "numpy.npy").read_bytes() == (tmp_path / "t.npy").read_bytes()


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.txt"])
@pytest.mark.parametrize("stop", range(7))
def test_a_run_that_goes_on_gives_the_same_bytes(name: str, stop: int, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    whole.mkdir()
    halves.mkdir()
    _run(whole / name, _scored())
    _run(halves / name, _scored()[:stop], finish=False)
    for part in halves.glob("*.part"):
        with part.open("ab") as file:
            file.write(b"bytes after the last state, as kill -9 leaves them")
    _run(halves / name, _scored(), resume=True)
    assert _contents(halves) == _contents(whole)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.txt"])
@pytest.mark.parametrize("pick", [Pick(top=2), Pick(top=100), Pick(below=5.0), Pick(below=-1.0)])
def test_picks(name: str, pick: Pick, tmp_path: Path) -> None:
    _run(tmp_path / name, _scored()[:3], finish=False, pick=pick)
    _run(tmp_path / name, _scored(), resume=True, pick=pick)
    assert sorted(_contents(tmp_path)) == sorted([name, "t.npy", "t.paths"])
    rows = [(row, e) for one in _scored() for row, e in zip(one.records, one.embeddings, strict=True)]
    rows = [(row, e) for row, e in rows if row.score is not None and (name != "t.txt" or row.face == 0)]
    if pick.top is not None:
        rows = sorted(rows, key=lambda entry: -(entry[0].score or 0))[: pick.top]
    else:
        rows = [entry for entry in rows if (entry[0].score or 0) < (pick.below or 0)]
    np.testing.assert_array_equal(
        np.load(tmp_path / "t.npy"), torch.stack([e for _, e in rows]).numpy() if rows else np.empty((0, 4))
    )
    with (tmp_path / name).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        records = list(read_rows(choose_format(tmp_path / name), file))
    assert [np.float32(record.score or "nan") for record in records] == [np.float32(r.score or 0) for r, _ in rows]
    assert len((tmp_path / "t.paths").read_bytes().splitlines()) == len(rows)


def test_an_earlier_run_is_not_lost_by_beginning_anew(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    _run(table, _scored()[:3], finish=False)
    before = _contents(tmp_path)
    with pytest.raises(ValueError, match=r"t\.csv\.part has 3 finished paths of an earlier run: go on with --resume"):
        _run(table, _scored())
    with pytest.raises(ValueError, match=r"made with sparsity 0\.4, not 0\.5"):
        _run(table, _scored(), resume=True, settings={"sparsity": 0.5})
    with pytest.raises(ValueError, match="made from other images than this run's first 3"):
        _run(table, _scored(), resume=True, paths=_PATHS[1:])
    assert _contents(tmp_path) == before
    with (tmp_path / "t.npy.part").open("r+b") as file:
        file.truncate(130)
    with pytest.raises(ValueError, match="has lost its end: delete"):
        _run(table, _scored(), resume=True)


def test_a_failure_before_the_first_row_leaves_nothing(tmp_path: Path) -> None:
    _run(tmp_path / "t.csv", [], finish=False)
    assert _contents(tmp_path) == {}


def test_two_runs_at_a_time(tmp_path: Path) -> None:
    with Writer(tmp_path / "t.csv", settings={}, paths=_PATHS) as results:
        results.add(_scored()[0])
        with pytest.raises(FileAccessError, match=r"t\.csv\.part is being written by another run"):
            Writer(tmp_path / "t.csv", settings={}, paths=_PATHS, resume=True)
        results.finish()
    assert (tmp_path / "t.csv").read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("table", "embeddings", "message"),
    [
        ("t.xlsx", None, r"ends in \.csv, \.jsonl, \.txt or \.parquet, got .*t\.xlsx"),
        ("none/t.csv", None, r"cannot write .*none/t\.csv\.part \(No such file or directory\); name another place$"),
        ("file/t.csv", None, r"cannot write .*file/t\.csv\.part \(Not a directory\)"),
        ("folder.csv", None, r"cannot write .*folder\.csv\.part \(it is a folder\)"),
        ("t.csv", "t.bin", r"expected a \.npy file"),
        ("t.csv", "none/t.npy", r"cannot write .*none/t\.npy\.part"),
    ],
)
def test_what_cannot_be_written(table: str, embeddings: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        Writer(tmp_path / table, tmp_path / embeddings if embeddings else None, settings={}, paths=[])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.csv"]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is brought to the disk, and what gets which name, in order."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def replaced(part: str | Path, path: str | Path) -> None:
        seen.append(f"{Path(part).name} > {Path(path).name}")
        replace(part, path)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    return seen


@pytest.mark.parametrize(
    ("pick", "step"), [*((None, step) for step in range(4)), *((Pick(top=2), step) for step in range(7))]
)
def test_a_run_that_ends_while_files_get_their_names(
    pick: Pick | None, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each of three names, before the state goes and, after a pick, before each of three parts goes."""
    for folder in ("whole", "ended"):
        (tmp_path / folder).mkdir()
    _run(tmp_path / "whole" / "t.csv", _scored(), pick=pick)
    left = step

    def end(path: str | Path) -> None:
        nonlocal left
        if not str(path).endswith(".state.new"):  # the last save
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

    replace, unlink = os.replace, Path.unlink
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda part, path: (end(part), replace(part, path)))
        patch.setattr(Path, "unlink", lambda self, **options: (end(self), unlink(self, **options)))
        with pytest.raises(KeyboardInterrupt):
            _run(tmp_path / "ended" / "t.csv", _scored(), pick=pick)
    _run(tmp_path / "ended" / "t.csv", _scored(), resume=True, pick=pick)
    assert _contents(tmp_path / "ended") == _contents(tmp_path / "whole")


def test_a_power_cut_finds_no_name_without_its_bytes(tmp_path: Path, events: list[str]) -> None:
    folder = tmp_path.name
    with Writer(tmp_path / "t.csv", tmp_path / "t.npy", settings={}, paths=_PATHS) as results:
        results.add(_scored()[0])
        results.save()
        state = "t.csv.part.state"
        parts, new = ["t.csv.part", "t.npy.part", "t.paths.part"], [f"{state}.new", f"{state}.new > {state}", folder]
        assert events == [event for part in parts for event in (part, folder)] + new
        saved = parts + new  # the parts have their names now
        events.clear()
        results.finish()
    named = [[f"t.{kind}.part", f"t.{kind}.part > t.{kind}", folder] for kind in ("npy", "paths", "csv")]
    assert events == [*saved, *named[0], *named[1], *named[2]]
    events.clear()
    with atomic_write(str(tmp_path / "a.json")) as file:
        file.write(b"{}")
    assert events == ["a.json.part", "a.json.part > a.json", folder]


def test_a_slow_disk_is_saved_to_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.05))
    with Writer(tmp_path / "t.csv", settings={}, paths=_PATHS) as results:
        results.add(_scored()[0])
        results.save()  # three times fsync
        assert results._next_save - time.monotonic() > 19 * 3 * 0.05
        results.finish()
