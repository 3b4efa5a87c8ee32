"""Load a network by its built-in name or from any supported file. It comes on the CPU, ready for inference."""

from __future__ import annotations

import copy
import io
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from torch import nn

from prefiqs_ext.exceptions import InputError, InputTypeError, MissingFileError, UnsupportedNetworkError
from prefiqs_ext.models import weights
from prefiqs_ext.models.checkpoint import load_checkpoint
from prefiqs_ext.models.dlib import load_dlib
from prefiqs_ext.models.input_size import check_input
from prefiqs_ext.models.onnx_import import read_onnx
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.budget import MAX_CHECKPOINT_BYTES, MAX_DLIB_BYTES, MAX_ONNX_BYTES
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.regular_file import open_regular
from prefiqs_ext.utils.suffixes import get_suffix
from prefiqs_ext.utils.text import format_path
from prefiqs_ext.utils.torch_defaults import torch_defaults

_MAX_BYTES = {".onnx": MAX_ONNX_BYTES, ".dat": MAX_DLIB_BYTES}


@torch_defaults()
def load(model: str | os.PathLike[str], preset: Preset | str | None = None) -> tuple[nn.Module, Preset | None]:
    """Load a recognition network, and the preset that says what input it takes.

    >>> network, preset = prefiqs_ext.models.load("sface")
    >>> network(preset.normalize()(crops[:2])).shape  # float32, not normalised
    torch.Size([2, 128])

    Loading never executes anything that a file contains.

    Args:
        model: The name of a built-in network (``prefiqs_ext.models.BUILT_IN``), whose weights are fetched at first use;
            or a file: ``.onnx``, dlib's ``.dat``, ``.safetensors``, or a PyTorch checkpoint under any other name. A
            checkpoint is a state dict, alone or inside a training checkpoint.
        preset: The input that the network was trained on, as a :class:`Preset` or its name. If it is None, a built-in
            network has its own preset, and for a checkpoint the layout suggests one, with a warning.

    Returns:
        The network and its preset. The network is in eval mode on the CPU in float32. It maps
        ``preset.normalize()(images)`` to embeddings ``[N, d]``, which are not normalised. The preset is None for an
        ONNX file that is loaded without `preset`. If a checkpoint also has a classification head, the head is left out,
        with a warning.

    Raises:
        InputError: The name is neither a built-in network nor a file, or the preset is unknown.
        MissingFileError: There is no file at this path.
        FileAccessError: The file cannot be read.
        FileFormatError: The file is damaged, would do harm or has an unknown layout; or weights are missing, are too
            many, have the wrong shape or are not finite.
        UnsupportedNetworkError: The network has operators or blocks that cannot be run, is quantised, or does not take
            images of the preset's size.
        MissingWeightsError: The weights of a built-in network can neither be found nor fetched.
    """
    said = None if preset is None else Preset.resolve(preset)
    if not isinstance(model, str | os.PathLike):
        raise InputTypeError(f"expected the name of a model or its file, got {type(model).__name__}")
    if model in weights.BUILT_IN:
        own = Preset.resolve(weights.KNOWN[str(model)].preset or "")
        if said is not None and replace(said, name=own.name, size=own.size) != own:
            warnings.warn(
                f"{model!s} was trained on the input of preset {own.name!r}, and its scores mean little on that of "
                f"{said.name!r}: leave the preset out",
                stacklevel=2,
            )
        entry = weights.KNOWN[str(model)]
        network, _ = _read(io.BytesIO(weights.read(entry.name)), Path(entry.file), own)
        check_input(network, said or own)
        return network, said or own
    path = Path(model)
    with explain_read_errors(format_path(str(path))):  # a folder on the way may be closed to this user
        exists = path.exists()
    if not exists:
        name_alone = isinstance(model, str) and path.name == model == path.stem
        raise (InputError if name_alone else MissingFileError)(weights.describe_unknown(os.fspath(model)))
    most = _MAX_BYTES.get(get_suffix(path), MAX_CHECKPOINT_BYTES)
    with open_regular(path, "name the file of a network", most=most) as file:
        network, guess = _read(file, path, said)
    if said is not None:
        try:
            check_input(network, said)
        except UnsupportedNetworkError as error:
            raise UnsupportedNetworkError(f"cannot load {format_path(str(path))}: {error}") from error
    return network, said or guess


def resolve_network(
    model: str | os.PathLike[str] | nn.Module, preset: Preset | str | None = None
) -> tuple[nn.Module, Preset | None]:
    """Load a network as :func:`load` does, or take a module as it is.

    Args:
        model: What :func:`load` takes, or a module. A module on another device is copied to the CPU; the caller's own
            module stays as it is.
        preset: The input that the network was trained on. None means no preset for a module.

    Returns:
        The network and its preset, or None for its preset.

    Raises:
        PrefiqsError: As :func:`load` raises it.
    """
    if not isinstance(model, nn.Module):
        return load(model, preset)
    said = None if preset is None else Preset.resolve(preset)
    network = _copy_to_cpu(model)
    if said is not None:
        check_input(network, said)
    return network, said


def _read(file: IO[bytes], path: Path, preset: Preset | None) -> tuple[nn.Module, Preset | None]:
    """Read the network of an open file. Return it with the preset that the file suggests, or None."""
    kind = get_suffix(path)
    if kind == ".onnx":
        return read_onnx(file, path), None
    if kind == ".dat":
        return load_dlib(file, path), Preset.resolve("dlib")
    return load_checkpoint(file, path, preset)


def _copy_to_cpu(model: nn.Module) -> nn.Module:
    """Return the model itself if it is on the CPU, else a copy on the CPU. No second copy is made on its device."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return model
    copies: dict[int, Any] = {}
    for tensor in tensors:
        own = tensor.detach().cpu()
        copies[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
    return copy.deepcopy(model, copies)
