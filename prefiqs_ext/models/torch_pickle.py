"""Read the tensors of a file of torch.save. Nothing in a file is ever executed.

torch.load(weights_only=True) is not used. It refuses files that are common (torch_unpickler.py says which), and it
hashes whatever a file uses as a key: a tuple of tuples that share their elements, level upon level, takes it years.

Source: torch.serialization. A file in the zip format has a pickle, `data.pkl`, and each storage as `data/KEY`. A file
in the old format has five pickles in a row (magic number, protocol, system, the object, keys of the storages). The
storages follow, each as an int64 count and its values.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from math import prod
from typing import IO, TypeVar

import torch
from torch import Tensor

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.models.file_kinds import is_zip, refuse_other_archives
from prefiqs_ext.models.torch_unpickler import RefusalError, Shell, Storage, Unpickler, View
from prefiqs_ext.utils.budget import MAX_NAME_LENGTH, Budget
from prefiqs_ext.utils.text import describe_error, format_untrusted

_T = TypeVar("_T")

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_PICKLED = 64 << 20  # bytes of the pickle, which does not contain the values of the tensors
_MOST_MODULES = 100_000
_REASON = 160  # characters of another program's message that an error repeats


def read_pickle(file: IO[bytes], size: int, budget: Budget) -> tuple[object, Callable[[View], Tensor]]:
    """Read a file of torch.save.

    Args:
        file: The open file. It must stay open until the last tensor is made.
        size: How many bytes it has.
        budget: What it may cost.

    Returns:
        The content of the file, and a function that makes a tensor from a View. The content has a View or an
        OddTensor in place of each tensor. If the file holds a module, the content is what its state_dict()
        would be.

    Raises:
        FileFormatError: The file is damaged, is something else, calls what it may not call, or costs too much. The text
            lacks the path. The function raises it too.
    """
    read = _read_zip if is_zip(file) else _read_old
    content, read_storage = _guard(lambda: read(file, size, budget))
    storages: dict[Storage, Tensor] = {}

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

    if isinstance(content, Shell):
        module = content
        content = _guard(lambda: _collect_state(module, budget))
    return content, lambda view: _guard(lambda: make_tensor(view))


def _guard(function: Callable[[], _T]) -> _T:
    """Call a function that reads from a file, and turn every exception into a FileFormatError."""
    try:
        return function()
    except RefusalError as error:
        raise FileFormatError(
            f"not a PyTorch file of plain tensors, which is all that is read, for safety (in its pickle: {error}); "
            "if you trust it, load it where it was made and save its state_dict()"
        ) from error
    except FileFormatError:
        raise
    except Exception as error:  # damaged bytes can make pickle raise anything
        reason = format_untrusted(describe_error(error), _REASON)
        raise FileFormatError(f"not a PyTorch file, or a damaged one ({reason})") from error


def _read_zip(file: IO[bytes], size: int, budget: Budget) -> tuple[object, Callable[[Storage], bytearray]]:
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
    content = Unpickler(io.BytesIO(archive.read(name)), budget).load()

    def read_storage(of: Storage) -> bytearray:
        return bytearray(archive.read(f"{root}data/{of.key}"))

    return content, read_storage


def _read_old(file: IO[bytes], size: int, budget: Budget) -> tuple[object, Callable[[Storage], bytearray]]:
    """Read a file in the old format. Return its content and a function that reads a storage."""
    file.seek(0)
    head = io.BytesIO(file.read(min(size, _MOST_PICKLED)))
    if [Unpickler(head, budget).load(), Unpickler(head, budget).load()] != [_MAGIC, _PROTOCOL]:
        raise ValueError("not the beginning of one")
    Unpickler(head, budget).load()  # facts about the system that saved it
    unpickler = Unpickler(head, budget)
    content, keys = unpickler.load(), Unpickler(head, budget).load()
    file.seek(head.tell())
    places: dict[str, tuple[int, int]] = {}
    for key in map(str, keys if isinstance(keys, list) else ()):
        count = int.from_bytes(file.read(8), "little", signed=True)
        places[key] = file.tell(), count * unpickler.dtypes[key].itemsize
        if count < 0 or sum(places[key]) > size:
            raise ValueError("truncated")
        file.seek(sum(places[key]))

    def read_storage(of: Storage) -> bytearray:
        start, length = places[of.key]
        file.seek(start)
        return bytearray(file.read(length))

    return content, read_storage


def _collect_state(module: Shell, budget: Budget) -> dict[str, View]:
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
            left += [(f"{prefix}{name}.", each) for name, each in reversed(inside.items()) if isinstance(each, Shell)]
    raise ValueError(f"more than {_MOST_MODULES} modules")
