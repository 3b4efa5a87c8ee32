"""A photo file to RGB levels: upright, three channels, 8 bits, whatever the file holds. Every failure is one line."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from prefiqs_ext.exceptions import FileFormatError, InputTypeError
from prefiqs_ext.utils.text import escape_unprintable

RGB = NDArray[np.uint8]
"""Levels 0-255, [H, W, 3], red first."""

MAX_PIXELS = 50_000_000
"""More is refused before decoding: a few kilobytes can declare an image that fills the memory."""
_MAX_BYTES = 1 << 30  # some decoders read the whole file first; 50 megapixels of 16-bit RGBA have 400 MB

# Pillow knows more. Left out are those that start other programs (EPS) and those that hold no photos.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "AVIF", "PPM")
_FORMATS_SHOWN = "JPEG, PNG, WebP, GIF, TIFF, BMP, JPEG 2000, AVIF or PPM"

_OVERSHOOT = 1e-3  # of floating levels, as in the Scorer
_MAX_REASON = 200

# Pillow logs some damage at ERROR; without a handler of the application's, Python would print that to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class UnreadableImage(FileFormatError):
    """A file that gives no image. `path` is the file, `reason` one line without it; str() has both."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(path, reason)  # both in args, so that it can be pickled
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read {escape_unprintable(os.fsdecode(self.path))}: {self.reason}"


def read_rgb(path: str | os.PathLike[str]) -> RGB:
    """The image in a file, as a person would see it. What the file holds decides, not its name.

    EXIF orientation is applied. Of an animation or a file of several pages: the first frame. Grey is repeated to three
    channels, 16-bit levels keep their upper 8 bits, floating ones must lie in [0, 1]. CMYK is converted plainly and
    colour profiles are not applied, as in the pipelines recognisers are trained with. What is transparent is black,
    like what an aligned crop shows from outside the photo.

    Warnings of the decoders are held back for as long as this runs, and for TIFF what goes to standard error. Both
    belong to the whole process, so other threads' are held back too. Threads may read at the same time.

    Args:
        path: a regular file.

    Returns:
        uint8 ``[H, W, 3]`` RGB, contiguous, writable, at most MAX_PIXELS pixels.

    Raises:
        TypeError: for what is no path.
        UnreadableImage: for whatever reason there is no image: missing, not permitted, not a regular file, empty,
            too large, in an unknown format, damaged or cut off.
    """
    name = path_name(path, "; an image's bytes go to decode_rgb")
    with _refusals(path), _open_regular(name) as stream:
        return _decode(stream)


def decode_rgb(data: bytes, name: str) -> RGB:
    """As :func:`read_rgb`, of a file's content; `name` stands for the path in errors."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InputTypeError(f"expected the bytes of an image file, got {type(data).__name__}; a path goes to read_rgb")
    path_name(name)
    with _refusals(name):
        if not data:
            raise _Refused("the file is empty")
        return _decode(io.BytesIO(data))


def hash_file(path: str | os.PathLike[str]) -> bytes:
    """SHA-256 of an image file's content. TypeError, UnreadableImage: as :func:`read_rgb` opens it."""
    found = hashlib.sha256()
    name = path_name(path)
    with _refusals(path), _open_regular(name) as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.digest()


def path_name(path: str | os.PathLike[str], remedy: str = "") -> str:
    """A path as text. TypeError for what is none, bytes and the numbers of open files included."""
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(name, str):
        raise InputTypeError(f"expected a path, str or os.PathLike[str], got {type(path).__name__}{remedy}")
    return name


class _Refused(Exception):
    """What this module itself finds wrong, in one line."""


def _open_regular(path: str) -> IO[bytes]:
    """Opens without waiting for a writer at the other end of a pipe, and looks at what was opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise _Refused("expected a file, got a folder")
        if not stat.S_ISREG(status.st_mode):
            raise _Refused("expected a regular file, got a pipe or a device")
        if not status.st_size:
            raise _Refused("the file is empty")
        if status.st_size > _MAX_BYTES:
            raise _Refused(f"expected at most {_MAX_BYTES / 1e6:.0f} MB, got {status.st_size / 1e6:.0f} MB")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def _refusals(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever goes wrong inside is an UnreadableImage; decoders' warnings are held back."""
    try:
        with _no_warnings:
            yield
    except _Refused as error:
        raise UnreadableImage(path, str(error)) from None
    except UnidentifiedImageError:
        raise UnreadableImage(path, f"expected {_FORMATS_SHOWN}, got something else or a damaged header") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(path, f"expected at most {MAX_PIXELS / 1e6:g} megapixels, got far more") from None
    except Exception as error:  # decoders meet hostile bytes and raise nearly anything: struct.error, SyntaxError, ...
        raise UnreadableImage(path, _reason(error)) from error


class _Together:
    """A context of the whole process, entered by the first thread that asks for it and left by the last."""

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._users = 0
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lock = threading.Lock()
        if self._users:  # threads that are not here
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
def _ignored_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _closed_stderr() -> Iterator[None]:
    """libtiff itself writes what it dislikes to the process's standard error; Pillow cannot be asked to stop it."""
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


_no_warnings, _no_stderr = _Together(_ignored_warnings), _Together(_closed_stderr)


@functools.cache
def _formats() -> list[str]:
    """Those of _FORMATS that this build of Pillow has; AVIF came late."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _decode(stream: IO[bytes]) -> RGB:
    with Image.open(stream, formats=_formats()) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _Refused(
                f"expected at most {MAX_PIXELS / 1e6:g} megapixels, got {width} x {height} = {width * height / 1e6:.0f}"
            )
        with _no_stderr if image.format == "TIFF" else nullcontext():
            image.load()
        _turn_upright(image)
        return _rgb(image)


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # damaged EXIF beside a good picture: as it is
        return


def _rgb(image: Image.Image) -> RGB:
    mode = image.mode
    if mode.startswith("I;16"):
        levels = np.array(image)
        key = image.info.get("transparency")  # of a PNG: the one transparent level
        if isinstance(key, int):
            levels[levels == key] = 0
        return _grey((levels >> 8).astype(np.uint8))
    if mode == "I" and image.format == "PPM":  # which Pillow stretches to 16 bits
        return _grey((np.array(image).clip(0, 65535) >> 8).astype(np.uint8))
    if mode == "F":
        return _grey(_from_floats(np.array(image)))
    if mode == "I":
        raise _Refused("expected 8 or 16 bits a channel, got 32-bit or signed integers; save it with 8 or 16")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGB", image.size)
        background.paste(image, mask=image.getchannel("A"))
        image = background
    return np.array(image.convert("RGB"))


def _from_floats(levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    least, most = float(levels.min()), float(levels.max())
    if not (least >= -_OVERSHOOT and most <= 1 + _OVERSHOOT):  # NaN fails too
        raise _Refused(f"expected floating levels in [0, 1], got {least:g} to {most:g}; save it with 8 or 16 bits")
    return (levels.clip(0, 1) * 255).round().astype(np.uint8)


def _grey(levels: NDArray[np.uint8]) -> RGB:
    return np.repeat(levels[..., None], 3, axis=2)


def _reason(error: Exception) -> str:
    """The cause in one line of bounded length, whatever the decoder has put into it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return escape_unprintable(" ".join(text.split()) or type(error).__name__)[:_MAX_REASON]
