"""Opens files that others have made. Pipes and devices are refused: nothing waits for them or reads them for ever."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import IO

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.text import format_path

MARK = b"\xef\xbb\xbf"
"""UTF-8's byte order mark, with which some editors begin a text."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
LONGEST_LINE = 1 << 16
"""The most bytes of a line of a text file."""


def open_regular(
    path: str | os.PathLike[str],
    remedy: str,
    *,
    most: int | None = None,
    if_denied: str = "check the path and its permissions",
) -> IO[bytes]:
    """Opens a regular file for its bytes. It never waits, as ``open`` does for the writer of a pipe.

    Args:
        path: The file, or a link to it.
        remedy: What the user can do where this is no regular file: "name an image file".
        most: The most bytes that the file may have. None: as many as it has, for readers that hold a part at a time.
        if_denied: What the user can do where there is no such file, or it cannot be opened.

    Raises:
        MissingFileError: There is no such file.
        FileAccessError: It cannot be opened, or is a folder, a pipe or a device.
        FileFormatError: It has more bytes than `most`.
    """
    name = format_path(os.fspath(path))
    with explain_read_errors(name, remedy=if_denied):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        with explain_read_errors(name, remedy=remedy):
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, "expected a file, got a folder")
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "expected a regular file, got a pipe or a device")
        if most is not None and status.st_size > most:
            raise FileFormatError(f"{name}: expected at most {most} bytes, got {status.st_size}")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_lines(file: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Reads the lines of a text file that are not blank, as editors of all systems save them.

    A byte order mark and CRLF do no harm. Names that are not UTF-8 are kept as os.fsdecode gives them.

    Args:
        file: The path of the file.

    Yields:
        Each line's number, from 1, and the line without its end.

    Raises:
        MissingFileError: There is no such file.
        FileAccessError: It cannot be read, or is a folder, a pipe or a device.
        FileFormatError: It is no text: UTF-16, NUL bytes, or a line of more than 64 KiB.
    """
    name = format_path(os.fspath(file))
    with open_regular(file, "name a text file") as stream, explain_read_errors(name):
        number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            if number == 1 and line.startswith(_UTF_16):
                raise FileFormatError(f"{name}: expected UTF-8 text, got UTF-16; save it as UTF-8")
            if b"\0" in line or len(line) > LONGEST_LINE:
                found = "NUL bytes" if b"\0" in line else f"a line of more than {LONGEST_LINE} bytes"
                raise FileFormatError(f"{name}:{number}: expected text, got {found}")
            if number == 1:
                line = line.removeprefix(MARK)
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if line.strip():
                yield number, os.fsdecode(line)
