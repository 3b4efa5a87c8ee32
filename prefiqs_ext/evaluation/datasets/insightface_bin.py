"""Reads InsightFace's .bin, a pickle of encoded images and truth values, without importing or calling what it names.

Images are bytes or NumPy arrays of bytes. Labels are bool, NumPy scalars or one array. Functions of this file stand in
for the names that NumPy's pickles have, in protocols 0 to 5. Any other name is refused.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
from math import prod
from typing import TypeAlias

import numpy as np

from prefiqs_ext.evaluation.datasets.readers import PairList, make_pair_list
from prefiqs_ext.evaluation.datasets.sources import EncodedCrop
from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.utils.budget import MAX_BIN_BYTES
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.regular_file import open_regular
from prefiqs_ext.utils.text import describe_error, format_path, format_untrusted

_Words: TypeAlias = "str | bytes"

# The opcodes that lists of bytes, truth values and NumPy arrays need. REDUCE and BUILD can only call what find_class
# gives.
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
_REMEDY = "name a .bin file of InsightFace"
_SAVE = "pickle.dump(([bytes(x) for x in images], [bool(x) for x in labels]), file)"


def read_bin(file: str | os.PathLike[str]) -> PairList:
    """Read a .bin. Its images 2k and 2k + 1, counted from 0, are pair k.

    A pickle that needs more than lists, bytes, truth values and plain arrays is refused before anything is loaded.

    Raises:
        FileFormatError: The file is anything else.
        FileAccessError: It is missing or cannot be read.
    """
    with (
        open_regular(file, _REMEDY, most=MAX_BIN_BYTES, if_denied=_REMEDY) as stream,
        explain_read_errors(format_path(os.fspath(file))),
    ):
        data = stream.read(MAX_BIN_BYTES)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            # A place in the memo allocates memory. A real one is below the number of objects, hence of bytes.
            too_far = opcode.name in ("PUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= len(data)
            if opcode.name not in _HARMLESS or too_far:
                raise FileFormatError(f"a pickle with {opcode.name}, which image lists do not need")
        images, labels = _Unpickler(data).load()
        encoded = [
            EncodedCrop(_extract_image(image), f"image {i} of {file}") for i, image in enumerate(_list_items(images))
        ]
        mated = [_parse_label(label) for label in _list_items(labels)]
        if len(encoded) != 2 * len(mated):
            raise FileFormatError(f"twice as many images as labels are needed, it has {len(encoded)} and {len(mated)}")
    except Exception as error:  # damaged bytes can make pickle raise anything
        reason = format_untrusted(describe_error(error), 120)
        raise FileFormatError(
            f"{file}: expected InsightFace's (images, labels); {reason}. If you trust it, save it with {_SAVE}"
        ) from None
    return make_pair_list(file, encoded, np.arange(len(encoded)).reshape(-1, 2).tolist(), mated)


class _Type:
    """A NumPy dtype of plain numbers."""

    def __init__(self, code: _Words, *_: object) -> None:
        self.code = _decode(code)
        if not _PLAIN.fullmatch(self.code):
            raise FileFormatError(f"it has arrays of {self.code[:20]!r}, not of plain numbers")
        self.order = "<"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        order = state[1]
        self.order = ">" if isinstance(order, str | bytes) and _decode(order) == ">" else "<"


class _Array:
    """A NumPy array of plain numbers, its bytes as they are in the file."""

    shape: tuple[int, ...]
    kind: np.dtype[np.bool_ | np.int64]
    data: bytes

    def fill(self, kind: _Type, shape: tuple[int, ...], data: bytes) -> _Array:
        self.shape = shape
        self.kind = np.dtype(kind.order + kind.code)
        self.data = data
        if min(shape, default=1) < 0 or prod(shape) * self.kind.itemsize != len(data):
            raise FileFormatError(f"an array of {list(shape)} has {len(data)} bytes")
        return self

    def __setstate__(self, state: tuple[object, tuple[int, ...], _Type, object, bytes]) -> None:
        _, shape, kind, _, data = state
        self.fill(kind, shape, data)


class _Unpickler(pickle.Unpickler):
    """Knows only stand-ins for what NumPy's pickles name."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")  # 8-bit strings of Python 2
        self._left = 2 * len(data)
        self._known: dict[str, object] = {
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

    def find_class(self, module: str, name: str) -> object:
        known = self._known.get(f"{module}.{name}")
        if known is None:
            raise FileFormatError(f"it names {module}.{name}, which is not loaded")
        return known

    def _copy(self, data: bytes | bytearray) -> bytes:
        """Copy bytes, within a budget: a few bytes may ask for one long string to be copied again and again."""
        self._left -= len(data)
        if self._left < 0:
            raise FileFormatError("it copies more bytes than it has")
        return bytes(data)

    def _encode(self, text: str, encoding: _Words) -> bytes:
        """Stand in for _codecs.encode, by which protocols below 3, which have no bytes, write them."""
        if _decode(encoding) != "latin1":
            raise FileFormatError("it has text in another encoding than latin1")
        return self._copy(text.encode("latin-1"))

    def _from_buffer(self, data: bytes | bytearray, kind: _Type, shape: tuple[int, ...], *_: object) -> _Array:
        return _Array().fill(kind, shape, self._copy(data))

    def _scalar(self, kind: _Type, data: bytes) -> int:
        array = _Array().fill(kind, (), data)
        return int(np.frombuffer(array.data, array.kind)[0])


def _list_items(found: object) -> list[object]:
    if isinstance(found, _Array) and len(found.shape) == 1:
        return list(np.frombuffer(found.data, found.kind).tolist())
    if not isinstance(found, list):
        raise FileFormatError("two lists are needed")
    return found


def _extract_image(image: object) -> bytes:
    if isinstance(image, _Array) and image.kind == np.uint8:
        if max(image.shape, default=0) != prod(image.shape):
            raise FileFormatError(f"an image of it is an array {list(image.shape)}: encode it first, as PNG")
        return image.data
    if not isinstance(image, bytes):
        raise FileFormatError("images are bytes, or arrays of them")
    return image


def _parse_label(label: object) -> bool:
    if not (isinstance(label, int) and label in (0, 1)):
        raise FileFormatError("labels are true or false")
    return bool(label)


def _decode(word: _Words) -> str:
    return word.decode("latin-1") if isinstance(word, bytes) else word
