"""From a photo file to RGB levels: upright, three channels, 8 bits, whatever the file has. Each failure is one line."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from prefiqs_ext.exceptions import FileAccessError, FileFormatError, InputTypeError
from prefiqs_ext.utils.budget import MAX_IMAGE_BYTES, MAX_PARTS, MAX_PIXELS, MAX_SCANNED_PIXELS
from prefiqs_ext.utils.check_arguments import check_path
from prefiqs_ext.utils.levels import OVERSHOOT
from prefiqs_ext.utils.regular_file import open_regular
from prefiqs_ext.utils.text import escape_unprintable

RGB = NDArray[np.uint8]
"""Levels 0-255, [H, W, 3], red first."""

# Pillow knows more. Left out are those that start other programs (EPS) and those that hold no photos.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "AVIF", "PPM")
_FORMATS_SHOWN = "JPEG, PNG, WebP, GIF, TIFF, BMP, JPEG 2000, AVIF or PPM"

_MAX_REASON_LENGTH = 200

# Pillow logs some damage at ERROR; without a handler of the application's, Python would print that to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class UnreadableImage(FileFormatError):
    """A file whose content is no image: it is empty, damaged, too large, in an unknown format, ...

    Attributes:
        path: The file.
        reason: What is wrong, in one line without the path. str() of the error has both.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(path, reason)  # both in args, so that it can be pickled
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read {escape_unprintable(os.fsdecode(self.path))}: {self.reason}"


def read_rgb(path: str | os.PathLike[str]) -> RGB:
    """Reads an image file as a person would see it. Its content decides what it is, not its name.

    EXIF orientation is applied. Of an animation, or a file of several pages, the first frame is read. Grey is repeated
    to three channels, 16-bit levels keep their upper 8 bits, and floating levels must be in [0, 1]. CMYK is converted
    plainly and colour profiles are not applied, as in the pipelines that recognisers are trained with. Transparent
    pixels become black, as pixels outside the photo do in an aligned crop.

    While this runs, warnings of the decoders are held back, and for TIFF also what goes to standard error. Both belong
    to the whole process, so those of other threads are held back too. Several threads may read at the same time.

    Args:
        path: A regular file.

    Returns:
        uint8 ``[H, W, 3]`` RGB, contiguous, writable, at most MAX_PIXELS pixels.

    Raises:
        InputTypeError: `path` is no path.
        MissingFileError: There is no such file.
        FileAccessError: It cannot be opened: it is not permitted, a folder, a pipe or a device.
        UnreadableImage: Its content is no image: it is empty, too large, in an unknown format, damaged or cut off.
    """
    name = check_path(path, "; an image's bytes go to decode_rgb")
    with _explain_failures(path), _open_image(name) as stream:
        return _decode(stream)


def decode_rgb(data: bytes, name: str) -> RGB:
    """Decodes the content of an image file, as :func:`read_rgb` does.

    Args:
        data: The bytes of the file.
        name: Stands for the path in errors.

    Returns:
        uint8 ``[H, W, 3]`` RGB.

    Raises:
        InputTypeError: `data` are no bytes, or `name` is no text.
        UnreadableImage: They are no image.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InputTypeError(f"expected the bytes of an image file, got {type(data).__name__}; a path goes to read_rgb")
    check_path(name)
    with _explain_failures(name):
        _check_size(len(data))
        return _decode(io.BytesIO(data))


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """Reads the content of an image file, for :func:`decode_rgb`.

    Raises:
        InputTypeError: `path` is no path.
        MissingFileError, FileAccessError: It cannot be opened, as for :func:`read_rgb`.
        UnreadableImage: It is empty or too large.
    """
    name = check_path(path)
    with _explain_failures(path), _open_image(name) as stream:
        return stream.read()


def hash_file(path: str | os.PathLike[str]) -> bytes:
    """Computes the SHA-256 of an image file's content.

    Raises:
        InputTypeError: `path` is no path.
        MissingFileError, FileAccessError: It cannot be opened, as for :func:`read_rgb`.
        UnreadableImage: It is empty or too large.
    """
    found = hashlib.sha256()
    name = check_path(path)
    with _explain_failures(path), _open_image(name) as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.digest()


def get_reason(error: UnreadableImage | FileAccessError) -> str:
    """Gets what is wrong with a file that :func:`read_rgb` does not read, in one line without its path."""
    if isinstance(error, UnreadableImage):
        return error.reason
    return _shorten_reason(error.__cause__ if isinstance(error.__cause__, OSError) else error)


class _Refusal(Exception):
    """What this module itself finds wrong with a file, in one line."""


def _open_image(path: str) -> IO[bytes]:
    stream = open_regular(path, "name an image file")
    try:
        _check_size(os.fstat(stream.fileno()).st_size)
        return stream
    except BaseException:
        stream.close()
        raise


def _check_size(size: int) -> None:
    if not size:
        raise _Refusal("the file is empty")
    if size > MAX_IMAGE_BYTES:
        raise _Refusal(f"expected at most {MAX_IMAGE_BYTES / 1e6:.0f} MB, got {size / 1e6:.0f} MB")


@contextmanager
def _explain_failures(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns all but a FileAccessError into an UnreadableImage, and holds the decoders' warnings back."""
    try:
        with _without_warnings:
            yield
    except FileAccessError:
        raise
    except _Refusal as error:
        raise UnreadableImage(path, str(error)) from None
    except UnidentifiedImageError:
        raise UnreadableImage(path, f"expected {_FORMATS_SHOWN}, got something else or a damaged header") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(path, f"expected at most {MAX_PIXELS / 1e6:g} megapixels, got far more") from None
    except Exception as error:  # decoders meet hostile bytes and raise nearly anything: struct.error, SyntaxError, ...
        raise UnreadableImage(path, _shorten_reason(error)) from error


class _SharedContext:
    """A context of the whole process: the first thread that needs it enters it, the last one leaves it."""

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._users = 0
        os.register_at_fork(after_in_child=self._forget_threads)

    def _forget_threads(self) -> None:
        """Runs in a forked process, which has only the thread that forked."""
        self._lock = threading.Lock()
        if self._users:
            self._users = 0
            self._context.__exit__(None, None, None)

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._context = self._make()
                self._context.__enter__()
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._context.__exit__(None, None, None)


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """Sends standard error nowhere: libtiff writes its complaints there, and Pillow cannot stop it."""
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing to keep clean
        kept = None
    if kept is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
    try:
        yield
    finally:
        if kept is not None:
            os.dup2(kept, 2)
            os.close(kept)


_without_warnings, _without_stderr = _SharedContext(_ignore_warnings), _SharedContext(_silence_stderr)


@functools.cache
def _list_formats() -> list[str]:
    """Lists those of _FORMATS that this build of Pillow has; AVIF came late."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _decode(stream: IO[bytes]) -> RGB:
    with Image.open(stream, formats=_list_formats()) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _Refusal(
                f"expected at most {MAX_PIXELS / 1e6:g} megapixels, got {width} x {height} = {width * height / 1e6:.0f}"
            )
        if image.format in ("JPEG", "MPO"):
            _refuse_many_scans(stream, width * height)
        with _without_stderr if image.format == "TIFF" else nullcontext():
            image.load()
        _turn_upright(image)
        return _convert_to_rgb(image)


# A marker of a JPEG, which is a byte after 0xFF. Those that stand inside of a scan are left out.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START, _END, _SCAN, _EMPTY = 0xD8, 0xD9, 0xDA, 0x01


def _refuse_many_scans(stream: IO[bytes], pixels: int) -> None:
    """Refuses a JPEG that stores its picture in very many passes. Each takes as long as a picture, and few bytes.

    Source: ITU-T T.81, annex B.
    """
    place = stream.tell()
    stream.seek(0)
    data = stream.read()
    stream.seek(place)
    at, scans = 0, 0
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, at)
        kind = _END if found is None else data[found.start() + 1]
        if found is None or kind == _END:  # what follows, such as a video, is not decoded
            return
        at = found.end()
        if kind not in (_START, _EMPTY):
            at += int.from_bytes(data[at : at + 2], "big")
        scans += kind == _SCAN
        if scans * pixels > MAX_SCANNED_PIXELS:
            break
    raise _Refusal(f"expected a JPEG of at most {max(1, MAX_SCANNED_PIXELS // pixels)} scans, got more; save it again")


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # damaged EXIF beside a good picture: as it is
        return


def _convert_to_rgb(image: Image.Image) -> RGB:
    mode = image.mode
    if mode.startswith("I;16"):
        levels = np.array(image)
        key = image.info.get("transparency")  # of a PNG: the one transparent level
        if isinstance(key, int):
            levels[levels == key] = 0
        return _repeat_grey((levels >> 8).astype(np.uint8))
    if mode == "I" and image.format == "PPM":  # which Pillow stretches to 16 bits
        return _repeat_grey((np.array(image).clip(0, 65535) >> 8).astype(np.uint8))
    if mode == "F":
        return _repeat_grey(_convert_floats(np.array(image)))
    if mode == "I":
        raise _Refusal("expected 8 or 16 bits per channel, got 32-bit or signed integers; save it with 8 or 16")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGB", image.size)
        background.paste(image, mask=image.getchannel("A"))
        image = background
    return np.array(image.convert("RGB"))


def _convert_floats(levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    least, most = float(levels.min()), float(levels.max())
    if not (least >= -OVERSHOOT and most <= 1 + OVERSHOOT):  # NaN fails too
        raise _Refusal(f"expected floating levels in [0, 1], got {least:g} to {most:g}; save it with 8 or 16 bits")
    return (levels.clip(0, 1) * 255).round().astype(np.uint8)


def _repeat_grey(levels: NDArray[np.uint8]) -> RGB:
    return np.repeat(levels[..., None], 3, axis=2)


def _shorten_reason(error: Exception) -> str:
    """Shortens the cause to one line of bounded length, whatever the decoder has put into it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return escape_unprintable(" ".join(text.split()) or type(error).__name__)[:_MAX_REASON_LENGTH]
