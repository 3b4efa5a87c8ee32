"""A file that grows as FILE.part and gets its name when it is complete, and standard output with the same methods."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

from prefiqs_ext.exceptions import FileAccessError
from prefiqs_ext.utils.atomic_write import refuse_folder, replace_durably, sync_folder_of
from prefiqs_ext.utils.os_errors import build_write_error, explain_write_errors
from prefiqs_ext.utils.text import format_path

NPY_HEADER_BYTES = 128
"""The length of what :func:`format_npy_header` gives."""


class PartialFile:
    """A file under construction: FILE.part, open, and locked until it is closed.

    Every method that touches the disk raises FileAccessError, which names the file, when that fails.

    Args:
        file: The name of the finished file; None for a temporary file without a name.
        suffix: What follows the name until the file is complete.

    Attributes:
        file: The name of the finished file, or None.
        part: The name until then; None when it is complete, or for a temporary file.
        stream: The open file.

    Raises:
        FileAccessError: The file cannot be written, or another process is writing it.
    """

    def __init__(self, file: Path | None, suffix: str = ".part") -> None:
        self.file = file
        self.part = None if file is None else add_suffix(file, suffix)
        self._named = False  # whether a power cut leaves the name
        self.stream: IO[bytes] = self._open()

    def _open(self) -> IO[bytes]:
        with self._explain_errors():
            if self.file is None or self.part is None:
                return tempfile.TemporaryFile()
            refuse_folder(self.file)
            while True:
                stream = self._lock(os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666), self.part)
                if stream is not None:
                    return stream

    def _lock(self, descriptor: int, path: Path) -> IO[bytes] | None:
        """Locks a file that was opened by this name; None if the name is another file's by now."""
        stream = os.fdopen(descriptor, "r+b")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another run may have renamed or removed it between the opening and the locking.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return stream
        except BlockingIOError:
            stream.close()
            part = format_path(str(self.part))
            raise FileAccessError(f"{part} is being written by another run: wait for it or end it") from None
        except BaseException:
            stream.close()
            raise
        stream.close()
        return None

    def take_back(self, size: int) -> None:
        """Makes the finished file the part again, where an earlier run had renamed it and ended soon after.

        Args:
            size: Its bytes. A file of another size is not this run's.
        """
        if self.file is None or self.part is None or self.size:
            return
        with self._explain_errors(), suppress(FileNotFoundError):
            stream = self._lock(os.open(self.file, os.O_RDWR), self.file)
            if stream is None:
                return
            if os.fstat(stream.fileno()).st_size != size:
                stream.close()
                return
            os.replace(self.file, self.part)
            self.stream.close()
            self.stream, self._named = stream, False

    @property
    def size(self) -> int:
        """Bytes that have reached the operating system. What is still buffered does not count: flush first."""
        with self._explain_errors():
            return os.fstat(self.stream.fileno()).st_size

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        with self._explain_errors():
            self.stream.write(data)

    def flush(self) -> None:
        """Hands what is buffered to the operating system."""
        with self._explain_errors():
            self.stream.flush()

    def truncate(self, size: int) -> None:
        """Cuts the file to `size` bytes and continues from there."""
        with self._explain_errors():
            self.stream.truncate(size)
            self.stream.seek(size)

    def overwrite_start(self, data: bytes) -> None:
        """Replaces the first bytes of the file."""
        self.flush()
        with self._explain_errors():
            os.pwrite(self.stream.fileno(), data, 0)

    def sync(self) -> None:
        """Brings everything to the disk, the name too, where it survives a power cut."""
        self.flush()
        if self.part is not None:
            with self._explain_errors():
                os.fsync(self.stream.fileno())
            if not self._named:
                sync_folder_of(self.part)
                self._named = True

    def complete(self) -> None:
        """Gives the file its final name. It stays locked until it is closed."""
        with self._explain_errors():
            if self.part is not None and self.file is not None:
                replace_durably(self.stream, self.part, self.file)
                self.part = None

    def discard(self) -> None:
        """Closes the file and removes it, unless it is complete."""
        try:
            if self.part is not None:
                with self._explain_errors():
                    self.part.unlink(missing_ok=True)
        finally:
            self.part = None
            self.close()

    def close(self) -> None:
        """Closes the file. FILE.part stays where it is, unless it is empty."""
        if self.stream.closed:
            return
        with suppress(OSError):  # of bytes that did not fit; that was said when they were written
            self.stream.flush()
        with suppress(OSError):
            if self.part is not None and not self.size:
                self.part.unlink()
        with suppress(OSError):
            self.stream.close()

    def _explain_errors(self) -> AbstractContextManager[None]:
        if self.part is None:
            return explain_write_errors("a temporary file", remedy="point TMPDIR to another folder")
        return explain_write_errors(format_path(str(self.part)))


class StandardOutput:
    """Standard output as bytes, with those methods of PartialFile that make sense for it.

    Raises:
        FileAccessError: It is closed.
    """

    size = 0

    def __init__(self) -> None:
        if sys.stdout is None:
            raise FileAccessError("cannot write standard output (it is closed); name a file, or open it")
        sys.stdout.flush()
        self.stream = sys.stdout.buffer

    def write(self, data: bytes) -> None:
        """Writes bytes."""
        with self._explain_errors():
            self.stream.write(data)

    def flush(self) -> None:
        """Hands what is buffered to the operating system."""
        with self._explain_errors():
            self.stream.flush()

    def sync(self) -> None:
        """Does the same as flush."""
        self.flush()

    def truncate(self, size: int) -> None:
        """Does nothing: output begins where it begins."""

    def take_back(self, size: int) -> None:
        """Does nothing: there is no earlier run."""

    def complete(self) -> None:
        """Does the same as flush."""
        self.flush()

    def discard(self) -> None:
        """Does nothing: what is written is written."""

    def close(self) -> None:
        """Does nothing: standard output belongs to the process."""

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What did not fit is still buffered; Python would try again at its end, and fail with a traceback.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise  # the reader wants no more: no failure to report
            raise build_write_error("standard output", error) from error


def add_suffix(file: Path, suffix: str) -> Path:
    """Appends to a file's name: ``t.csv`` and ``.part`` give ``t.csv.part``, in the same folder."""
    return file.with_name(file.name + suffix)


def format_npy_header(rows: int, columns: int) -> bytes:
    """Formats the first bytes of a .npy file that holds a float32 array [rows, columns].

    The format is NumPy's 1.0 (numpy.lib.format). The header always has NPY_HEADER_BYTES bytes, so that the number of
    rows can be put in when it is known, at the end.
    """
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}"
    prefix = b"\x93NUMPY\x01\x00" + struct.pack("<H", NPY_HEADER_BYTES - 10)
    return prefix + text.encode().ljust(NPY_HEADER_BYTES - 11) + b"\n"
