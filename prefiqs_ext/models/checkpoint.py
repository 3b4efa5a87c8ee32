"""Load a recognition network from a PyTorch checkpoint or a .safetensors file.

The names and shapes of the weights tell the family of the network, its depth and its sizes. For example, a file with a
tensor `layer1.0.conv1.weight` holds an IResNet, and the number of different N in `layer3.N.` is the depth of its third
stage. :func:`prefiqs_ext.models.load` chooses the reader by the name of the file; these are all the families it reads:

| family | names | files of |
|---|---|---|
| IResNet, SE-IResNet | layer1.0.conv1.weight | ArcFace, ElasticFace, MagFace, CR-FIQA, GraFIQs |
| IR, IR-SE | body.0.res_layer.1.weight | face.evoLVe, CurricularFace, AdaFace, CVLface; 5, 6 or 9 layers in a block |
| MobileFaceNet | conv_23.conv.conv.weight | FaceX-Zoo |
| MobileFaceNet | conv_sep.layers.0.weight | ArcFace (arcface_torch) |
| ONNX | - | InsightFace, OpenCV Zoo |
| dlib | - | dlib's face recognition ResNet |
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import gcd, isqrt
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn

from prefiqs_ext.exceptions import FileFormatError, UnsupportedNetworkError
from prefiqs_ext.models.ir import BLOCKS, IR
from prefiqs_ext.models.iresnet import IResNet
from prefiqs_ext.models.mobilefacenet import ARCFACE_TORCH, FACEX_ZOO, Bottlenecks, MobileFaceNet, Names
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.models.state_dict import QUANTISED, read_state_dict
from prefiqs_ext.utils.budget import MAX_BLOCKS, MAX_SIDE
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.suffixes import get_suffix
from prefiqs_ext.utils.text import format_path, format_untrusted

_EPS = {"magface": 2e-5}  # the eps of the batch norms, by preset; it is 1e-5 for all other presets
_MOST_MESSAGE = 400  # characters of an error
_SHOWN = 4  # names that a message lists before it says "and N more"
_LAST_NORM = r"body\.0\.res_layer\.(\d{1,3})\.running_mean"  # of an IR block: its last layer is a batch norm
_READ = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Shapes = Mapping[str, tuple[int, ...]]
Network = IResNet | IR | MobileFaceNet


@dataclass(frozen=True)
class Family:
    """One layout of checkpoints.

    Attributes:
        name: The name that messages use.
        marker: The name of a tensor that every file of this layout has, and no file of another layout.
        build: Builds the network from the shapes of the tensors and the name of the preset.
        guess: Returns the name of the likely preset, from the prefix of the names in the file and the shapes.
        extra: A regular expression. Tensors whose names match it are ignored: recognition does not need them.
    """

    name: str
    marker: str
    build: Callable[[Shapes, str], Network]
    guess: Callable[[str, Shapes], str]
    extra: str = r"(?!)"


def load_checkpoint(file: IO[bytes], path: Path, preset: Preset | None = None) -> tuple[nn.Module, Preset]:
    """Load the recognition network of a PyTorch checkpoint or a .safetensors file.

    Args:
        file: The open file.
        path: Its path. A name that ends in ".safetensors" chooses that format.
        preset: The input that the network was trained on. If it is None, the layout of the file suggests one, and a
            warning says which. (The size of the images is known from the weights in either case.)

    Returns:
        The network, in eval mode on the CPU in float32, and the preset that the layout suggests.

    Raises:
        FileAccessError: The file cannot be read.
        FileFormatError: The file is damaged, would do harm or has an unknown layout; or weights are missing, are too
            many, have the wrong shape or are not finite.
        UnsupportedNetworkError: The layout is known, but this network of it cannot be built: an IR network of unknown
            blocks, or a quantised network.
    """
    name = format_path(str(path))
    try:
        with explain_read_errors(name):
            state = read_state_dict(file, safe=get_suffix(path) == ".safetensors")
        network, guess = _build_network(state, preset)
    except UnsupportedNetworkError as error:
        raise UnsupportedNetworkError(f"cannot load {name}: {error}") from error
    except (ValueError, RuntimeError) as error:  # FileFormatError, and what torch raises for a layer of a strange size
        raise FileFormatError(f"cannot load {name}: {format_untrusted(error, _MOST_MESSAGE)}") from error
    if preset is None:
        warnings.warn(
            f"{format_path(path.name)}: taken for input of preset {guess.name!r} ({guess.colour.upper()}, "
            f"(x - {guess.mean[0]:g}) / {guess.std[0]:g}), a guess by its layout: pass preset= to be sure",
            stacklevel=5,
        )
    return network, guess


def _build_network(state: dict[str, Tensor], preset: Preset | None) -> tuple[nn.Module, Preset]:
    family, prefix = _find_family(state)
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    shapes = {name: tuple(tensor.shape) for name, tensor in inside.items()}
    guess = Preset.resolve(family.guess(prefix, shapes))
    with torch.device("meta"):
        network = family.build(shapes, (preset or guess).name)
    if network.input_size > MAX_SIDE:
        side = network.input_size
        raise FileFormatError(f"expected a network of images of at most {MAX_SIDE} x {MAX_SIDE} pixels, got {side}")
    guess = guess.with_size(network.input_size)
    # Names are compared with their prefix: a head outside may have the name that a layer has inside the network.
    own = {prefix + name for name in network.state_dict()}
    own |= {prefix + name for name in inside if re.fullmatch(family.extra, name)}
    heads = _find_heads({name: tensor for name, tensor in state.items() if name not in own}, network)
    own.update(heads)
    unknown = [name for name in state if name not in own]
    if unknown:
        raise FileFormatError(
            f"expected the weights of {family.name} alone, the file also has {_format_names(unknown)}"
        )
    _fill(network, inside, family)
    if heads:
        warnings.warn(f"left out, a classification head: {_format_names(heads)}", stacklevel=6)
    return network.eval(), guess


def _find_family(state: Mapping[str, Tensor]) -> tuple[Family, str]:
    """Return the family and the prefix of its names in this file, such as "module." or "backbone."."""
    found = []
    for family in FAMILIES:
        for name in state:
            prefix = name.removesuffix(family.marker)
            if prefix != name and (not prefix or prefix.endswith(".")):
                found.append((family, prefix))
    if not found:
        known = ", ".join(f"{family.name} ({family.marker})" for family in FAMILIES)
        raise FileFormatError(f"expected the weights of {known}; the file has {_format_names(list(state))}")
    if len(found) > 1:
        prefixes = ", ".join(f"'{format_untrusted(prefix)}'" for _, prefix in found[:_SHOWN])
        raise FileFormatError(f"expected one network, the file has several: below {prefixes}")
    return found[0]


def _find_heads(others: Mapping[str, Tensor], network: nn.Module) -> list[str]:
    """Return the names that belong to a classification head, which training keeps beside the network.

    A head has class centres ``[classes, d]`` or ``[d, classes]``. It may also have vectors and single numbers under the
    same parent name: a bias, or running statistics of the margin.
    """
    size = next(module for module in reversed(list(network.modules())) if isinstance(module, nn.Linear)).out_features
    centres = {name for name, tensor in others.items() if tensor.dim() == 2 and size in tensor.shape}
    parents = {name.rpartition(".")[0] for name in centres}
    numbers = {n for n, tensor in others.items() if tensor.dim() <= 1 and n.rpartition(".")[0] in parents}
    heads = centres | numbers
    return [name for name in others if name in heads]


def _fill(network: nn.Module, state: Mapping[str, Tensor], family: Family) -> None:
    """Check the weights in `state` and put them into the network. Tensors that it does not have are ignored."""
    expected = network.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    if missing:
        raise FileFormatError(f"expected {family.name}, whose {_format_names(missing)} the file lacks")
    filled = {}
    for name, like in expected.items():
        tensor = state[name] if name in state else torch.zeros(like.shape)
        if tensor.shape != like.shape:
            raise FileFormatError(f"expected {name} of shape {list(like.shape)}, got {list(tensor.shape)}")
        _check_values(name, tensor, like)
        filled[name] = tensor.to(like.dtype).contiguous()
    network.load_state_dict(filled, assign=True)


def _check_values(name: str, tensor: Tensor, like: Tensor) -> None:
    """Refuse weights that no network can have. `like` is the network's own tensor of this name."""
    if like.is_floating_point() and tensor.dtype not in _READ:
        quantised = f", {QUANTISED}" if tensor.element_size() == 1 else ""
        kind = UnsupportedNetworkError if quantised else FileFormatError
        raise kind(f"expected floating numbers in {name}, got {tensor.dtype}{quantised}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise FileFormatError(f"{name} has NaN or infinite values")
    if name.endswith("running_var") and bool((tensor < 0).any()):
        raise FileFormatError(f"{name} has negative values, which no variance has")


def _format_names(names: list[str]) -> str:
    shown = ", ".join(map(format_untrusted, names[:_SHOWN]))
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _count_indices(shapes: Shapes, pattern: str) -> int:
    """Return how many different values the one group of the pattern takes over all names."""
    count = len({match[1] for name in shapes if (match := re.match(pattern, name))})
    if count > MAX_BLOCKS:
        raise FileFormatError(f"expected at most {MAX_BLOCKS} blocks of a kind, the file has {count}")
    return count


def _get_shape(shapes: Shapes, name: str, dims: int) -> tuple[int, ...]:
    """Return the shape of a tensor, which must be in the file, have this number of dimensions and not be empty."""
    if name not in shapes:
        raise FileFormatError(f"expected {name}, the file lacks it")
    if len(shapes[name]) != dims:
        raise FileFormatError(f"expected {name} of {dims} dimensions, got shape {list(shapes[name])}")
    if 0 in shapes[name]:
        raise FileFormatError(f"expected {name} with values, got shape {list(shapes[name])}")
    return shapes[name]


def _compute_last_size(shapes: Shapes, linear: str, norm: str) -> int:
    """Return the side of the map that the last linear layer reads: 7 for images of 112 x 112 pixels.

    Args:
        shapes: The shapes of all tensors.
        linear: The name of that layer's weight, ``[features, channels * side * side]``.
        norm: The name of a vector with one number for each channel of the map.
    """
    (channels,) = _get_shape(shapes, norm, 1)
    return max(1, isqrt(_get_shape(shapes, linear, 2)[1] // channels))


def _find_reduction(shapes: Shapes, excite: str, channels: int) -> int | None:
    """Return the number by which squeeze and excitation divides its channels; None if the file lacks it.

    Args:
        shapes: The shapes of all tensors.
        excite: Its name in a block.
        channels: The number of channels of that block.
    """
    name = f"{excite}.fc1.weight"
    return max(1, channels // _get_shape(shapes, name, 4)[0]) if name in shapes else None


def _build_iresnet(shapes: Shapes, preset: str) -> IResNet:
    blocks = [_count_indices(shapes, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    if not all(blocks):
        raise FileFormatError(f"expected an IResNet of four stages, got {blocks} blocks")
    return IResNet(
        blocks,
        _get_shape(shapes, "fc.weight", 2)[0],
        last_size=_compute_last_size(shapes, "fc.weight", "bn2.weight"),
        eps=_EPS.get(preset, 1e-5),
        reduction=_find_reduction(shapes, "layer1.0.se_block", _get_shape(shapes, "layer1.0.conv1.weight", 4)[0]),
    )


def _build_ir(shapes: Shapes, preset: str) -> IR:
    norms = [int(found[1]) for name in shapes if (found := re.fullmatch(_LAST_NORM, name))]
    layers = 1 + max(norms, default=-1)
    layout = next((layout for layout in BLOCKS if len(layout.layers) == layers), None)
    if layout is None:
        known = ", ".join(str(len(layout.layers)) for layout in BLOCKS)
        raise UnsupportedNetworkError(f"expected IR blocks of one of {known} layers, got {layers}")
    count = _count_indices(shapes, r"body\.(\d+)\.")
    channels = [_get_shape(shapes, f"body.{index}.res_layer.{layers - 2}.weight", 4)[0] for index in range(count)]
    excite = None
    for name in (str(layers), "se_block"):
        if reduction := _find_reduction(shapes, f"body.0.res_layer.{name}", channels[0]):
            excite = name, reduction
    return IR(
        channels,
        _get_shape(shapes, "output_layer.3.weight", 2)[0],
        last_size=_compute_last_size(shapes, "output_layer.3.weight", "output_layer.0.weight"),
        layout=layout,
        excite=excite,
        affine="output_layer.4.weight" in shapes,
    )


def _build_mobilefacenet(names: Names, shapes: Shapes, preset: str) -> MobileFaceNet:
    convolution = names.convolution[0]
    expand, _, project = names.bottleneck

    def get_shape(name: str) -> tuple[int, ...]:
        return _get_shape(shapes, f"{name}.{convolution}.weight", 4)

    def get_expanded(residual: str) -> list[int]:
        inside = f"{residual}.{names.residual}"
        count = _count_indices(shapes, rf"{re.escape(inside)}\.(\d+)\.{re.escape(expand)}\.")
        return [get_shape(f"{inside}.{index}.{expand}")[0] for index in range(count)]

    stem = get_shape(names.stem)[0]
    second: int | list[int] = get_expanded(names.second)
    if not second:
        second = stem // gcd(stem, get_shape(names.second)[1])  # gcd, for in a bad file the second need not divide stem
    stages = [
        Bottlenecks(get_shape(f"{first}.{project}")[0], get_shape(f"{first}.{expand}")[0], get_expanded(others))
        for first, others in names.stages
    ]
    depthwise, _, linear, _ = names.output
    return MobileFaceNet(
        names,
        stem,
        second,
        stages,
        wide=get_shape(names.separate)[0],
        num_features=_get_shape(shapes, f"{linear}.weight", 2)[0],
        last_size=get_shape(depthwise)[2],
    )


FAMILIES = (
    Family(
        "IResNet",
        "layer1.0.conv1.weight",
        _build_iresnet,
        lambda prefix, shapes: "magface" if "features." in prefix else "arcface",
        extra=r"qs\.(weight|bias)",  # the layer of CR-FIQA that regresses the quality
    ),
    Family(
        "IR",
        "body.0.res_layer.1.weight",
        _build_ir,
        lambda prefix, shapes: "adaface" if "body.0.res_layer.5.running_mean" in shapes else "curricularface",
    ),
    Family(
        "MobileFaceNet",
        "conv_23.conv.conv.weight",
        partial(_build_mobilefacenet, FACEX_ZOO),
        lambda prefix, shapes: "facexzoo",
    ),
    Family(
        "MobileFaceNet",
        "conv_sep.layers.0.weight",
        partial(_build_mobilefacenet, ARCFACE_TORCH),
        lambda prefix, shapes: "arcface",
    ),
)
"""All layouts that :func:`load_checkpoint` knows."""
