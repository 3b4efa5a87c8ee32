"""Read the tensors of a checkpoint file by their names. Nothing in a file is ever executed.

PyTorch files are read by torch.load with `weights_only=True`, which accepts tensors and plain containers only. It
refuses some harmless files that are common; torch_pickle.py reads those.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from prefiqs_ext.exceptions import FileFormatError, UnsupportedNetworkError
from prefiqs_ext.models.file_kinds import is_zip, refuse_other_archives, refuse_other_kinds
from prefiqs_ext.models.torch_pickle import View, read_pickle
from prefiqs_ext.utils.suffixes import get_suffix

MAX_BYTES = 4 << 30
"""The largest file that is read, and the largest size of all its tensors together. (A training checkpoint of an
IResNet-200 with the state of its optimiser has 1.5 GB.)"""

QUANTISED = "of a quantised network: take the one in float32 that it was made from"

_T = TypeVar("_T")
_REASON = 160  # characters of another program's message, or of a name, that an error repeats
_DEEPEST = 8  # dictionaries around a state dict

# Training scripts put a state dict into a dictionary, under one of these keys. If there are several, the first wins: it
# is the network that is meant for recognition.
_WRAPPERS = ("state_dict_backbone", "state_dict", "model_state_dict", "backbone", "model", "net", "network")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a PyTorch checkpoint or a .safetensors file.

    Args:
        path: The file. A name that ends in ".safetensors" chooses that format.

    Returns:
        One or more tensors on the CPU, by their names in the state dict. Dictionaries that training scripts put around
        the state dict are removed.

    Raises:
        FileFormatError: The file is damaged, would do harm, is too large or has no state dict. The text lacks the path.
        UnsupportedNetworkError: The network is quantised.
    """
    if not path.is_file():
        raise FileFormatError("expected a regular file")
    if path.stat().st_size > MAX_BYTES:
        raise FileFormatError(f"expected at most {MAX_BYTES} bytes, the file has {path.stat().st_size}")
    safe = get_suffix(path) == ".safetensors"
    refuse_other_kinds(path, "safetensors" if safe else "PyTorch")
    tensors = _read_safetensors(path) if safe else _unpickle(path)
    for name, tensor in tensors.items():
        if tensor.is_quantized or name.endswith(("zero_point", "packed_params")):
            raise UnsupportedNetworkError(f"expected ordinary dense tensors, {name} is {QUANTISED}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise FileFormatError(f"expected ordinary dense tensors, {name} is sparse or without values")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > MAX_BYTES:
        raise FileFormatError(f"expected tensors of at most {MAX_BYTES} bytes together, the file declares more")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise FileFormatError(f"not a safetensors file, or a damaged one ({_format_error(error)[:_REASON]})") from error
    if not tensors:
        raise FileFormatError("expected tensors, the file has none")
    return tensors


def _unpickle(path: Path) -> dict[str, Tensor]:
    if is_zip(path):
        _check_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the format is old
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        content, tensor = read_pickle(path)
        return {name: tensor(view) for name, view in _unwrap(content, View).items()}
    except Exception as error:  # damaged bytes can make torch.load raise anything
        raise FileFormatError(f"not a PyTorch file, or a damaged one ({_format_error(error)[:_REASON]})") from error
    return _unwrap(content, Tensor)


def _check_zip(path: Path) -> None:
    """Refuse a zip archive that torch.save did not write.

    torch.save does not compress. So an archive whose content is larger than the file is not one of its own.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            names = archive.namelist()
    except Exception as error:  # damaged bytes can make zipfile raise anything
        raise FileFormatError(f"not a PyTorch file, or a damaged one ({_format_error(error)[:_REASON]})") from error
    refuse_other_archives(names)
    if size > path.stat().st_size:
        raise FileFormatError("expected an archive that is not compressed; save it again with torch.save")


def _unwrap(content: object, kind: type[_T]) -> dict[str, _T]:
    """Return the values of this type in the state dict that `content` is or contains, by name."""
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            raise FileFormatError(f"expected a state dict, the file holds a {type(content).__name__}")
        inside = (content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping))
        outside, content = content, next(inside, None)
        if content is None:
            break
    named = {name: value for name, value in outside.items() if isinstance(name, str)}
    values = {name: value for name, value in named.items() if isinstance(value, kind)}
    if not values:
        names = ", ".join(repr(name[:_REASON]) for name in list(named)[:5])
        raise FileFormatError(f"expected a state dict, the file holds {names or 'nothing of a name'}")
    return values


def _format_error(error: BaseException) -> str:
    """Return the text of an error in one line, or the name of its class if it has no text."""
    return " ".join((str(error) or type(error).__name__).split())
