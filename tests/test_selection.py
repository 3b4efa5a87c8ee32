"""`prefiqs select` against the same rules in plain Python, and what it refuses."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefiqs_ext.files.paths import find_paths
from prefiqs_ext.files.records import Record, format_header, format_record
from prefiqs_ext.selection import choose
from tests.command import Command

pa = pytest.importorskip("pyarrow", reason="the extra [parquet]")
pytest.importorskip("duckdb", reason="the extra [parquet]")
pc = pytest.importorskip("pyarrow.compute", reason="the extra [parquet]")
pq = pytest.importorskip("pyarrow.parquet")

Row = dict[str, Any]
_FLOATS = ("score", "quality", "distance", "embedding_norm", "x", "y", "w", "h", "detector_score")
_HOSTILE = 'a"; drop table faces; --'
_NAMES = ("1.jpg", "né 2.jpg", "a\nb.jpg", "q'\".jpg", "=1+1.jpg", "x,y.jpg")
_PEOPLE = ("ann", "=bob", "cécile", "d\nd", "e'e\"", "tar", "../up", "f")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _make_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows of few scores, contents and directions, so that there are ties, duplicates and near duplicates."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(12, 5))
    rows: list[Row] = []
    for index in range(count):
        who = _PEOPLE[random.integers(len(_PEOPLE))]
        path = f"data {seed}/{who}/{index % 7}/../{who}/{index}{_NAMES[index % len(_NAMES)]}"
        # A content decides the score, as in a table of one run.
        content, face = int(random.integers(count)), int(random.integers(2))
        row: Row = {"path": path, "face": face, "status": "ok", **dict.fromkeys(_FLOATS)}
        if index % 11 == 10:
            row |= {"face": None, "status": "no_face"}
        else:
            row |= dict.fromkeys(_FLOATS, np.float32((content * 7 + face) % 23 / 10).item())
        embedding = (directions[content % 12] + 0.2 * random.normal(size=5)).astype(np.float32).tolist()
        known = None if index % 13 == 5 else hashlib.blake2b(b"%d" % content, digest_size=16).digest()
        row |= {"reason": "", "content_hash": known}
        row |= {"embedding": embedding, _HOSTILE: ("x", None, "", "y'", "=z")[index % 5], "label": index % 4}
        rows.append(row)
    return rows


def _write_parquet(file: str, rows: Iterable[Row], without: tuple[str, ...] = ()) -> str:
    kinds = {"path": pa.string(), "face": pa.int32(), "status": pa.string(), **dict.fromkeys(_FLOATS, pa.float32())}
    kinds |= {"reason": pa.string(), "content_hash": pa.binary(16), "embedding": pa.list_(pa.float32(), 5)}
    kinds |= {_HOSTILE: pa.string(), "label": pa.int64()}
    schema = pa.schema([(name, kind) for name, kind in kinds.items() if name not in without])
    pq.write_table(pa.Table.from_pylist(list(rows), schema), file, row_group_size=37)
    return file


def _write_csv(file: str, rows: Iterable[Row]) -> str:
    """As `prefiqs score` writes it."""
    records = (Record(**{name: row[name] for name in Record._fields}) for row in rows)
    text = format_header("csv") + "".join(format_record("csv", record) for record in records)
    Path(file).write_bytes(text.encode("utf-8", "surrogateescape"))
    return file


def _find_folder(row: Row) -> str:
    return str(row["path"].split("/")[-2])


def _choose(
    rows: list[Row],
    best: int,
    group: Callable[[Row], object],
    *,
    least: float = -np.inf,
    near: float | None = None,
    content: Callable[[Row], object] = lambda row: row["content_hash"] or row["path"],
) -> list[int]:
    """The rule in plain Python: which rows are kept."""
    first: dict[object, int] = {}
    for index in sorted((i for i, row in enumerate(rows) if row["status"] == "ok"), key=lambda i: (rows[i]["path"], i)):
        first.setdefault((content(rows[index]), rows[index]["face"]), index)
    groups: dict[object, list[int]] = {}
    for index in sorted(first.values(), key=lambda i: (-rows[i]["score"], rows[i]["path"], rows[i]["face"], i)):
        who = group(rows[index])
        kept = groups.setdefault(who, [])
        if who in (None, "") or np.float32(rows[index]["score"]) < np.float32(least) or len(kept) == best:
            continue
        vectors = [np.asarray(rows[i]["embedding"], np.float64) for i in (*kept, index)]
        cosines = [v @ vectors[-1] / np.linalg.norm(v) / np.linalg.norm(vectors[-1]) for v in vectors[:-1]]
        if near is None or max(cosines, default=-2) < near:
            kept.append(index)
    return sorted(index for kept in groups.values() for index in kept)


def _read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.parametrize(
    ("per", "best", "least", "near"),
    [
        ("person", 1, -np.inf, None),
        ("person", 3, 0.7, 0.95),
        (_HOSTILE, 3, 0.7, None),
        (_HOSTILE, 7, -np.inf, 0.95),
        ("label", 10**9, 0.7, None),
        ("label", 10**9, -np.inf, 0.95),
    ],
)
def test_as_in_plain_python(command: Command, per: str, best: int, least: float, near: float | None) -> None:
    rows = _make_rows(211) + _make_rows(90, seed=1)
    rows += [{**row, "face": face} for row in rows[::5] if row["status"] == "ok" for face in (3, 2)]
    tables = [_write_parquet("a.parquet", rows[:100]), _write_parquet("b.parquet", rows[100:])]
    more = ["--best", str(best), "--per", per, "--min-score", str(least)]
    result = command("select", *tables, *more, *(["--near", str(near)] if near else []), "-o", "out.parquet")
    assert result.code == 0, result.err
    group = _find_folder if per == "person" else lambda row: row[per]
    expected = _choose(rows, best, group, least=least, near=near)
    assert 0 < len(expected) < len(rows)
    assert pq.read_table("out.parquet").to_pylist() == [rows[index] for index in expected]
    found = [row for row in rows if row["status"] == "ok"]
    copies = len(found) - len({(row["content_hash"] or row["path"], row["face"]) for row in found})
    assert f"{len(rows):,} rows, {len(found):,} ok, {copies} of these duplicates" in result.err
    assert f"kept {len(expected)} of {len({group(rows[i]) for i in expected})} groups; written" in result.err


def test_csv_gives_what_parquet_gives(command: Command) -> None:
    rows = _make_rows(150)
    for row in rows[1::3]:
        row |= {"score": np.float32(1e-9 * row["face"] + 0.7).item()} if row["status"] == "ok" else {}
    rows += rows[20:40]  # the same paths: duplicates of which no hash is needed
    columns = ("content_hash", "embedding", _HOSTILE, "label")
    tables = [_write_csv("t.csv", rows), _write_parquet("t.parquet", rows, columns)]
    results = [command("select", table, "--best", "2", "--per", "person", "--min-score", "0.7") for table in tables]
    expected = _choose(rows, 2, _find_folder, least=0.7, content=lambda row: row["path"])
    assert all("no column content_hash" in result.err for result in results)
    _write_csv("expected.csv", [rows[index] for index in expected])
    assert results[0].out == Path("expected.csv").read_text()
    assert [row["path"] for row in _read(results[1].out)] == [row["path"] for row in _read(results[0].out)]
    assert command("select", "t.csv", "--best", "2", "--per", "person", "-o", "out.parquet").code == 0
    assert command("select", "out.parquet", "--best", "2", "--per", "person", "-o", "out.csv").code == 0
    assert Path("out.csv").read_text() == command("select", "t.csv", "--best", "2", "--per", "person").out


def test_columns_in_csv(command: Command) -> None:
    """Bytes and lists are left out; what a spreadsheet takes for a formula is not one."""
    _write_parquet("t.parquet", _make_rows(30))
    rows = _read(command("select", "t.parquet", "--best", "99", "--per", _HOSTILE).out)
    assert list(rows[0]) == ["path", "face", "status", *_FLOATS, "reason", _HOSTILE, "label"]
    assert {row[_HOSTILE] for row in rows} == {"x", "y'", "'=z"}


def test_list_of_paths_is_read_by_score(command: Command) -> None:
    rows = [row for row in _make_rows(60) if "\n" not in row["path"]]
    more = [{**row, "face": row["face"] + 2} for row in rows[::2] if row["status"] == "ok"]
    tables = _write_parquet("a.parquet", rows), _write_parquet("b.parquet", more)
    rows += more
    assert command("select", *tables, "--best", "9", "--per", "label", "-o", "list.txt").code == 0
    expected = [rows[index]["path"] for index in _choose(rows, 9, lambda row: row["label"])]
    assert len(expected) > len(set(expected))
    assert Path("list.txt").read_text().splitlines() == list(dict.fromkeys(expected))
    assert list(find_paths(["@list.txt"])) == list(dict.fromkeys(expected))


def test_a_name_that_is_not_utf8_stays_as_it_is(command: Command) -> None:
    rows = [{**_make_rows(1)[0], "path": f"p\udce9/{index}.jpg"} for index in range(2)]
    _write_csv("t.csv", rows)
    assert command("select", "t.csv", "--best", "1", "--per", "person", "-o", "list.txt").code == 0
    assert Path("list.txt").read_bytes() == b"p\xe9/0.jpg\n"
    assert command("select", "t.csv", "--best", "1", "--per", "person", "-o", "out.csv").code == 0
    assert b"p\xe9/0.jpg,0,ok" in Path("out.csv").read_bytes()
    assert (
        "expected texts in UTF-8" in command("select", "t.csv", "--best", "1", "--per", "person", "-o", "o.parquet").err
    )
    assert not list(Path().glob("o.parquet*"))


@pytest.mark.parametrize("near", [None, 0.95])
def test_templates(command: Command, near: float | None) -> None:
    rows = _make_rows(300)
    for row in rows:
        row |= {"score": row["score"] + 0.5} if row["status"] == "ok" else {}
    _write_parquet("t.parquet", rows)
    more = ["--near", str(near)] if near else []
    result = command("select", "t.parquet", "--best", "4", "--per", "label", *more, "--templates", "u.parquet")
    assert result.code == 0, result.err
    groups: dict[int, list[Row]] = {}
    for index in _choose(rows, 4, lambda row: row["label"], near=near):
        groups.setdefault(rows[index]["label"], []).append(rows[index])
    found = pq.read_table("u.parquet")
    assert found.schema.types == [pa.string(), pa.int64(), pa.list_(pa.float32(), 5)]
    templates = {row["group"]: row for row in found.to_pylist()}
    assert templates.keys() == set(map(str, groups))
    for label, members in groups.items():
        embeddings = np.array([row["embedding"] for row in members], np.float64)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        expected = sum(row["score"] * embedding for row, embedding in zip(members, embeddings, strict=True))
        expected /= np.linalg.norm(expected)
        assert templates[str(label)]["faces"] == len(members)
        # One rounding to float32 of numbers up to 1.
        assert np.allclose(templates[str(label)]["embedding"], expected, rtol=0, atol=1e-7)


def test_nothing_to_keep(command: Command) -> None:
    rows = _make_rows(30)
    _write_parquet("t.parquet", rows)
    for output in ("out.csv", "out.parquet", "out.txt"):
        result = command("select", "t.parquet", "--best", "1", "--per", "person", "--min-score", "1e9", "-o", output)
        assert result.code == 0
        assert "kept 0 of 0 groups" in result.err
    assert Path("out.txt").read_bytes() == b""
    assert pq.read_table("out.parquet").schema == pq.read_table("t.parquet").schema
    assert not _read(Path("out.csv").read_text())
    _write_csv("none.csv", [])
    assert command("select", "none.csv", "--best", "1", "--per", "person").out == format_header("csv")


def test_a_column_called_person_comes_before_the_folder(command: Command) -> None:
    rows = [{**row, "person": "one"} for row in _make_rows(20)]
    pq.write_table(pa.Table.from_pylist(rows).cast(pa.Table.from_pylist(rows).schema), "t.parquet")
    table = pq.read_table("t.parquet")
    for name in _FLOATS:  # float64, as other tools write them
        assert table.schema.field(name).type == pa.float64()
    assert "kept 1 of 1 groups" in command("select", "t.parquet", "--best", "1", "--per", "person", "-o", "o.csv").err


def test_rows_go_to_disk_beyond_the_memory(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pq.read_table(_write_parquet("t.parquet", _make_rows(60), ("content_hash",)))
    copies = [table.set_column(0, "path", pc.binary_join_element_wise(str(i), table["path"], "/")) for i in range(300)]
    pq.write_table(pa.concat_tables(copies), "t.parquet")
    monkeypatch.setattr(choose, "_MOST_THREADS", 1)
    arguments = ["select", "t.parquet", "--best", "5", "--per", "person", "--near", "0.9", "-o"]
    assert command(*arguments, "whole.parquet").code == 0
    monkeypatch.setitem(choose._SETTINGS, "memory_limit", "12MiB")
    assert command(*arguments, "small.parquet").code == 0
    assert Path("small.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    monkeypatch.setitem(choose._SETTINGS, "memory_limit", "1MiB")
    result = command(*arguments, "none.parquet")
    assert result.code == 1
    assert "point TMPDIR to a larger disk" in result.err.splitlines()[-1]
    assert not list(Path().glob("none.parquet*"))


@pytest.mark.parametrize("rows", [10, 50])
def test_tables_that_change_meanwhile(command: Command, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    def close_and_change(store: choose.FaceStore, *error: Any) -> None:
        leave(store, *error)
        _write_parquet("t.parquet", _make_rows(rows))

    leave = choose.FaceStore.__exit__
    monkeypatch.setattr(choose.FaceStore, "__exit__", close_and_change)
    _write_parquet("t.parquet", _make_rows(30))
    result = command("select", "t.parquet", "--best", "1", "--per", "person", "-o", "out.csv")
    assert result.code == 1
    assert "the tables changed while they were read" in result.err
    assert not list(Path().glob("out*"))


def _spoil(**values: object) -> list[Row]:
    rows = _make_rows(9)
    for row in rows:
        row["score"] += 0.5
    rows[4] |= values
    return rows


_REFUSED: dict[str, tuple[list[Row], str, str]] = {
    # rows, what is typed after the table, how the line ends
    "no such column": (_spoil(), "--per people", "label"),
    "a column of lists": (
        _spoil(),
        "--per embedding",
        "expected texts or whole numbers in the column embedding, got fixed_size_list<element: float>[5]",
    ),
    "a score that is NaN": (
        _spoil(score=np.nan),
        "--per label",
        "t.parquet: expected every row with status ok to have a finite score, {path} has none",
    ),
    "no score": (_spoil(score=None), "--per label", "a finite score, {path} has none"),
    "no face": (_spoil(face=None), "--per label", "the number of a face, {path} has none"),
    "no path": (_spoil(path=None), "--per label", "a path, one has none"),
    "no folder": (
        _spoil(path="a.jpg"),
        "--per person",
        "a person's folder as the last of its path, a.jpg has none; give --per COLUMN",
    ),
    "a folder without a name": (_spoil(path="./a.jpg"), "--per person", "./a.jpg has none; give --per COLUMN"),
    "a shard for a person": (_spoil(path="s/1.TAR/a"), "--per person", "s/1.TAR/a has none; give --per COLUMN"),
    "a table for a person": (_spoil(path="1.parquet/7"), "--per person", "1.parquet/7 has none; give --per COLUMN"),
    "no embedding": (
        _spoil(embedding=None),
        "--per label --near .5",
        "an embedding of finite length, {path} has none",
    ),
    "no direction": (_spoil(embedding=[0.0] * 5), "--per label --near .5", "of finite length, {path} has none"),
    "a score that cannot weigh": (
        _spoil(score=0.0),
        "--per label --templates out.parquet",
        "a score above 0, which weighs it, {path} has none",
    ),
    "templates in csv": (
        _spoil(),
        "--per label --templates out.csv",
        "expected templates in a file that ends in .parquet, got out.csv",
    ),
    "a line end in a list": (
        _spoil(path="a\rb/1.jpg"),
        "--per label -o out.txt",
        "expected paths without line ends, got a\\rb/1.jpg; write a .csv or .parquet file",
    ),
    "a suffix": (
        _spoil(),
        "--per label -o out.jsonl",
        "expected an output that ends in .csv, .parquet or .txt, got out.jsonl",
    ),
    "a place": (
        _spoil(),
        "--per label -o none/out.csv",
        "cannot write none/out.csv (No such file or directory); name another place",
    ),
    "NaN": (_spoil(), "--per label --min-score nan", "expected a number for --min-score and --near, got nan"),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_what_is_refused(command: Command, case: str) -> None:
    rows, typed, line = _REFUSED[case]
    _write_parquet("t.parquet", [row for row in rows if "\n" not in (row["path"] or "")])
    result = command("select", "t.parquet", "--best", "9", *typed.split())
    assert result.code in (1, 2)
    expected = line.format(path=rows[4]["path"]) if "{path}" in line else line
    assert result.err.splitlines()[-1].endswith(expected)
    assert not list(Path().glob("out*"))


def test_tables_that_are_refused(command: Command) -> None:
    rows = _make_rows(200)
    whole = _write_parquet("t.parquet", rows)
    data = Path(whole).read_bytes()
    Path("cut.parquet").write_bytes(data[: len(data) // 2])
    Path("garbage.parquet").write_bytes(b"garbage" * 99)
    start = pq.ParquetFile(whole).metadata.row_group(1).column(0).dictionary_page_offset
    Path("page.parquet").write_bytes(data[:start] + b"\xff" * 40 + data[start + 40 :])
    _write_parquet("less.parquet", rows, ("label",))
    _write_csv("t.csv", rows)
    Path("ragged.csv").write_text(Path("t.csv").read_text() + "a/b.jpg,0,ok\n")
    Path("word.csv").write_text(format_header("csv") + "a/b.jpg,0,ok,high,,,,,,,,\n")
    Path("empty.csv").write_bytes(b"")
    Path("list.txt").write_text("a.jpg 9\n")
    Path("other.csv").write_text("name,score\na,1\n")
    for tables, line in (
        ("cut.parquet", "cut.parquet: damaged, or no such table ("),
        ("garbage.parquet", "garbage.parquet: damaged, or no such table ("),
        ("page.parquet", "page.parquet: damaged, or no such table ("),
        ("ragged.csv", "ragged.csv: damaged, or no such table (CSV parse error"),
        ("word.csv", "word.csv: damaged, or no such table (In CSV column #3"),
        ("empty.csv", "empty.csv: damaged, or no such table (Empty CSV file"),
        ("list.txt", "expected a table of `prefiqs score` that ends in .csv or .parquet, got list.txt"),
        ("other.csv", "other.csv: no column path; there are name, score"),
        ("none.csv", "cannot read none.csv (No such file or directory)"),
        ("t.csv --near 1", "detector_score; `prefiqs score --embedding-column` writes it"),
        ("t.parquet less.parquet", "label is int64 in t.parquet and missing in less.parquet"),
        ("t.csv t.parquet", "in t.csv and"),
    ):
        result = command("select", *tables.split(), "--best", "1", "--per", "person", "-o", "out.csv")
        assert result.code in (1, 2), tables
        assert line in result.err.splitlines()[-1], tables
        assert not list(Path().glob("out.csv*")), tables
