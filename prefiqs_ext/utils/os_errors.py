"""How the package says that a file or folder cannot be read or written: which one, why, and what to do.

For example: ``cannot write out/scores.csv (Permission denied); name another place``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from prefiqs_ext.exceptions import FileAccessError, MissingFileError, PrefiqsError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of the operating system that mean: no room left on the disk, or in this user's share of it."""


@contextmanager
def explain_read_errors(name: str, *, remedy: str = "check the path and its permissions") -> Iterator[None]:
    """Turns an OSError of the operating system into one line that names the file.

    Args:
        name: The path as a person reads it, from :func:`prefiqs_ext.utils.text.format_path`.
        remedy: What the user can do.

    Raises:
        MissingFileError: There is no such file.
        FileAccessError: The file is there but cannot be read.
    """
    try:
        with _convert_null_bytes():
            yield
    except PrefiqsError:
        raise
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        kind = MissingFileError if missing else FileAccessError
        raise kind(f"cannot read {name} ({error.strerror or error}); {remedy}") from error


@contextmanager
def explain_write_errors(name: str, *, remedy: str = "name another place") -> Iterator[None]:
    """Turns an OSError of the operating system into the one line of :func:`build_write_error`.

    Raises:
        FileAccessError: The file or folder cannot be written.
    """
    try:
        with _convert_null_bytes():
            yield
    except PrefiqsError:
        raise
    except OSError as error:
        raise build_write_error(name, error, remedy=remedy) from error


def build_write_error(name: str, error: OSError, *, remedy: str = "name another place") -> FileAccessError:
    """Builds the error that says what cannot be written.

    Args:
        name: The path as a person reads it, or another name such as "standard output".
        error: What the operating system raised.
        remedy: What the user can do. On a full disk, "make room there" comes first.
    """
    if error.errno in FULL_DISK:
        remedy = f"make room there, or {remedy}"
    return FileAccessError(f"cannot write {name} ({error.strerror or error}); {remedy}")


@contextmanager
def _convert_null_bytes() -> Iterator[None]:
    """Turns the ValueError that Python raises for a path with a NUL byte into an OSError."""
    try:
        yield
    except ValueError as error:
        if "embedded null" not in str(error):
            raise
        raise OSError(errno.EINVAL, "a NUL byte in the name") from error
