"""Opens files that others have made. Pipes and devices are refused: nothing waits for them or reads them for ever."""

from __future__ import annotations

import errno
import os
import stat
from typing import IO

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.text import format_path


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
