"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.os_errors import FULL_DISK, build_write_error, explain_write_errors
from prefiqs_ext.utils.text import format_path


@contextmanager
def atomic_write(path: str) -> Iterator[IO[bytes]]:
    """Opens a file that gets its name only at the end, when everything is written.

    The bytes go to ``PATH.part``, which is opened at once: a place that cannot be written is found before the work.
    At the end the part is renamed to PATH. If the body raises, the part is removed and an earlier file PATH stays as it
    was. After a power cut there is either the complete new file or the old one.

    Args:
        path: The name of the finished file.

    Yields:
        The open file, for bytes.

    Raises:
        InputError: The path is empty.
        FileAccessError: The file cannot be written, or the disk is full.
    """
    if not path:
        raise InputError("expected the name of a file to write, got an empty one")
    name, part = format_path(path), Path(f"{path}.part")
    with explain_write_errors(name):
        refuse_folder(path)
        file = part.open("wb")
    try:
        yield file
        with explain_write_errors(name):
            replace_durably(file, part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        # Any other OSError of the body may have to do with other files.
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise build_write_error(name, error) from error
        raise
    finally:
        with suppress(OSError):  # of bytes that did not fit; that has been said
            file.close()


def refuse_folder(path: str | os.PathLike[str]) -> None:
    """Raises the operating system's own error where a file is to be written and a folder has the name."""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")


def replace_durably(file: IO[bytes], part: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Renames the open file `part` to `path`, so that not even a power cut leaves half a file under that name.

    Raises:
        OSError: As the operating system raises it; callers name the file.
    """
    file.flush()
    os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder_of(path)


def sync_folder_of(path: str | os.PathLike[str]) -> None:
    """Brings a new name of a file to the disk, where it survives a power cut."""
    with suppress(OSError):  # some file systems cannot sync a folder, and keep renames in order anyway
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def make_output_folder(path: Path) -> None:
    """Makes a folder and tries to write in it, so that a wrong place is found before the work.

    Raises:
        FileAccessError: The folder cannot be made or written.
    """
    with explain_write_errors(format_path(str(path)), remedy="name another folder"):
        path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path).close()


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes several files into a folder, each one as :func:`atomic_write` does.

    Args:
        folder: Where they go. It must exist.
        contents: The bytes of each file by its name.
    """
    for name, content in contents.items():
        with atomic_write(str(folder / name)) as file:
            file.write(content)
