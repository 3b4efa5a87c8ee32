"""Unpickle what torch.save wrote. Nothing that a file names is imported or called.

The functions by which torch pickles tensors are replaced by ones that note where the numbers lie. The classes in
`_SHELLS` are replaced by empty ones, which keep the attributes that the file gives them: so checkpoints with classes as
keys can be read, which PyTorch Lightning wrote before 1.5 (AdaFace's are of this kind), and networks that were pickled
whole, as FaceX-Zoo's are. Every other name is replaced by a class that cannot be called: a file may mention it, but a
file that calls it is refused.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.utils.budget import MAX_NAME_LENGTH, MAX_NAMES, Budget
from prefiqs_ext.utils.text import format_untrusted

_MOST_BITS = 60  # of an integer; Python hashes longer ones to shorter ones, so that many can have the same hash
_MOST_DIMENSIONS = 16
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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    # Of quantised tensors, which are refused by their names.
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
}
_ZOO = "models.network_def.mobilefacenet_def"
_ODD = {
    *(("torch._utils", f"_rebuild_{kind}") for kind in ("qtensor", "sparse_tensor", "sparse_csr_tensor")),
    *(("torch._utils", f"_rebuild_{kind}") for kind in ("meta_tensor_no_storage", "nested_tensor")),
}
_SHELLS = {
    *(("torch.nn.modules.activation", name) for name in ("PReLU", "ReLU", "Sigmoid")),
    *(("torch.nn.modules.batchnorm", name) for name in ("BatchNorm1d", "BatchNorm2d")),
    *(("torch.nn.modules.container", name) for name in ("Sequential", "ModuleList")),
    ("torch.nn.modules.conv", "Conv2d"),
    ("torch.nn.modules.linear", "Linear"),
    ("torch.nn.parallel.data_parallel", "DataParallel"),
    ("torch.nn.backends.thnn", "_get_thnn_function_backend"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
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


class RefusalError(FileFormatError):
    """The file asks for something that is never done for it, such as calling a function."""


class Shell:
    """Stands for an object whose class is not imported. Its attributes are those that the file gives it."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Uncallable:
    """Stands for a class or function that is not imported and may not be called."""

    def __new__(cls, *_: object, **__: object) -> _Uncallable:
        raise RefusalError(f"it calls {format_untrusted(f'{cls.__module__}.{cls.__name__}')}, which is not loaded")

    def __setstate__(self, state: object) -> None:
        """Do nothing. Without this method, pickle would let a file set attributes of the class."""


class Storage(NamedTuple):
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

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class OddTensor(NamedTuple):
    """A tensor of another kind than dense numbers, which is not read.

    Attributes:
        is_quantised: Whether it is quantised. If not, it is sparse or has no values.
    """

    is_quantised: bool


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
    to hash. Integers could be many that have the same hash.
    """
    for key in keys:
        if not (key is None or isinstance(key, (str, bytes, int, float, type))):
            raise RefusalError(f"it has a {format_untrusted(type(key).__name__)} as a key")
        if isinstance(key, int) and key.bit_length() > _MOST_BITS:
            raise RefusalError(f"it has an integer of more than {_MOST_BITS} bits as a key")


# These opcodes call something on the object on top of the stack, or copy that object. The number says how many objects.
_CALLS = {
    pickle.REDUCE[0]: 1,
    pickle.BUILD[0]: 1,
    pickle.NEWOBJ[0]: 1,
    pickle.NEWOBJ_EX[0]: 2,
    pickle.BINPERSID[0]: 1,
}


class _ChargedDispatch(dict[int, Callable[[Any], None]]):
    """What pickle does for each opcode. An opcode costs a part of a budget, and one for each object that it copies.

    Few opcodes could copy one long list again and again.
    """

    def __init__(self, budget: Budget) -> None:
        super().__init__(pickle._Unpickler.dispatch)
        del self[pickle.BYTEARRAY8[0]]  # makes room for as many bytes as a file claims
        for opcode in _HASHED:
            self[opcode] = self._check_keys_before(opcode)
        for opcode in _CALLS:
            self[opcode] = self._charge_before(opcode)
        self._charge = budget.charge_parts

    def __getitem__(self, opcode: int) -> Callable[[Any], None]:
        self._charge()
        return super().__getitem__(opcode)

    def _check_keys_before(self, opcode: int) -> Callable[[Any], None]:
        load = pickle._Unpickler.dispatch[opcode]

        def check_and_load(unpickler: Any) -> None:
            _check_keys(unpickler.stack[_HASHED[opcode]])
            load(unpickler)

        return check_and_load

    def _charge_before(self, opcode: int) -> Callable[[Any], None]:
        load = pickle._Unpickler.dispatch[opcode]

        def charge_and_load(unpickler: Any) -> None:
            for copied in unpickler.stack[-_CALLS[opcode] :]:
                if isinstance(copied, (tuple, list, dict)):
                    self._charge(len(copied))
                    self._charge(sum(len(inside) for inside in copied if isinstance(inside, (tuple, list, dict))))
            load(unpickler)

        return charge_and_load


class _Ordered(OrderedDict[object, object]):
    """An OrderedDict that checks its keys."""

    def __init__(self, pairs: Iterable[Sequence[object]] = ()) -> None:
        pairs = list(pairs)
        _check_keys(key for key, _ in pairs)
        super().__init__((key, value) for key, value in pairs)

    def __setstate__(self, state: object) -> None:
        """Do nothing. A state dict has an attribute, `_metadata`, which is not needed; none may replace a method."""


def _make_view(storage: object, offset: object, size: object, stride: object, *_: object) -> View:
    if not (isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)):
        raise ValueError("a tensor without a storage and a shape")
    if not len(size) == len(stride) <= _MOST_DIMENSIONS:
        raise ValueError("a tensor of too many dimensions")
    for number in (offset, *size, *stride):
        if not (isinstance(number, int) and 0 <= number < 1 << _MOST_BITS):
            raise ValueError("a tensor with a shape of other things than counts")
    assert isinstance(offset, int)
    return View(storage, offset, size, stride)


class Unpickler(pickle._Unpickler):
    """Reads a pickle and imports nothing.

    It is based on pickle's version in Python. The version in C makes room for as many memo entries as a file claims:
    5 bytes of a file can make it ask for 64 GB.

    Attributes:
        dtypes: The dtype of every storage that the pickle mentions, by the storage's key.
    """

    def __init__(self, file: io.BytesIO, budget: Budget) -> None:
        super().__init__(file)
        self.dispatch = _ChargedDispatch(budget)  # type: ignore[misc]  # one of each reader, with its own budget
        self.dtypes: dict[str, torch.dtype] = {}
        self._known: dict[tuple[str, str], object] = {}

    def find_class(self, module: str, name: str) -> object:
        """Return what stands for the class or function of this name. It never imports one."""
        if (module, name) not in self._known:
            if len(self._known) == MAX_NAMES:
                raise ValueError(f"more than {MAX_NAMES} names of classes and functions")
            self._known[module, name] = self._make_stand_in(module, name)
        return self._known[module, name]

    def _make_stand_in(self, module: str, name: str) -> object:
        # New classes and functions for each file, so that a file cannot change one for later files.
        if (module, name) in _SHELLS:
            return type(name, (Shell,), {})
        if (module, name) == ("collections", "OrderedDict"):
            return _Ordered
        if (module, name) in (("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2")):
            return lambda *parts: _make_view(*parts)
        if (module, name) in (
            ("torch._utils", "_rebuild_parameter"),
            ("torch._utils", "_rebuild_parameter_with_state"),
        ):
            return lambda data, *_: data
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):  # a parameter with attributes of its own
            return lambda rebuild, _, parts, *__: rebuild(*parts)
        if (module, name) in _ODD:
            return lambda *_: OddTensor(name == "_rebuild_qtensor")
        return type(name, (_Uncallable,), {"__module__": module})

    def persistent_load(self, pid: object) -> object:
        """Return what a reference to something outside of the pickle means: a class, or a storage."""
        if isinstance(pid, str):
            raise ValueError("of pickle protocol 0: save it again without naming one")
        if isinstance(pid, tuple) and pid[0] == "module":
            return pid[1]
        if isinstance(pid, tuple) and pid[0] == "storage" and pid[1].__module__ == "torch" and not any(pid[5:]):
            if pid[1].__name__ not in _STORAGES:
                raise RefusalError(f"it holds a {format_untrusted(pid[1].__name__)}")
            key = str(pid[2]) if isinstance(pid[2], (str, int)) else ""
            if not 0 < len(key) <= MAX_NAME_LENGTH:
                raise ValueError("a storage without a plain key")
            self.dtypes[key] = _STORAGES[pid[1].__name__]
            return Storage(key, self.dtypes[key])
        raise ValueError("it refers to something else than modules and storages")
