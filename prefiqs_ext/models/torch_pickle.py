"""Read files of torch.save that torch.load(weights_only=True) refuses. Nothing in them is executed.

There are three kinds of such files: pickles of a later protocol than torch's own; checkpoints with classes as keys,
which PyTorch Lightning wrote before 1.5 (AdaFace's are of this kind); and networks that were pickled whole, as
FaceX-Zoo's are.

A pickle names classes and functions, and may call them. None of them is imported. The classes in `_SHELLS` are replaced
by empty ones, which keep the attributes that the file gives them. Every other name is replaced by a class that cannot
be called: a file may mention it, but a file that calls it is refused.

Source: torch.serialization. A file in the zip format has a pickle, `data.pkl`, and each storage as `data/KEY`. A file
in the old format has five pickles in a row (magic number, protocol, system, the object, keys of the storages). The
storages follow, each as an int64 count and its values.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.models.file_kinds import is_zip
from prefiqs_ext.utils.text import escape_unprintable

_T = TypeVar("_T")

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_PICKLED = 64 << 20  # bytes of the pickle, which does not contain the values of the tensors
_MOST_MODULES = 100_000
_LONGEST_NAME = 1000  # characters of a parameter's name, and of a storage's key
_REASON = 160  # characters of another program's message that an error repeats
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_ZOO = "models.network_def.mobilefacenet_def"
_SHELLS = {
    *(("torch.nn.modules.activation", name) for name in ("PReLU", "ReLU", "Sigmoid")),
    *(("torch.nn.modules.batchnorm", name) for name in ("BatchNorm1d", "BatchNorm2d")),
    *(("torch.nn.modules.container", name) for name in ("Sequential", "ModuleList")),
    ("torch.nn.modules.conv", "Conv2d"),
    ("torch.nn.modules.linear", "Linear"),
    ("torch.nn.parallel.data_parallel", "DataParallel"),
    ("torch.nn.backends.thnn", "_get_thnn_function_backend"),
    ("torch", "device"),
    ("torch", "Size"),
    ("collections", "Counter"),  # the milestones of a learning-rate scheduler
    ("builtins", "set"),
    ("__builtin__", "set"),
    ("argparse", "Namespace"),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),  # the best accuracy so far
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((_ZOO, name) for name in ("MobileFaceNet", "Conv_block", "Depth_Wise", "Linear_block", "Residual", "Flatten")),
}


class _RefusalError(FileFormatError):
    """The file asks for something that is never done for it, such as calling a function."""


class _Shell:
    """Stands for an object whose class is not imported. Its attributes are those that the file gives it."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Uncallable:
    """Stands for a class or function that is not imported and may not be called."""

    def __new__(cls, *_: object, **__: object) -> _Uncallable:
        raise _RefusalError(f"it calls {escape_unprintable(f'{cls.__module__}.{cls.__name__}')}, which is not loaded")

    def __setstate__(self, state: object) -> None:
        """Do nothing. Without this method, pickle would let a file set attributes of the class."""


class _Storage(NamedTuple):
    """A flat array of numbers in the file, which one or more tensors share."""

    key: str
    dtype: torch.dtype


class View(NamedTuple):
    """A tensor that is not read yet: where its numbers lie in a storage.

    Attributes:
        storage: The storage.
        offset: The index of the first number.
        size: The shape of the tensor.
        stride: The step along each dimension, in numbers.
    """

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickle(path: Path) -> tuple[object, Callable[[View], Tensor]]:
    """Read a file of torch.save that torch.load(weights_only=True) refuses.

    Args:
        path: The file.

    Returns:
        The content of the file, and a function that makes a tensor from a :class:`View`. The content has views in place
        of tensors. If the file holds a module, the content is what its state_dict() would be.

    Raises:
        FileFormatError: The file is damaged, is something else, or calls what it may not call. The text lacks the path.
            The function raises it too.
    """
    content, read_storage = _guard(lambda: (_read_zip if is_zip(path) else _read_old)(path))
    storages: dict[_Storage, Tensor] = {}

    def make_tensor(view: View) -> Tensor:
        if view.storage not in storages:
            values = bytearray(read_storage(view.storage))
            dtype = view.storage.dtype
            storages[view.storage] = (
                torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype, device="cpu")
            )
        # as_strided refuses a view that does not lie within the storage.
        return storages[view.storage].as_strided(view.size, view.stride, view.offset)

    if isinstance(content, _Shell):
        module = content
        content = _guard(lambda: _collect_state(module))
    return content, lambda view: _guard(lambda: make_tensor(view))


def _guard(function: Callable[[], _T]) -> _T:
    """Call a function that reads from a file, and turn every exception into a FileFormatError."""
    try:
        return function()
    except _RefusalError as error:
        raise FileFormatError(
            f"not a PyTorch file of plain tensors, which is all that is read, for safety (in its pickle: {error}); "
            "if you trust it, load it where it was made and save its state_dict()"
        ) from error
    except Exception as error:  # damaged bytes can make pickle raise anything
        raise FileFormatError(
            f"not a PyTorch file, or a damaged one ({escape_unprintable(str(error))[:_REASON] or type(error).__name__})"
        ) from error


def _read_zip(path: Path) -> tuple[object, Callable[[_Storage], bytes]]:
    """Read a file in the zip format. Return its content and a function that reads a storage."""
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        root = name.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise FileFormatError("saved on a big-endian machine")
        if archive.getinfo(name).file_size > _MOST_PICKLED:
            raise FileFormatError(f"a pickle of more than {_MOST_PICKLED} bytes")
        content = _Unpickler(io.BytesIO(archive.read(name))).load()

    def read_storage(of: _Storage) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{root}data/{of.key}")

    return content, read_storage


def _read_old(path: Path) -> tuple[object, Callable[[_Storage], bytes]]:
    """Read a file in the old format. Return its content and a function that reads a storage."""
    with path.open("rb") as file:
        size = path.stat().st_size
        head = io.BytesIO(file.read(min(size, _MOST_PICKLED)))
        if [_Unpickler(head).load(), _Unpickler(head).load()] != [_MAGIC, _PROTOCOL]:
            raise FileFormatError("not the beginning of one")
        _Unpickler(head).load()  # facts about the system that saved it
        unpickler = _Unpickler(head)
        content, keys = unpickler.load(), _Unpickler(head).load()
        file.seek(head.tell())
        places: dict[str, tuple[int, int]] = {}
        for key in map(str, keys if isinstance(keys, list) else ()):
            count = int.from_bytes(file.read(8), "little", signed=True)
            places[key] = file.tell(), count * unpickler.dtypes[key].itemsize
            if count < 0 or sum(places[key]) > size:
                raise FileFormatError("truncated")
            file.seek(sum(places[key]))

    def read_storage(of: _Storage) -> bytes:
        start, length = places[of.key]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    return content, read_storage


# These opcodes put objects from the stack into a dictionary or a set. The slice says which objects become keys or
# members.
_HASHED = {
    pickle.SETITEM[0]: slice(-2, -1),
    pickle.SETITEMS[0]: slice(None, None, 2),
    pickle.DICT[0]: slice(None, None, 2),
    pickle.ADDITEMS[0]: slice(None),
    pickle.FROZENSET[0]: slice(None),
}


def _check_keys(keys: Iterable[object]) -> None:
    """Refuse keys other than plain values.

    A tuple could hold tuples that share their elements, level upon level: a small file can make a key that takes hours
    to hash.
    """
    for key in keys:
        if not (key is None or isinstance(key, (str, bytes, int, float, type))):
            raise _RefusalError(f"it has a {escape_unprintable(type(key).__name__)} as a key")


def _make_checked_load(opcode: int) -> Callable[[Any], None]:
    """Return pickle's own function for an opcode with a check of the keys in front."""
    load = pickle._Unpickler.dispatch[opcode]

    def check_and_load(unpickler: Any) -> None:
        _check_keys(unpickler.stack[_HASHED[opcode]])
        load(unpickler)

    return check_and_load


class _Ordered(OrderedDict[object, object]):
    """An OrderedDict that checks its keys."""

    def __init__(self, pairs: Iterable[Sequence[object]] = ()) -> None:
        pairs = list(pairs)
        _check_keys(key for key, _ in pairs)
        super().__init__((key, value) for key, value in pairs)


class _Unpickler(pickle._Unpickler):
    """Reads a pickle and imports nothing.

    It is based on pickle's version in Python. The version in C makes room for as many memo entries as a file claims:
    5 bytes of a file can make it ask for 64 GB.

    Attributes:
        dtypes: The dtype of every storage that the pickle mentions, by the storage's key.
    """

    dispatch = pickle._Unpickler.dispatch | {opcode: _make_checked_load(opcode) for opcode in _HASHED}

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, torch.dtype] = {}

    def find_class(self, module: str, name: str) -> object:
        """Return what stands for the class or function of this name. It never imports one."""
        # A new class each time, so that a file cannot change one for later files.
        if (module, name) in _SHELLS:
            return type(name, (_Shell,), {})
        if (module, name) == ("collections", "OrderedDict"):
            return _Ordered
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: View(storage, offset, tuple(size), tuple(stride))
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        return type(name, (_Uncallable,), {"__module__": module})

    def persistent_load(self, pid: object) -> object:
        """Return what a reference to something outside of the pickle means: a class, or a storage."""
        if isinstance(pid, str):
            raise FileFormatError("of pickle protocol 0: save it again without naming one")
        if isinstance(pid, tuple) and pid[0] == "module":
            return pid[1]
        if isinstance(pid, tuple) and pid[0] == "storage" and pid[1].__module__ == "torch" and not any(pid[5:]):
            if pid[1].__name__ not in _STORAGES:
                raise _RefusalError(f"it holds a {escape_unprintable(pid[1].__name__)}")
            key = str(pid[2]) if isinstance(pid[2], (str, int)) else ""
            if not 0 < len(key) <= _LONGEST_NAME:
                raise FileFormatError("a storage without a plain key")
            self.dtypes[key] = _STORAGES[pid[1].__name__]
            return _Storage(key, self.dtypes[key])
        raise FileFormatError("it refers to something else than modules and storages")


def _collect_state(module: _Shell) -> dict[str, View]:
    """Return the parameters and buffers of a pickled module, by the names that its state_dict() would have."""
    found: dict[str, View] = {}
    left = [("", module)]
    for _ in range(_MOST_MODULES):
        if not left:
            return found
        prefix, shell = left.pop()
        if len(prefix) > _LONGEST_NAME:
            raise FileFormatError(f"modules in one another, with names of more than {_LONGEST_NAME} letters")
        for kind in ("_parameters", "_buffers"):
            for name, view in dict(vars(shell).get(kind) or {}).items():
                if isinstance(view, View):
                    found[f"{prefix}{name}"] = view
        inside = dict(vars(shell).get("_modules") or {})
        left += [(f"{prefix}{name}.", each) for name, each in reversed(inside.items()) if isinstance(each, _Shell)]
    raise FileFormatError(f"more than {_MOST_MODULES} modules")
