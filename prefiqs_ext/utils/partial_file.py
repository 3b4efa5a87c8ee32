"""A file that grows as FILE.part and gets its name when it is complete; standard output for who wants none."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from prefiqs_ext.exceptions import FileAccessError
from prefiqs_ext.utils.atomic_write import replace_durably
from prefiqs_ext.utils.text import format_path

NPY_HEADER_BYTES = 128


class PartialFile:
    """FILE.part, open and locked. OSError names the file that cannot be written.

    file: None for a temporary file without a name. suffix: what the name has until it is complete.

    Raises ValueError when another process has it open.
    """

    def __init__(self, file: Path | None, suffix: str = ".part") -> None:
        self.file = file
        self.part = None if file is None else beside(file, suffix)
        self.stream: IO[bytes] = self._open()

    def _open(self) -> IO[bytes]:
        with self._named():
            if self.file is None or self.part is None:
                return tempfile.TemporaryFile()
            if self.file.is_dir():
                raise FileAccessError(None, "it is a folder")
            stream = os.fdopen(os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise FileAccessError(
                f"{format_path(str(self.part))} is being written by another run: wait for it or end it"
            ) from None
        return stream

    @property
    def size(self) -> int:
        """Bytes written out; flush first."""
        return os.fstat(self.stream.fileno()).st_size

    def write(self, data: bytes) -> None:
        with self._named():
            self.stream.write(data)

    def flush(self) -> None:
        with self._named():
            self.stream.flush()

    def cut(self, size: int) -> None:
        """Goes on from this size."""
        with self._named():
            self.stream.truncate(size)
            self.stream.seek(size)

    def patch(self, data: bytes) -> None:
        """Overwrites the beginning."""
        self.flush()
        with self._named():
            os.pwrite(self.stream.fileno(), data, 0)

    def sync(self) -> None:
        """What is written stays after a power cut."""
        self.flush()
        if self.part is not None:
            with self._named():
                os.fsync(self.stream.fileno())

    def complete(self) -> None:
        """Gives the file its name."""
        with self._named():
            if self.part is not None and self.file is not None:
                replace_durably(self.stream, self.part, self.file)
        self.close()

    def discard(self) -> None:
        self.close()
        if self.part is not None:
            self.part.unlink(missing_ok=True)

    def close(self) -> None:
        with suppress(OSError):  # of bytes that did not fit: that was said when they were written
            self.stream.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            name = "a temporary file" if self.part is None else format_path(str(self.part))
            raise FileAccessError(f"cannot write {name} ({error.strerror or error})") from error


class StandardOutput:
    """Standard output as bytes, with what PartialFile has and it can do."""

    size = 0

    def __init__(self) -> None:
        sys.stdout.flush()
        self.stream = sys.stdout.buffer

    def write(self, data: bytes) -> None:
        with self._named():
            self.stream.write(data)

    def flush(self) -> None:
        with self._named():
            self.stream.flush()

    def sync(self) -> None:
        self.flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What did not fit is still buffered; Python would try again at its end, and fail with a traceback.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            raise FileAccessError(f"cannot write standard output ({error.strerror or error})") from error

    def cut(self, size: int) -> None:
        pass

    def complete(self) -> None:
        self.flush()

    def discard(self) -> None:
        pass

    def close(self) -> None:
        pass


def beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def npy_header(rows: int, columns: int) -> bytes:
    """The first bytes of a float32 [rows, columns] array in NumPy's format 1.0 (numpy.lib.format), always as many, so
    that the number of rows can be put in at the end."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}"
    prefix = b"\x93NUMPY\x01\x00" + struct.pack("<H", NPY_HEADER_BYTES - 10)
    return prefix + text.encode().ljust(NPY_HEADER_BYTES - 11) + b"\n"
