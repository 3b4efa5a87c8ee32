"""The images in tar and zip archives, one member after another; a tar is read as it comes, and never unpacked.

A member is an image if folders.py would take it for one: by its suffix, and not hidden. So of a WebDataset shard, the
images are read and what lies beside them (``.json``, ``.cls``) is left.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, cast

from prefiqs_ext.exceptions import FileAccessError, FileFormatError
from prefiqs_ext.files.folders import SUFFIXES, is_hidden
from prefiqs_ext.files.image import InputImage
from prefiqs_ext.files.remote import explain_remote_errors, open_input
from prefiqs_ext.utils.budget import FREE_BYTES, MAX_IMAGE_BYTES, MAX_INFLATION
from prefiqs_ext.utils.suffixes import ZIP, get_suffix
from prefiqs_ext.utils.text import format_untrusted

_TAR_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)
_ZIP_DAMAGE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError)  # no such method, a password, a name
_COMPRESSIONS: dict[bytes, Callable[[IO[bytes]], object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
"""What opens a compressed tar, by the first bytes of the file."""


def list_members(path: str) -> Iterator[InputImage]:
    """Lists the images in an archive.

    Args:
        path: A .tar, also compressed by gzip, bzip2 or xz, or a .zip; of this machine or an address.

    Yields:
        One image per member, in the order of the archive, called ``path/NAME``. What is wrong with the archive is one
        more, which has the archive's path and says so.

    Raises:
        FileAccessError: It was opened, and then could not be read on.
    """
    found = False
    try:
        with open_input(path, "name an archive") as stream, explain_remote_errors(path), _explain_damage():
            for member in (_list_zip if get_suffix(path) == ZIP else _list_tar)(path, stream):
                found = True
                yield member
    except FileFormatError as error:
        yield InputImage(path, problem=f"{'its end is lost: ' if found else ''}{error}")
    except FileAccessError as error:
        if found:
            raise
        yield InputImage(path, problem=str(error))
    else:
        if not found:
            yield InputImage(path, problem="expected images in the archive, found none")


def _list_zip(path: str, stream: IO[bytes]) -> Iterator[InputImage]:
    stream.seek(0, io.SEEK_END)
    budget = _InflationBudget(stream.tell())
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if not member.is_dir() and _is_image(member.filename):
                read = partial(_read_member, partial(archive.open, member), member.file_size, budget)
                yield InputImage(f"{path}/{member.filename}", read)


def _list_tar(path: str, stream: IO[bytes]) -> Iterator[InputImage]:
    start = stream.read(6)
    stream.seek(0)
    open_stream = next((each for magic, each in _COMPRESSIONS.items() if start.startswith(magic)), None)
    source: _Bounded | _Inflated
    if open_stream is None:
        source, mode = _Bounded(stream), "r:"
    else:
        source, mode = _Inflated(cast(IO[bytes], open_stream(stream)), stream), "r|"
    with tarfile.open(fileobj=cast(IO[bytes], source), mode=mode) as archive:  # type: ignore[call-overload]
        for member in archive:
            archive.members = []  # it would keep all of them
            if member.isreg() and not member.issparse() and _is_image(member.name):
                read = partial(_read_member, partial(archive.extractfile, member), member.size, None)
                yield InputImage(f"{path}/{member.name}", read)


class _InflationBudget:
    """What the members of an archive may have together, by the size of the archive."""

    def __init__(self, size: int) -> None:
        self._left = MAX_INFLATION * size + FREE_BYTES

    def charge(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise FileFormatError(f"expected members of at most {MAX_INFLATION} times the archive's size together")


class _Bounded:
    """A stream that gives no block larger than an image may be: names and headers of a tar are such blocks."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size > MAX_IMAGE_BYTES + tarfile.RECORDSIZE:
            raise FileFormatError(f"expected parts of at most {MAX_IMAGE_BYTES / 1e6:.0f} MB")
        return self._stream.read(size)


class _Inflated:
    """A decompressed stream that ends with an error where it is far larger than what it was made of."""

    def __init__(self, stream: IO[bytes], compressed: IO[bytes]) -> None:
        self._stream = _Bounded(stream)
        self._compressed = compressed
        self._count = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._count += len(data)
        if self._count > MAX_INFLATION * self._compressed.tell() + FREE_BYTES:
            raise FileFormatError(f"expected at most {MAX_INFLATION} times the archive's size, got far more")
        return data


def _is_image(name: str) -> bool:
    return get_suffix(name) in SUFFIXES and not any(map(is_hidden, name.split("/")))


def _read_member(open_member: Callable[[], IO[bytes] | None], size: int, budget: _InflationBudget | None) -> bytes:
    if size > MAX_IMAGE_BYTES:
        raise FileFormatError(f"expected at most {MAX_IMAGE_BYTES / 1e6:.0f} MB, got {size / 1e6:.0f} MB")
    if budget is not None:
        budget.charge(size)
    with _explain_damage():
        member = open_member()
        assert member is not None  # a regular file
        with member:
            data = member.read(size)
    if len(data) != size:
        raise FileFormatError(f"expected {size} bytes, the archive has {len(data)}")
    return data


@contextmanager
def _explain_damage() -> Iterator[None]:
    try:
        yield
    except FileFormatError:
        raise
    except (*_TAR_DAMAGE, *_ZIP_DAMAGE) as error:
        text = format_untrusted(error, 200) or type(error).__name__
        raise FileFormatError(f"expected a tar or zip archive, it is damaged ({text})") from error
