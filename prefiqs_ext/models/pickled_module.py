"""The tensors of a network that an old torch.save pickled whole, as FaceX-Zoo's files are. Nothing of it is executed.

torch.load(weights_only=True) refuses such files. Here every class that may stand in one is listed and read as an inert
shell; any other name in the pickle is refused. Source: torch.serialization's legacy format, a row of pickles (magic
number, protocol, system, the object, keys of storages), then each storage as an int64 count and its values.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_STORAGES = 100_000
_STORAGES = {"FloatStorage": np.dtype("<f4"), "HalfStorage": np.dtype("<f2"), "LongStorage": np.dtype("<i8")}
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
    *((_ZOO, name) for name in ("MobileFaceNet", "Conv_block", "Depth_Wise", "Linear_block", "Residual", "Flatten")),
}


class _Shell:
    """Stands for an object whose class is not loaded; its attributes are data."""

    def __init__(self, *_: object) -> None:
        pass


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype[np.generic]


class _View(NamedTuple):
    """A tensor's place in a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickled_module(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by the names that state_dict() would give them.

    ValueError, in one line without the path, for anything but an old torch.save of a module of listed classes.
    """
    try:
        with path.open("rb") as file:
            if _first_numbers(file) != [_MAGIC, _PROTOCOL]:
                raise ValueError("not an old torch.save")
            _Unpickler(file).load()  # of the system that saved it
            module = _Unpickler(file).load()
            keys = _Unpickler(file).load()
            if not isinstance(module, _Shell) or not isinstance(keys, list) or len(keys) > _MOST_STORAGES:
                raise ValueError("expected a module and its storages")
            views = dict(_views(module, ""))
            dtypes = {view.storage.key: view.storage.dtype for view in views.values()}
            storages = {str(key): _values(file, dtypes.get(str(key))) for key in keys}
        return {name: _tensor(view, storages) for name, view in views.items()}
    except ValueError:
        raise
    except Exception as error:  # whatever damaged bytes lead pickle to
        raise ValueError(f"damaged ({type(error).__name__})") from error


def _first_numbers(file: BinaryIO) -> list[object]:
    """The two numbers that such a file begins with."""
    return [_Unpickler(file).load(), _Unpickler(file).load()]


class _Unpickler(pickle._Unpickler):
    """The one in Python: the one in C makes room for as many memo entries as a file claims, 64 GB by 5 bytes."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _SHELLS:
            return type(name, (_Shell,), {})
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _View(storage, offset, tuple(size), tuple(stride))
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise ValueError(f"it names {module}.{name}, which is not loaded")

    def persistent_load(self, pid: object) -> object:
        if isinstance(pid, tuple) and pid[0] == "module":
            return pid[1]
        if isinstance(pid, tuple) and pid[0] == "storage" and isinstance(pid[1], np.dtype):
            return _Storage(str(pid[2]), pid[1])
        raise ValueError("it refers to something else than modules and storages")


def _views(shell: _Shell, prefix: str) -> Iterator[tuple[str, _View]]:
    attributes = vars(shell)
    for kind in ("_parameters", "_buffers"):
        for name, view in dict(attributes.get(kind) or {}).items():
            if isinstance(view, _View):
                yield f"{prefix}{name}", view
    for name, inside in dict(attributes.get("_modules") or {}).items():
        if isinstance(inside, _Shell):
            yield from _views(inside, f"{prefix}{name}.")


def _values(file: BinaryIO, dtype: np.dtype[np.generic] | None) -> np.ndarray:
    if dtype is None:
        raise ValueError("it has a storage that no tensor uses")
    count = int.from_bytes(file.read(8), "little", signed=True)
    data = file.read(count * dtype.itemsize) if count >= 0 else b""  # never more than the file has
    if len(data) != count * dtype.itemsize:
        raise ValueError("truncated")
    return np.frombuffer(data, dtype)


def _tensor(view: _View, storages: dict[str, np.ndarray]) -> Tensor:
    values = storages[view.storage.key]
    contiguous = [prod(view.size[dim + 1 :]) for dim in range(len(view.size))]
    if list(view.stride) != contiguous or view.offset < 0 or view.offset + prod(view.size) > values.size:
        raise ValueError("a tensor does not lie in its storage")
    inside = values[view.offset : view.offset + prod(view.size)]
    return torch.from_numpy(inside.reshape(view.size).copy())
