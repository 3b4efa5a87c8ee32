"""Images in archives and Parquet files: what is found, what is damaged, and which part of a run has what."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefiqs_ext.exceptions import FileFormatError, InputError
from prefiqs_ext.files import InputImages, Shard, find_paths
from prefiqs_ext.utils import budget
from tests.containers import make_crops, write_parquet, write_tar, write_zip

_CROPS = make_crops(20, size=8)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _read(*paths: str, **options: object) -> dict[str, bytes | str]:
    """What each image has, or what is wrong with it."""
    found = {}
    for image in InputImages(find_paths(paths, containers=True), **options):  # type: ignore[arg-type]
        encoded = image.encode()
        found[image.path] = encoded.problem or (Path(image.path).read_bytes() if encoded.data is None else encoded.data)
    return found


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz")]
)
def test_tar(name: str, mode: str) -> None:
    members = {"b/000.png": _CROPS["000.png"], "a.JPG": _CROPS["001.png"], "a.json": b"{}", "__MACOSX/a.png": b"x"}
    write_tar(Path(name), members | {".hidden/c.png": b"x", "d.png": b""}, mode)
    expected = {f"{name}/b/000.png": _CROPS["000.png"], f"{name}/a.JPG": _CROPS["001.png"], f"{name}/d.png": b""}
    assert _read(name) == expected


def test_zip() -> None:
    write_zip(Path("a.zip"), {"b/000.png": _CROPS["000.png"], "a.txt": b"", "c/": b"", "001.png": _CROPS["001.png"]})
    assert _read("a.zip") == {"a.zip/b/000.png": _CROPS["000.png"], "a.zip/001.png": _CROPS["001.png"]}


def test_members_of_a_tar_that_are_no_files_are_left() -> None:
    import tarfile

    with tarfile.open("a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"{kind!r}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert _read("a.tar") == {"a.tar": "expected images in the archive, found none"}


def test_parquet() -> None:
    images = list(_CROPS.values())
    write_parquet(Path("a.parquet"), [*images, None], {"label": range(21)})
    expected = {f"a.parquet/{row}": data for row, data in enumerate(images)}
    assert _read("a.parquet") == expected | {"a.parquet/20": "expected an image, the cell is empty"}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_parquet_with_plain_bytes_in_a_column_of_another_name(kind: pa.DataType) -> None:
    table = pa.table({"label": [1, 2], "jpg": pa.array([_CROPS["000.png"], _CROPS["001.png"]], kind)})
    pq.write_table(table, "a.parquet")
    read = _read("a.parquet", image_column="jpg")
    assert list(read.values()) == [_CROPS["000.png"], _CROPS["001.png"]]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("image", "expected one column 'image' with images, there are: label, text; name one with --image-column"),
        ("text", r"expected encoded images \(binary, or a struct with `bytes`\) in column 'text', got string"),
    ],
)
def test_a_parquet_file_without_images(column: str, message: str) -> None:
    pq.write_table(pa.table({"label": [1], "text": ["a"]}), "a.parquet")
    with pytest.raises(InputError, match=message):
        InputImages(["a.parquet"], image_column=column, carry=True)
    (problem,) = _read("a.parquet", image_column=column).values()
    assert str(problem).startswith("a.parquet: expected")


def test_damaged_containers_are_one_image_with_a_problem_each() -> None:
    """And the others are read."""
    write_tar(Path("whole.tar"), _CROPS)
    whole = Path("whole.tar").read_bytes()
    write_zip(Path("whole.zip"), _CROPS)
    write_parquet(Path("whole.parquet"), list(_CROPS.values()))
    parquet = Path("whole.parquet").read_bytes()
    Path("text.tar").write_text("no tar " * 200)
    Path("text.zip").write_text("no zip")
    Path("text.parquet").write_text("no parquet file")
    Path("empty.tar").touch()
    Path("empty.parquet").touch()
    Path("cut.tar").write_bytes(whole[: 512 * 5 + 100])
    Path("cut.parquet").write_bytes(parquet[:-1])
    Path("list.txt").write_text("none.tar\nnone.parquet\n")
    os.mkfifo("fifo.tar")
    names = ["text.tar", "text.zip", "text.parquet", "empty.tar", "empty.parquet", "cut.parquet", "fifo.tar"]
    read = _read(*names, "@list.txt", "whole.tar")
    problems = {path: text for path, text in read.items() if isinstance(text, str)}
    assert list(problems) == [*names, "none.tar", "none.parquet"]
    assert all("\n" not in text and text for text in problems.values())
    assert "No such file" in problems["none.tar"]
    assert "pipe" in problems["fifo.tar"]
    assert len(read) == len(problems) + 20
    cut = _read("cut.tar")
    assert cut["cut.tar/000.png"] == _CROPS["000.png"]
    assert cut["cut.tar"] == "its end is lost: expected a tar or zip archive, it is damaged (unexpected end of data)"


def test_a_column_whose_name_is_no_text() -> None:
    pq.write_table(pa.table({"image": [_CROPS["000.png"]], "label": [1]}), "a.parquet")
    Path("a.parquet").write_bytes(Path("a.parquet").read_bytes().replace(b"label", b"\xff\xfeabc"))
    (problem,) = _read("a.parquet").values()
    assert str(problem).startswith("expected a Parquet file, it is damaged (")
    with pytest.raises(FileFormatError, match="expected a Parquet file, it is damaged"):
        InputImages(["a.parquet"], carry=True)


def test_damaged_members() -> None:
    write_zip(Path("a.zip"), _CROPS)
    data = bytearray(Path("a.zip").read_bytes())
    at = data.index(b"003.png") + 20
    data[at : at + 8] = b"\xff" * 8
    Path("a.zip").write_bytes(data)
    read = _read("a.zip")
    assert {path for path, value in read.items() if isinstance(value, str)} == {"a.zip/003.png"}
    write_parquet(Path("a.parquet"), list(_CROPS.values()), group=5)
    data = bytearray(Path("a.parquet").read_bytes())
    at = data.index(_CROPS["007.png"][20:60]) if _CROPS["007.png"][20:60] in data else len(data) // 2
    data[at - 200 : at + 200] = b"\xff" * 400
    Path("a.parquet").write_bytes(data)
    read = _read("a.parquet")
    assert len(read) == 20  # rows are known before they are read
    whole = {path for path, value in read.items() if not isinstance(value, str)}
    assert len(whole) >= 10  # of the other row groups


def test_archive_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files that say that they hold very much: refused before it is read or held."""
    monkeypatch.setattr("prefiqs_ext.files.archives.FREE_BYTES", 1 << 20)
    monkeypatch.setattr("prefiqs_ext.files.parquet.FREE_BYTES", 1 << 20)
    zeros = bytes(8 << 20)
    write_tar(Path("a.tar.gz"), {f"{index}.png": zeros for index in range(4)}, "w:gz")
    write_zip(Path("a.zip"), {f"{index}.png": zeros for index in range(4)})
    pq.write_table(pa.table({"image": [zeros, zeros + b"x"]}), "a.parquet", use_dictionary=False, compression="zstd")
    with zipfile.ZipFile("large.zip", "w") as archive:
        archive.writestr("0.png", b"x")
    data = bytearray(Path("large.zip").read_bytes())
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = (budget.MAX_IMAGE_BYTES + 1).to_bytes(4, "little")  # the size that the directory declares
    Path("large.zip").write_bytes(data)
    tracemalloc.start()
    for name, message in [
        ("a.tar.gz", "got far more"),
        ("a.parquet", "at most 100 times the file"),
        ("large.zip", "at most 1074 MB"),
    ]:
        problems = [text for text in _read(name).values() if isinstance(text, str)]
        assert problems
        assert message in problems[-1]
    assert sum(isinstance(text, str) for text in _read("a.zip").values()) >= 3
    assert tracemalloc.get_traced_memory()[1] < 60 << 20
    tracemalloc.stop()


def test_carried_columns() -> None:
    images = list(_CROPS.values())
    write_parquet(Path("a.parquet"), images[:3], {"label": [1, 2, 3], "tags": [["a"], [], None]})
    write_parquet(Path("b.parquet"), images[3:5], {"label": [4, 5], "tags": [None, ["b", "c"]]})
    write_parquet(Path("other.parquet"), images[5:6], {"label": ["text"]})
    found = InputImages(["a.parquet", "b.parquet", "other.parquet"], carry=True)
    assert found.carried is not None
    assert found.carried.names == ["label", "tags"]
    rows = []
    for image in found:
        encoded, carried = image.encode(), image.carry()
        rows.append(carried.batch.slice(carried.row, 1).to_pylist()[0] if carried else encoded.problem)
    assert rows[:2] == [{"label": 1, "tags": ["a"]}, {"label": 2, "tags": []}]
    assert rows[2:5] == [{"label": 3, "tags": None}, {"label": 4, "tags": None}, {"label": 5, "tags": ["b", "c"]}]
    assert rows[5:] == ["expected the same columns as in the first Parquet file; give it a run of its own"]
    assert InputImages(["a.parquet"]).carried is None


def test_shards_of_files_and_of_images() -> None:
    for index in range(5):
        write_tar(Path(f"{index}.tar"), {f"{index}{name}": data for name, data in _CROPS.items()})
    tars = [f"{index}.tar" for index in range(5)]
    whole = list(_read(*tars))
    parts = [list(_read(*tars, shard=Shard(index, 3))) for index in range(3)]
    assert sorted(chain(*parts)) == sorted(whole)
    assert {path.split("/")[0] for path in parts[1]} == {"1.tar", "4.tar"}  # whole archives
    parts = [list(_read("0.tar", "1.tar", shard=Shard(index, 3))) for index in range(3)]
    assert parts[1] == whole[1:40:3]  # fewer archives than parts
    assert sorted(chain(*parts)) == sorted(whole[:40])
    found = InputImages(["a.png"] * 7, shard=Shard(2, 3))
    assert (found.total, len(list(found))) == (2, 2)
    assert list(InputImages(["a.png"], shard=Shard(2, 3))) == []


@pytest.mark.parametrize("text", ["1", "3/3", "-1/3", "0/0", "a/b", "0/3/4", "1 /3", ""])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="expected INDEX/COUNT with an INDEX from 0 to COUNT - 1, such as 0/8, got"):
        Shard.parse(text)
    assert str(Shard.parse("7/8")) == "7/8"


def test_memory_does_not_grow_with_the_number_of_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefiqs_ext.files.images._COUNTED", 1000)
    Path("list.txt").write_text("".join(f"faces/of/somebody/{index:09}.jpg\n" for index in range(20_000)))
    write_tar(Path("many.tar"), {f"{index:06}.png": b"" for index in range(3_000)})
    for paths, count in ([["@list.txt"], 20_000], [["many.tar"], 3_000]):
        tracemalloc.start()
        found = InputImages(find_paths(paths, containers=True))
        assert found.total is None  # more than are counted, or an archive
        assert sum(1 for _ in found) == count
        assert tracemalloc.get_traced_memory()[1] < 1 << 19  # 25 bytes a path, of which each has 60 and more
        tracemalloc.stop()
