"""Files that cannot be read or written: one line with the path, the reason and the remedy, and one family of errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from prefiqs_ext.exceptions import FileAccessError, FileFormatError, InputError, MissingFileError
from prefiqs_ext.utils.atomic_write import atomic_write, make_output_folder, write_folder
from prefiqs_ext.utils.os_errors import build_write_error
from prefiqs_ext.utils.partial_file import PartialFile
from prefiqs_ext.utils.regular_file import read_lines
from prefiqs_ext.utils.strict_json import read_strict_json


def test_both_ways_of_writing_say_the_same_of_a_bad_place(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for place, reason in (
        ("none/t", "No such file or directory"),
        ("file/t", "Not a directory"),
        ("folder", "it is a folder"),
    ):
        path = tmp_path / place
        with pytest.raises(FileAccessError) as atomic, atomic_write(str(path)):
            pass
        with pytest.raises(FileAccessError) as partial:
            PartialFile(path)
        assert str(atomic.value) == f"cannot write {path} ({reason}); name another place"
        assert str(partial.value) == f"cannot write {path}.part ({reason}); name another place"
    with pytest.raises(FileAccessError, match=r"cannot write .*/file \(File exists\); name another folder$"):
        make_output_folder(tmp_path / "file")
    with pytest.raises(FileAccessError, match=r"cannot write .*/none/a\.csv \(No such file"):
        write_folder(tmp_path / "none", {"a.csv": b""})
    with pytest.raises(InputError, match="the name of a file"), atomic_write(""):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_full_disk_has_its_remedy_first() -> None:
    error = build_write_error("t.csv", OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert str(error) == "cannot write t.csv (Disk quota exceeded); make room there, or name another place"


def test_other_errors_of_the_body_pass_through_an_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ConnectionError, match="of the network"), atomic_write(str(path)):
        raise ConnectionError("of the network")
    with pytest.raises(FileAccessError, match=r"cannot write .*/a\.json \(it fails\)"), atomic_write(str(path)):
        raise OSError(errno.ENOSPC, "it fails")
    assert os.listdir(tmp_path) == []


def test_a_name_that_became_a_folder_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(FileAccessError, match=r"cannot write .*/a\.json \(Is a directory\)"), atomic_write(str(path)):
        path.mkdir()
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "read", [lambda path: list(read_lines(path)), lambda path: read_strict_json(path, "a saved FROQ", dict)]
)
def test_what_cannot_be_read(read, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\0")
    with pytest.raises(MissingFileError, match=r"^cannot read .*/none \(No such file or directory\); "):
        read(tmp_path / "none")
    with pytest.raises(MissingFileError, match=r"^cannot read .*/file/x \(Not a directory\); "):
        read(tmp_path / "file" / "x")
    with pytest.raises(FileAccessError, match=r"^cannot read .* \(expected a file, got a folder\); ") as caught:
        read(tmp_path)
    assert not isinstance(caught.value, FileNotFoundError)
    with pytest.raises(FileFormatError):
        read(tmp_path / "file")
