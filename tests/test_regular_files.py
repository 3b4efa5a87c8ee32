"""What is no regular file, or has no end, is refused by every reader of files of others; none of them waits."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from prefiqs_ext import Settings
from prefiqs_ext.evaluation.datasets import read_data
from prefiqs_ext.evaluation.datasets.crfiqa import read_quality_data
from prefiqs_ext.evaluation.datasets.ijbc import read_ijbc
from prefiqs_ext.evaluation.datasets.readers import (
    read_embeddings,
    read_image_list,
    read_lfw_pairs,
    read_pair_list,
    read_scores,
)
from prefiqs_ext.exceptions import FileAccessError, FileFormatError, OutOfMemoryError, PrefiqsError
from prefiqs_ext.faces import hash_file, read_rgb
from prefiqs_ext.files import find_paths
from prefiqs_ext.files.progress import RunState
from prefiqs_ext.utils.regular_file import open_regular
from prefiqs_ext.utils.text import describe_error
from tests.command import Command

_IMAGES = ["data/ann/1.jpg"]


def _read_ijbc_pairs(file: Path) -> None:
    """The list of pairs, which is read in a way of its own, beside two lists that are right."""
    folder = file.parent / "ijbc"
    (folder / "crops").mkdir(parents=True)
    (folder / "crops" / "1.jpg").touch()
    (folder / "ijbc_face_tid_mid.txt").write_text("1.jpg 1 1\n")
    (folder / "ijbc_name_5pts_score.txt").write_text(f"1.jpg {'1 ' * 10}0.9\n")
    (folder / "ijbc_template_pair_label.txt").symlink_to(file)
    read_ijbc(folder, folder / "crops")


def _read_quality_data(file: Path) -> None:
    (file.parent / "quality").mkdir()
    (file.parent / "quality" / "image_path_list.txt").symlink_to(file)
    read_quality_data(file.parent / "quality")


READERS: dict[str, Callable[[Path], object]] = {
    "an image": read_rgb,
    "an image's hash": hash_file,
    "a list of files": lambda file: list(find_paths([f"@{file}"])),
    "a list of images": read_image_list,
    "LFW's pairs": lambda file: read_lfw_pairs(file, file.parent),
    "a list of pairs": lambda file: read_pair_list(_one_image(file), file),
    "CR-FIQA's folder": _read_quality_data,
    "IJB-C's pairs": _read_ijbc_pairs,
    "scores": lambda file: read_scores(file, _IMAGES),
    "embeddings": lambda file: read_embeddings(file, _IMAGES),
    "a benchmark": lambda file: read_data(file.rename(file.with_suffix(".bin"))),
    "settings": Settings.load,
}


def _one_image(file: Path) -> Path:
    (file.parent / "1.jpg").touch()
    (file.parent / "list.txt").write_text("1.jpg\n")
    return file.parent / "list.txt"


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """A reader that waits gets a signal, and one that takes more memory than two GiB a MemoryError."""
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(20)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.alarm(0)


def _too_late(*_: object) -> None:
    raise AssertionError("it waits")


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
@pytest.mark.parametrize("reader", READERS)
def test_pipes_and_devices_are_refused(reader: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if kind == "a pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(FileAccessError, match=r"expected a regular file, got a pipe or a device"):
        READERS[reader](file)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("head", [b"", b"\x93NUMPY\x01\x00\x76\x00" + b"%-117s\n", b"1 1 "])
def test_a_file_of_30_gigabytes_is_refused_at_once(reader: str, head: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if b"%" in head:
        head %= b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 7500000000), }"
    file.write_bytes(head)
    os.truncate(file, len(head) + 30_000_000_000)  # sparse
    with pytest.raises(FileFormatError):
        READERS[reader](file)


def test_rows_of_embeddings_have_a_bound(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.ones((1, 65_537), np.float16))
    with pytest.raises(FileFormatError, match="expected at most 65536 numbers per embedding, got 65537"):
        read_embeddings(tmp_path / "e.npy", _IMAGES)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "1.npy", np.ones(65_537, np.float16))
    with pytest.raises(FileFormatError, match="expected at most 65536 numbers per embedding, got 65537"):
        read_embeddings(tmp_path / "folder", _IMAGES)


def test_a_state_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv.part.state")
    with pytest.raises(FileAccessError, match="got a pipe or a device"):
        RunState.read(tmp_path / "t.csv.part.state")


def test_a_bound_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with open_regular(tmp_path / "file", "name a file", most=5) as stream:
        assert stream.read() == b"12345"
    with pytest.raises(FileFormatError, match=r"/file: expected at most 4 bytes, got 5$"):
        open_regular(tmp_path / "file", "name a file", most=4)


@pytest.mark.parametrize(
    ("error", "line"),
    [(MemoryError(), "MemoryError"), (ValueError("two\nlines"), "two lines"), (KeyError(), "KeyError")],
)
def test_an_error_without_text_has_a_name(error: Exception, line: str) -> None:
    assert describe_error(error) == line


def test_an_error_without_text_at_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind

    monkeypatch.delenv("PREFIQS_DEBUG", raising=False)
    monkeypatch.setattr("prefiqs_ext.models.weights.fetch", fail)
    kind: type[PrefiqsError]
    for kind in (OutOfMemoryError, FileFormatError):
        assert Command(capsys)("weights", "fetch", "sface").err == f"Error: {kind.__name__}\n"
