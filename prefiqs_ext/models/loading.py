"""The one loader: a built-in network by its name, or any supported file, on the CPU and ready for inference."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from torch import nn

from prefiqs_ext.exceptions import (
    FileAccessError,
    InputError,
    InputTypeError,
    MissingFileError,
    PrefiqsError,
    UnsupportedNetworkError,
)
from prefiqs_ext.models import weights
from prefiqs_ext.models.checkpoint import load_checkpoint
from prefiqs_ext.models.dlib import load_dlib
from prefiqs_ext.models.input_size import check_input
from prefiqs_ext.models.onnx_import import import_onnx
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.text import format_path
from prefiqs_ext.utils.torch_defaults import torch_defaults


@torch_defaults()
def load(model: str | os.PathLike[str], preset: Preset | str | None = None) -> tuple[nn.Module, Preset | None]:
    """Loads a recognition network and says what input it wants.

    >>> network, preset = prefiqs_ext.models.load("sface")
    >>> network(preset.normalize()(crops[:2])).shape  # float32, not normalised
    torch.Size([2, 128])

    Files are only read as numbers: nothing in them is ever executed.

    Args:
        model: the name of a built-in network (``prefiqs_ext.models.BUILT_IN``), whose weights are fetched at first use;
            or a file: ``.onnx``, dlib's ``.dat``, ``.safetensors``, or a PyTorch checkpoint under any other name (a
            state dict, alone or inside a training checkpoint).
        preset: the input that the network was trained on, as a :class:`Preset` or its name. A file does not tell. None
            stands for a built-in network's own; for a checkpoint it stands for a guess by its layout, with a warning.

    Returns:
        The network, in eval mode on the CPU in float32, which maps ``preset.normalize()(images)`` to embeddings
        ``[N, d]`` that are not normalised; and its preset. The preset is None for an ONNX file without `preset`.
        The weights of a classification head beside the network are left out, with a warning.

    Raises:
        InputError: a name that is no built-in network and no file, or an unknown preset.
        MissingFileError: a path where there is no file.
        FileAccessError: a file that cannot be read.
        FileFormatError: a file that is damaged, hostile, of an unknown layout, or has weights too many or missing, of
            other shapes or not finite.
        UnsupportedNetworkError: an ONNX file with operators that cannot be run; or a network that does not take images
            of the preset's size.
        MissingWeightsError: a built-in network whose weights can neither be found nor fetched.
    """
    said = None if preset is None else Preset.resolve(preset)
    if not isinstance(model, str | os.PathLike):
        raise InputTypeError(f"expected the name of a model or its file, got {type(model).__name__}")
    if model in weights.BUILT_IN:
        own = Preset.resolve(weights.KNOWN[str(model)].preset or "")
        network, _ = _read(weights.fetch(str(model)), own)
        check_input(network, said or own)
        return network, said or own
    path = Path(model)
    with explain_read_errors(format_path(str(path))):
        found = path.exists()
    if not found:
        name_alone = isinstance(model, str) and path.name == model == path.stem
        raise (InputError if name_alone else MissingFileError)(weights.describe_unknown(os.fspath(model)))
    try:
        network, guess = _read(path, said)
    except OSError as error:
        if isinstance(error, PrefiqsError):
            raise
        raise FileAccessError(f"cannot read {format_path(str(path))}: {error.strerror or error}") from error
    if said is not None:
        try:
            check_input(network, said)
        except UnsupportedNetworkError as error:
            raise UnsupportedNetworkError(f"cannot load {path}: {error}") from error
    return network, said or guess


def resolve_network(
    model: str | os.PathLike[str] | nn.Module, preset: Preset | str | None = None
) -> tuple[nn.Module, Preset | None]:
    """Returns what :func:`load` does, and takes a module too, which brings no preset of its own.

    A module on another device is copied to the CPU; the caller's stays as it is.
    """
    if not isinstance(model, nn.Module):
        return load(model, preset)
    said = None if preset is None else Preset.resolve(preset)
    network = _copy_to_cpu(model)
    if said is not None:
        check_input(network, said)
    return network, said


def _read(path: Path, preset: Preset | None) -> tuple[nn.Module, Preset | None]:
    """The network of a file, and what its layout says of its preset."""
    kind = path.suffix.lower()
    if kind == ".onnx":
        return import_onnx(path), None
    if kind == ".dat":
        return load_dlib(path), Preset.resolve("dlib")
    return load_checkpoint(path, preset)


def _copy_to_cpu(model: nn.Module) -> nn.Module:
    """The model itself or, of one that is elsewhere, a copy made without a second one on its device."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return model
    copies: dict[int, Any] = {}
    for tensor in tensors:
        own = tensor.detach().cpu()
        copies[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
    return copy.deepcopy(model, copies)
