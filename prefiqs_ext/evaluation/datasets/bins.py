"""InsightFace's .bin, a pickle of encoded images and truth values. Nothing of it is imported or called.

Images are bytes or NumPy arrays of bytes, labels are bool, NumPy's scalars or an array. What NumPy's pickles name, in
protocols 0 to 5, is stood for by functions of this file; any other name is refused.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from prefiqs_ext.evaluation.datasets.crops import Encoded
from prefiqs_ext.evaluation.datasets.readers import PairList, pair_list
from prefiqs_ext.exceptions import FileFormatError

_BIN_BYTES = 4 << 30

# What lists of bytes, truth values and NumPy's arrays need. REDUCE and BUILD meet nothing but what find_class gives.
_HARMLESS = (
    {"PROTO", "FRAME", "STOP", "MARK", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "NONE"}
    | {
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "NEWTRUE",
        "NEWFALSE",
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
    }
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "MEMOIZE"}
    | {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"}
)
_PLAIN = re.compile("b1|[iu][1248]")
_SAVE = "pickle.dump(([bytes(x) for x in images], [bool(x) for x in labels]), file)"


def read_bin(file: str | os.PathLike[str]) -> PairList:
    """Images 2k and 2k + 1, from 0, are pair k.

    Refuses, before anything is loaded, a pickle that needs more than lists, bytes, truth values and plain arrays.

    Raises:
        ValueError: for anything else, in one line.
    """
    size = os.path.getsize(file)
    if size > _BIN_BYTES:
        raise FileFormatError(f"{file}: expected at most {_BIN_BYTES} bytes, got {size}")
    data = Path(file).read_bytes()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            # A memo's place allocates; a real one is below the count of objects, hence of bytes.
            far = opcode.name in ("PUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= size
            if opcode.name not in _HARMLESS or far:
                raise FileFormatError(f"a pickle with {opcode.name}, which image lists do not need")
        images, labels = _Unpickler(data).load()
        encoded = [Encoded(_image(image), f"image {i} of {file}") for i, image in enumerate(_items(images))]
        mated = [_label(label) for label in _items(labels)]
        if len(encoded) != 2 * len(mated):
            raise FileFormatError(f"twice as many images as labels are needed, it has {len(encoded)} and {len(mated)}")
    except Exception as error:  # whatever damaged bytes lead pickle to
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise FileFormatError(
            f"{file}: expected InsightFace's (images, labels); {reason}. If you trust it, save it with {_SAVE}"
        ) from None
    return pair_list(file, encoded, np.arange(len(encoded)).reshape(-1, 2).tolist(), mated)


class _Type:
    """A NumPy dtype of plain numbers."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = _text(code)
        if not _PLAIN.fullmatch(self.code):
            raise FileFormatError(f"it has arrays of {self.code[:20]!r}, not of plain numbers")
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if _text(state[1]) == ">" else "<"


class _Array:
    """A NumPy array of plain numbers, its bytes as they are in the file."""

    def fill(self, kind: _Type, shape: tuple[int, ...], data: bytes) -> _Array:
        self.shape = shape
        self.kind = np.dtype(kind.order + kind.code)
        self.data = data
        if min(shape, default=1) < 0 or prod(shape) * self.kind.itemsize != len(data):
            raise FileFormatError(f"an array of {list(shape)} has {len(data)} bytes")
        return self

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, _, data = state
        self.fill(kind, shape, data)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")  # 8-bit strings of Python 2
        self._left = 2 * len(data)
        self._known: dict[str, Callable[..., Any]] = {
            "numpy.dtype": _Type,
            "numpy.ndarray": _Array,
            "_codecs.encode": self._encode,
            "__builtin__.bytes": lambda: b"",
            "builtins.bytes": lambda: b"",
        }
        for core in ("numpy.core", "numpy._core"):  # before 2.0 and since
            self._known[f"{core}.multiarray._reconstruct"] = lambda *_: _Array()
            self._known[f"{core}.multiarray.scalar"] = self._scalar
            self._known[f"{core}.numeric._frombuffer"] = self._from_buffer

    def find_class(self, module: str, name: str) -> Any:
        known = self._known.get(f"{module}.{name}")
        if known is None:
            raise FileFormatError(f"it names {module}.{name}, which is not loaded")
        return known

    def _copied(self, data: bytes | bytearray) -> bytes:
        """Few bytes may ask for one long string to be copied again and again."""
        self._left -= len(data)
        if self._left < 0:
            raise FileFormatError("it copies more bytes than it has")
        return bytes(data)

    def _encode(self, text: str, encoding: str | bytes) -> bytes:
        """Of protocols below 3, which have no bytes."""
        if _text(encoding) != "latin1":
            raise FileFormatError("it has text in another encoding than latin1")
        return self._copied(text.encode("latin-1"))

    def _from_buffer(self, data: bytes | bytearray, kind: _Type, shape: tuple[int, ...], *_: object) -> _Array:
        return _Array().fill(kind, shape, self._copied(data))

    def _scalar(self, kind: _Type, data: bytes) -> int:
        array = _Array().fill(kind, (), data)
        return int(np.frombuffer(array.data, array.kind)[0])


def _items(found: object) -> list[Any]:
    if isinstance(found, _Array) and len(found.shape) == 1:
        return list(np.frombuffer(found.data, found.kind).tolist())
    if not isinstance(found, list):
        raise FileFormatError("two lists are needed")
    return found


def _image(image: object) -> bytes:
    if isinstance(image, _Array) and image.kind == np.uint8:
        if max(image.shape, default=0) != prod(image.shape):
            raise FileFormatError(f"an image of it is an array {list(image.shape)}: encode it first, as PNG")
        return image.data
    if not isinstance(image, bytes):
        raise FileFormatError("images are bytes, or arrays of them")
    return image


def _label(label: object) -> bool:
    if not (isinstance(label, int) and label in (0, 1)):
        raise FileFormatError("labels are true or false")
    return bool(label)


def _text(word: str | bytes) -> str:
    return word.decode("latin-1") if isinstance(word, bytes) else word
