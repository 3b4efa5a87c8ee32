"""Checkpoint file -> the tensors of a network by name. Nothing in a file is ever executed.

PyTorch files are read with `weights_only=True`, which knows tensors and plain containers; of networks that were pickled
whole, pickled_module.py reads some.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from .pickled_module import read_pickled_module

MAX_BYTES = 4 << 30
"""The largest file read, and the largest sum of its tensors: with the optimiser's state, a training checkpoint of an
IResNet-200 has 1.5 GB."""

_REASON = 160

# What training scripts wrap a state dict in, the one meant for recognition first.
_WRAPPERS = ("state_dict_backbone", "state_dict", "model_state_dict", "backbone", "model", "net", "network")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Name -> tensor on the CPU, wrappers removed, names as in the file; at least one.

    ValueError, in one line without the path, for a file that is damaged, hostile, too large or holds no state dict.
    """
    if not path.is_file():
        raise ValueError("expected a regular file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES} bytes, the file has {path.stat().st_size}")
    tensors = _safetensors(path) if path.suffix.lower() == ".safetensors" else _unwrapped(_unpickled(path))
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ValueError(f"expected ordinary dense tensors, {name} is sparse, quantised or without values")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > MAX_BYTES:
        raise ValueError(f"expected tensors of at most {MAX_BYTES} bytes together, the file declares more")
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"not a safetensors file, or a damaged one ({_line(error)[:_REASON]})") from error
    if not tensors:
        raise ValueError("expected tensors, the file has none")
    return tensors


def _unpickled(path: Path) -> object:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # how torch.load tells its two formats apart
    if zipped:
        _check_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the format is old
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = _line(error)
        if not zipped:
            try:
                return read_pickled_module(path)
            except ValueError as refused:
                reason = f"in its pickle: {refused}"
        elif found := re.search(r"GLOBAL (\S+) ", reason):
            reason = f"in its pickle: it names {found[1]}, which is not loaded"
        raise ValueError(
            f"not a PyTorch file of plain tensors, which is all that is read, for safety ({reason[:_REASON]}); if you "
            "trust it, load it where it was made and save its state_dict()"
        ) from error
    except Exception as error:  # whatever damaged bytes lead torch.load to
        raise ValueError(f"not a PyTorch file, or a damaged one ({_line(error)[:_REASON]})") from error


def _check_zip(path: Path) -> None:
    """torch.save does not compress: what unpacks to more than the file is not its archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # whatever damaged bytes lead zipfile to
        raise ValueError(f"not a PyTorch file, or a damaged one ({_line(error)[:_REASON]})") from error
    if size > path.stat().st_size:
        raise ValueError("expected an archive that is not compressed; save it again with torch.save")


def _unwrapped(content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a state dict, the file holds a {type(content).__name__}")
    for wrapper in _WRAPPERS:
        inside = content.get(wrapper)
        if isinstance(inside, Mapping):
            return _unwrapped(inside)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"expected a state dict, the file holds {', '.join(map(repr, list(content)[:5])) or 'nothing'}"
        )
    return tensors


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())
