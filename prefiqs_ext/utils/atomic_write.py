"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from prefiqs_ext.exceptions import FileAccessError
from prefiqs_ext.utils.text import format_path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, or of a share of it, that has no room."""


@contextmanager
def atomic_write(path: str) -> Iterator[IO[bytes]]:
    """Opens PATH.part at once, so that a place that cannot be written is found before the work, and renames it at the
    end. An exception inside removes it; what stood under the name stays. Neither is half there after a power cut.

    Raises ValueError where the place cannot be written, or when the disk fills.
    """
    if not path or os.path.isdir(path):
        raise FileAccessError(
            f"expected a file to write, got {'the folder ' + format_path(path) if path else 'no name'}"
        )
    part = Path(f"{path}.part")
    try:
        file = part.open("wb")
    except OSError as error:
        raise FileAccessError(f"cannot write {format_path(path)} ({error.strerror}); name another place") from error
    try:
        with file:
            yield file
            replace_durably(file, part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.errno in FULL:
            raise FileAccessError(f"cannot write {format_path(path)} ({error.strerror})") from error
        raise


def replace_durably(file: IO[bytes], part: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Gives the open file `part` the name `path` so that after a power cut the name has all of it, or what it had."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(part, path)
    with suppress(OSError):  # some file systems cannot, and keep renames in order anyway
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def make_output_folder(path: Path) -> None:
    """Makes it, so that a place that cannot be written is found before the work. ValueError where it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path).close()
    except OSError as error:
        raise FileAccessError(
            f"cannot write {format_path(str(path))} ({error.strerror}); name another folder"
        ) from error


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Each file by its name, whole; as atomic_write."""
    for name, content in contents.items():
        with atomic_write(str(folder / name)) as file:
            file.write(content)
