"""What torch.save wrote and torch.load(weights_only=True) does not read; nothing of it is executed.

These are pickles of later protocols than torch's own, checkpoints with classes as keys (PyTorch Lightning before 1.5:
AdaFace), and networks that were pickled whole, as FaceX-Zoo's are. Classes that may be called are listed and become
inert shells. Any other name becomes a class that stands for it and cannot be called: a file that calls it is refused.

Sources: torch.serialization. The zip format holds `data.pkl` and each storage as `data/KEY`. The old one is a row of
pickles (magic number, protocol, system, the object, keys of storages), then each storage as an int64 count and its
values.
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
_MOST_PICKLED = 64 << 20  # bytes of structure; the values of tensors lie elsewhere
_MOST_MODULES = 100_000
_LONGEST_NAME = 1000  # of a parameter, and of a storage's key
_REASON = 160
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
    ("collections", "Counter"),  # a learning-rate scheduler's milestones
    ("builtins", "set"),
    ("__builtin__", "set"),
    ("argparse", "Namespace"),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),  # a best accuracy, and what it is made of
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((_ZOO, name) for name in ("MobileFaceNet", "Conv_block", "Depth_Wise", "Linear_block", "Residual", "Flatten")),
}


class _RefusalError(FileFormatError):
    pass


class _Shell:
    """Stands for an object whose class is not loaded; its attributes are data."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Uncallable:
    """Stands for a class or function that is not loaded."""

    def __new__(cls, *_: object, **__: object) -> _Uncallable:
        raise _RefusalError(f"it calls {escape_unprintable(f'{cls.__module__}.{cls.__name__}')}, which is not loaded")

    def __setstate__(self, state: object) -> None:
        """Never called: it keeps a file from setting attributes of the class."""


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype


class View(NamedTuple):
    """A tensor's place in a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickle(path: Path) -> tuple[object, Callable[[View], Tensor]]:
    """Reads what torch.load(weights_only=True) does not.

    Returns:
        What the file holds, with views in place of tensors; of a module, its parameters and buffers by the names that
        state_dict() would give them. And the function that makes a tensor of a view.

    Raises:
        FileFormatError: a file that is damaged, something else, or calls what is not listed; without the path. The
            function raises it too.
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
        # Refuses what does not lie in the storage.
        return storages[view.storage].as_strided(view.size, view.stride, view.offset)

    if isinstance(content, _Shell):
        module = content
        content = _guard(lambda: _collect_state(module))
    return content, lambda view: _guard(lambda: make_tensor(view))


def _guard(function: Callable[[], _T]) -> _T:
    try:
        return function()
    except _RefusalError as error:
        raise FileFormatError(
            f"not a PyTorch file of plain tensors, which is all that is read, for safety (in its pickle: {error}); "
            "if you trust it, load it where it was made and save its state_dict()"
        ) from error
    except Exception as error:  # whatever damaged bytes lead pickle to
        raise FileFormatError(
            f"not a PyTorch file, or a damaged one ({escape_unprintable(str(error))[:_REASON] or type(error).__name__})"
        ) from error


def _read_zip(path: Path) -> tuple[object, Callable[[_Storage], bytes]]:
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
    with path.open("rb") as file:
        size = path.stat().st_size
        head = io.BytesIO(file.read(min(size, _MOST_PICKLED)))
        if [_Unpickler(head).load(), _Unpickler(head).load()] != [_MAGIC, _PROTOCOL]:
            raise FileFormatError("not the beginning of one")
        _Unpickler(head).load()  # of the system that saved it
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


# What an opcode makes keys or members of, on the stack.
_HASHED = {
    pickle.SETITEM[0]: slice(-2, -1),
    pickle.SETITEMS[0]: slice(None, None, 2),
    pickle.DICT[0]: slice(None, None, 2),
    pickle.ADDITEMS[0]: slice(None),
    pickle.FROZENSET[0]: slice(None),
}


def _check_keys(keys: Iterable[object]) -> None:
    """Tuples in tuples, which a small file can share without end, would be hashed for hours."""
    for key in keys:
        if not (key is None or isinstance(key, (str, bytes, int, float, type))):
            raise _RefusalError(f"it has a {escape_unprintable(type(key).__name__)} as a key")


def _make_checked_load(opcode: int) -> Callable[[Any], None]:
    load = pickle._Unpickler.dispatch[opcode]

    def check_and_load(unpickler: Any) -> None:
        _check_keys(unpickler.stack[_HASHED[opcode]])
        load(unpickler)

    return check_and_load


class _Ordered(OrderedDict[object, object]):
    def __init__(self, pairs: Iterable[Sequence[object]] = ()) -> None:
        pairs = list(pairs)
        _check_keys(key for key, _ in pairs)
        super().__init__((key, value) for key, value in pairs)


class _Unpickler(pickle._Unpickler):
    """The one in Python: the one in C makes room for as many memo entries as a file claims, 64 GB by 5 bytes."""

    dispatch = pickle._Unpickler.dispatch | {opcode: _make_checked_load(opcode) for opcode in _HASHED}

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, torch.dtype] = {}

    def find_class(self, module: str, name: str) -> object:
        # Made anew each time: what a file does to them is gone with them.
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
