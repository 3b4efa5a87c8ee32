"""Which files are meant by files, folders and lists."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import prefiqs_ext
from prefiqs_ext.exceptions import PrefiqsError
from prefiqs_ext.files import find_paths
from prefiqs_ext.utils.text import format_path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def _find(*arguments: str) -> tuple[list[str], list[str]]:
    reports: list[str] = []
    return list(find_paths(arguments, reports.append)), reports


@pytest.mark.usefixtures("here")
def test_folders_are_read_recursively_and_sorted() -> None:
    _touch("a/b/2.PNG", "a/b/10.jpg", "a/z.jpeg", "a/c.txt", "a/b/deep/e/1.webp")
    found, reports = _find("a")
    assert found == ["a/z.jpeg", "a/b/10.jpg", "a/b/2.PNG", "a/b/deep/e/1.webp"]
    assert reports == ["1 file passed over: .txt 1"]


@pytest.mark.usefixtures("here")
def test_hidden_and_system_files_and_folders_are_no_part_of_a_folder() -> None:
    _touch("a/.hidden.jpg", "a/._1.jpg", "a/.git/x.jpg", "a/.ipynb_checkpoints/1.jpg", "a/.DS_Store", "a/Thumbs.db")
    _touch("a/@eaDir/1.jpg/thumb.jpg", "a/__MACOSX/1.jpg", "a/desktop.ini", "a/#recycle/1.jpg", "a/lost+found/1.jpg")
    _touch("a/$RECYCLE.BIN/1.jpg", "a/System Volume Information/1.jpg", "a/1.jpg", "a/2.MPO")
    assert _find("a") == (["a/1.jpg", "a/2.MPO"], [])
    assert _find("a/.git", "a/._1.jpg")[0] == ["a/.git/x.jpg", "a/._1.jpg"]  # named themselves


@pytest.mark.usefixtures("here")
def test_what_is_passed_over_for_its_suffix_is_counted() -> None:
    _touch(*(f"a/{i}.HEIC" for i in range(12)), "a/b/notes.txt")
    said = r"found none in a; 13 files passed over: \.heic 12, \.txt 1; convert photos to JPEG or PNG first"
    with pytest.raises(ValueError, match=said):
        _find("a")
    _touch("a/1.jpg", "a/0", *(f"a/x.{kind}" for kind in ("a", "b", "c\x1b[31m", "d")))
    (report,) = _find("a")[1]
    assert report.startswith("18 files passed over: .heic 12, no suffix 1, .a 1, ")
    assert ", 2 other kinds; " in report
    assert report.isprintable()


@pytest.mark.usefixtures("here")
def test_named_files_may_have_any_name() -> None:
    _touch("photo", "list.txt")
    assert _find("photo", "list.txt")[0] == ["photo", "list.txt"]


@pytest.mark.usefixtures("here")
def test_files_of_a_list_need_not_exist() -> None:
    Path("list.txt").write_text("none.jpg\nhttps://example.org/a.jpg\nclip.mp4\n")
    assert _find("@list.txt")[0] == ["none.jpg", "https://example.org/a.jpg", "clip.mp4"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("none.jpg", FileNotFoundError, r"cannot read none\.jpg \(No such file or directory\); check the path"),
        ("photo/none.jpg", FileNotFoundError, r"cannot read photo/none\.jpg \(Not a directory\)"),
        ("loop", OSError, r"cannot read loop \(Too many levels of symbolic links\)"),
        ("https://example.org/a.jpg", ValueError, r"got the URL https://example\.org/a\.jpg: download it first"),
        ("s3://bucket/photos", ValueError, "download it first"),
        ("photos.zip", ValueError, r"got the archive photos\.zip: unpack it"),
        ("photos.TAR.GZ", ValueError, "unpack it"),
        ("clip.mp4", ValueError, r"got the video clip\.mp4: .*ffmpeg -i clip\.mp4 "),
        ("clip.MOV", ValueError, "ffmpeg"),
    ],
)
def test_what_can_hold_no_images_is_refused_at_once(argument: str, error: type[Exception], message: str) -> None:
    _touch("photo", "photos.zip", "photos.TAR.GZ", "clip.mp4", "clip.MOV")
    Path("loop").symlink_to("loop")
    with pytest.raises(PrefiqsError, match=message) as caught:
        _find("photo", argument)
    assert isinstance(caught.value, error)


@pytest.mark.usefixtures("here")
def test_a_folder_may_have_any_name() -> None:
    _touch("photos.zip/1.jpg", "clip.mp4/2.jpg")
    assert _find("photos.zip", "clip.mp4")[0] == ["photos.zip/1.jpg", "clip.mp4/2.jpg"]


@pytest.mark.usefixtures("here")
def test_lists_with_blanks_crlf_byte_order_mark_and_folders() -> None:
    _touch("a/1.jpg", "a/2.jpg", "name with  spaces.jpg", "last.jpg")
    Path("list.txt").write_bytes(b"\xef\xbb\xbfname with  spaces.jpg\r\n\r\n  \t\n\na\r\nlast.jpg")
    assert _find("@list.txt") == (["name with  spaces.jpg", "a/1.jpg", "a/2.jpg", "last.jpg"], [])


@pytest.mark.usefixtures("here")
def test_lists_that_cannot_be_read() -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot read none\.txt \(No such file"):
        _find("@none.txt")
    Path("image.jpg").write_bytes(b"\xff\xd8\0\0")
    with pytest.raises(ValueError, match=r"image\.jpg:1: expected text, got NUL bytes"):
        _find("@image.jpg")


@pytest.mark.usefixtures("here")
def test_names_that_are_not_utf8() -> None:
    name = b"a/caf\xe9.jpg"
    os.mkdir("a")
    Path(os.fsdecode(name)).touch()
    Path("list.txt").write_bytes(name + b"\n")
    found, reports = _find("a", "@list.txt")
    assert [os.fsencode(path) for path in found] == [name, name]  # a list is taken line by line
    assert not reports
    found, reports = _find("a", os.fsdecode(name))
    assert [os.fsencode(path) for path in found] == [name]
    assert reports == ["a/caf\\xe9.jpg: given before, scored once"]


@pytest.mark.usefixtures("here")
def test_duplicates_by_other_spellings_and_links() -> None:
    _touch("a/1.jpg", "a/2.jpg")
    os.symlink("a", "link")
    found, reports = _find("a/1.jpg", "./a//1.jpg", "link/1.jpg", os.path.abspath("a/1.jpg"), "a", "a/")
    assert found == ["a/1.jpg", "a/2.jpg"]
    assert len(reports) == 5
    assert reports[3:] == ["a/1.jpg: given before, scored once", "a/: folder met before, read once"]


@pytest.mark.usefixtures("here")
def test_loops_of_links_end() -> None:
    _touch("a/b/1.jpg")
    os.symlink("..", "a/b/up")
    os.symlink("self", "a/self")
    os.symlink("self.jpg", "a/self.jpg")
    found, reports = _find("a")
    assert found == ["a/self.jpg", "a/b/1.jpg"]  # reading the link to itself is what fails
    assert reports[0] == "a/b/up: folder met before, read once"


@pytest.mark.usefixtures("here")
def test_folders_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    _touch("a/1.jpg", "a/locked/2.jpg", "a/open/3.jpg")
    scandir = os.scandir

    def guarded(folder: str) -> Iterator[Any]:  # root may read every folder, so permissions cannot show it
        if folder == "a/locked":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    found, reports = _find("a")
    assert found == ["a/1.jpg", "a/open/3.jpg"]
    assert reports == ["a/locked: folder cannot be read (Permission denied)"]


def test_shown_is_one_printable_line() -> None:
    assert format_path("a\n\x1b[31m\udce9é") == "a\\n\\x1b[31m\\xe9é"


def test_finding_paths_needs_no_torch(here: Path) -> None:
    """Nor does anything else that the command line needs before it has work to do."""
    _touch("a/1.jpg")
    code = (
        "import sys, types\n"
        f"package = types.ModuleType('prefiqs_ext'); package.__path__ = {list(prefiqs_ext.__path__)}\n"
        "sys.modules['prefiqs_ext'] = package  # without what the package's own __init__ may load\n"
        "from prefiqs_ext.files import find_paths\n"
        "print(list(find_paths(['a'], print)), 'torch' in sys.modules, 'cv2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['a/1.jpg'] False False\n"
