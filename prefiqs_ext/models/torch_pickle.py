"""Read the tensors of a file of torch.save. Nothing in a file is ever executed.

A pickle names classes and functions, and may call them. None of them is imported. The functions by which torch pickles
tensors are replaced by ones that note where the numbers lie. The classes in `_SHELLS` are replaced by empty ones, which
keep the attributes that the file gives them: so checkpoints with classes as keys can be read, which PyTorch Lightning
wrote before 1.5 (AdaFace's are of this kind), and networks that were pickled whole, as FaceX-Zoo's are. Every other
name is replaced by a class that cannot be called: a file may mention it, but a file that calls it is refused.

torch.load(weights_only=True) is not used. It refuses files of these kinds, and it hashes whatever a file uses as a key:
a tuple of tuples that share their elements, level upon level, takes it years.

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
from math import prod
from typing import IO, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.models.file_kinds import is_zip, refuse_other_archives
from prefiqs_ext.utils.budget import MAX_NAME_LENGTH, MAX_NAMES, Budget
from prefiqs_ext.utils.text import describe_error, format_untrusted

_T = TypeVar("_T")

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_PICKLED = 64 << 20  # bytes of the pickle, which does not contain the values of the tensors
_MOST_MODULES = 100_000
_REASON = 160  # characters of another program's message that an error repeats
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
        raise _RefusalError(f"it calls {format_untrusted(f'{cls.__module__}.{cls.__name__}')}, which is not loaded")

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


class OddTensor(NamedTuple):
    """A tensor of another kind than dense numbers, which is not read.

    Attributes:
        is_quantised: Whether it is quantised. If not, it is sparse or has no values.
    """

    is_quantised: bool


def read_pickle(file: IO[bytes], size: int, budget: Budget) -> tuple[object, Callable[[View], Tensor]]:
    """Read a file of torch.save.

    Args:
        file: The open file. It must stay open until the last tensor is made.
        size: How many bytes it has.
        budget: What it may cost.

    Returns:
        The content of the file, and a function that makes a tensor from a :class:`View`. The content has a View or an
        :class:`OddTensor` in place of each tensor. If the file holds a module, the content is what its state_dict()
        would be.

    Raises:
        FileFormatError: The file is damaged, is something else, calls what it may not call, or costs too much. The text
            lacks the path. The function raises it too.
    """
    read = _read_zip if is_zip(file) else _read_old
    content, read_storage = _guard(lambda: read(file, size, budget))
    storages: dict[_Storage, Tensor] = {}

    def make_tensor(view: View) -> Tensor:
        itemsize = view.storage.dtype.itemsize
        budget.charge_bytes(prod(view.size) * itemsize)
        if view.storage not in storages:
            values = read_storage(view.storage)
            if len(values) % itemsize:
                raise ValueError("truncated")
            dtype = view.storage.dtype
            storages[view.storage] = (
                torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype, device="cpu")
            )
        # as_strided refuses a view that does not lie within the storage.
        return storages[view.storage].as_strided(view.size, view.stride, view.offset)

    if isinstance(content, _Shell):
        module = content
        content = _guard(lambda: _collect_state(module, budget))
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
    except FileFormatError:
        raise
    except Exception as error:  # damaged bytes can make pickle raise anything
        reason = format_untrusted(describe_error(error), _REASON)
        raise FileFormatError(f"not a PyTorch file, or a damaged one ({reason})") from error


def _read_zip(file: IO[bytes], size: int, budget: Budget) -> tuple[object, Callable[[_Storage], bytearray]]:
    """Read a file in the zip format. Return its content and a function that reads a storage."""
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    budget.charge_parts(len(names))
    refuse_other_archives(names)
    # torch.save does not compress. An archive whose content is larger than the file is not one of its own.
    entries = archive.infolist()
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > size:
        raise FileFormatError("expected an archive that is not compressed; save it again with torch.save")
    (name,) = [name for name in names if name.endswith("/data.pkl")]
    root = name.removesuffix("data.pkl")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("saved on a big-endian machine")
    if archive.getinfo(name).file_size > _MOST_PICKLED:
        raise ValueError(f"a pickle of more than {_MOST_PICKLED} bytes")
    content = _Unpickler(io.BytesIO(archive.read(name)), budget).load()

    def read_storage(of: _Storage) -> bytearray:
        return bytearray(archive.read(f"{root}data/{of.key}"))

    return content, read_storage


def _read_old(file: IO[bytes], size: int, budget: Budget) -> tuple[object, Callable[[_Storage], bytearray]]:
    """Read a file in the old format. Return its content and a function that reads a storage."""
    file.seek(0)
    head = io.BytesIO(file.read(min(size, _MOST_PICKLED)))
    if [_Unpickler(head, budget).load(), _Unpickler(head, budget).load()] != [_MAGIC, _PROTOCOL]:
        raise ValueError("not the beginning of one")
    _Unpickler(head, budget).load()  # facts about the system that saved it
    unpickler = _Unpickler(head, budget)
    content, keys = unpickler.load(), _Unpickler(head, budget).load()
    file.seek(head.tell())
    places: dict[str, tuple[int, int]] = {}
    for key in map(str, keys if isinstance(keys, list) else ()):
        count = int.from_bytes(file.read(8), "little", signed=True)
        places[key] = file.tell(), count * unpickler.dtypes[key].itemsize
        if count < 0 or sum(places[key]) > size:
            raise ValueError("truncated")
        file.seek(sum(places[key]))

    def read_storage(of: _Storage) -> bytearray:
        start, length = places[of.key]
        file.seek(start)
        return bytearray(file.read(length))

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
    to hash. Integers could be many that have the same hash.
    """
    for key in keys:
        if not (key is None or isinstance(key, (str, bytes, int, float, type))):
            raise _RefusalError(f"it has a {format_untrusted(type(key).__name__)} as a key")
        if isinstance(key, int) and key.bit_length() > _MOST_BITS:
            raise _RefusalError(f"it has an integer of more than {_MOST_BITS} bits as a key")


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
    if not (isinstance(storage, _Storage) and isinstance(size, tuple) and isinstance(stride, tuple)):
        raise ValueError("a tensor without a storage and a shape")
    if not len(size) == len(stride) <= _MOST_DIMENSIONS:
        raise ValueError("a tensor of too many dimensions")
    for number in (offset, *size, *stride):
        if not (isinstance(number, int) and 0 <= number < 1 << _MOST_BITS):
            raise ValueError("a tensor with a shape of other things than counts")
    assert isinstance(offset, int)
    return View(storage, offset, size, stride)


class _Unpickler(pickle._Unpickler):
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
            return type(name, (_Shell,), {})
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
                raise _RefusalError(f"it holds a {format_untrusted(pid[1].__name__)}")
            key = str(pid[2]) if isinstance(pid[2], (str, int)) else ""
            if not 0 < len(key) <= MAX_NAME_LENGTH:
                raise ValueError("a storage without a plain key")
            self.dtypes[key] = _STORAGES[pid[1].__name__]
            return _Storage(key, self.dtypes[key])
        raise ValueError("it refers to something else than modules and storages")


def _collect_state(module: _Shell, budget: Budget) -> dict[str, View]:
    """Return the parameters and buffers of a pickled module, by the names that its state_dict() would have."""
    found: dict[str, View] = {}
    left = [("", module)]
    for _ in range(_MOST_MODULES):
        if not left:
            return found
        prefix, shell = left.pop()
        if len(prefix) > MAX_NAME_LENGTH:
            raise ValueError(f"modules in one another, with names of more than {MAX_NAME_LENGTH} letters")
        own = [
            inside
            for kind in ("_parameters", "_buffers", "_modules")
            if isinstance(inside := vars(shell).get(kind), dict)
        ]
        for inside in own:
            budget.charge_parts(len(inside) * (1 + len(prefix) // 100))
            if any(len(name) > MAX_NAME_LENGTH for name in inside if isinstance(name, str)):
                raise ValueError(f"names of more than {MAX_NAME_LENGTH} letters")
            found |= {f"{prefix}{name}": view for name, view in inside.items() if isinstance(view, View)}
            left += [(f"{prefix}{name}.", each) for name, each in reversed(inside.items()) if isinstance(each, _Shell)]
    raise ValueError(f"more than {_MOST_MODULES} modules")
