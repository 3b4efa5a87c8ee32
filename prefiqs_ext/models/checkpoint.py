"""A recognition network from its file: family, depth and sizes are read off the names and shapes of its weights.

| family | names | files of |
|---|---|---|
| IResNet | layer1.0.conv1.weight | ArcFace, ElasticFace, MagFace, CR-FIQA, GraFIQs |
| IR, IR-SE | body.0.res_layer.1.weight | face.evoLVe, CurricularFace; with a batch norm between, AdaFace, CVLface |
| MobileFaceNet | conv_23.conv.conv.weight | FaceX-Zoo |
| ONNX | - | InsightFace, OpenCV Zoo |
| dlib | - | dlib's face recognition ResNet |
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.models.ir import IR
from prefiqs_ext.models.iresnet import IResNet
from prefiqs_ext.models.mobilefacenet import Bottlenecks, MobileFaceNet
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.models.state_dict import QUANTISED, read_state_dict

_EPS = {"magface": 2e-5}  # of batch norms, by preset; 1e-5 elsewhere
_SHOWN = 4
_READ = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Shapes = Mapping[str, tuple[int, ...]]
Network = IResNet | IR | MobileFaceNet


@dataclass(frozen=True)
class Family:
    """Checkpoints of one layout.

    Attributes:
        name: what messages call it.
        marker: the name of a tensor that all of them have and no other layout has.
        build: makes the network from the shapes of the tensors and the preset's name.
        guess: the name of the likely preset, from the prefix of the names in the file and the shapes.
        extra: a pattern of names of other parts of a checkpoint, which recognition does not need.
    """

    name: str
    marker: str
    build: Callable[[Shapes, str], Network]
    guess: Callable[[str, Shapes], str]
    extra: str = r"(?!)"


def load_checkpoint(path: Path, preset: Preset | None = None) -> tuple[nn.Module, Preset]:
    """Loads the recognition network of a PyTorch checkpoint or a .safetensors file.

    Args:
        path: the file.
        preset: what input the network wants; None: a guess from the layout, said in a warning. The size is no guess.

    Returns:
        The network, in eval mode on the CPU in float32, and the preset that its layout suggests.

    Raises:
        FileFormatError: a file that is damaged, hostile, of an unknown layout, or has weights too many, missing, of
            other shapes, or not finite.
    """
    try:
        network, guess = _build_network(read_state_dict(path), preset)
    except ValueError as error:
        raise FileFormatError(f"cannot load {path}: {error}") from error
    if preset is None:
        warnings.warn(
            f"{path.name}: taken for input of preset {guess.name!r} ({guess.colour.upper()}, (x - {guess.mean[0]:g}) / "
            f"{guess.std[0]:g}), a guess by its layout: pass preset= to be sure",
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
    guess = guess.with_size(network.input_size)
    # By full names: a head outside the prefix may be called as a layer of the network is inside.
    own = {prefix + name for name in network.state_dict()}
    own |= {prefix + name for name in inside if re.fullmatch(family.extra, name)}
    heads = _find_heads({name: tensor for name, tensor in state.items() if name not in own}, network)
    unknown = [name for name in state if name not in own and name not in heads]
    if unknown:
        raise FileFormatError(
            f"expected the weights of {family.name} alone, the file also has {_format_names(unknown)}"
        )
    _fill(network, inside, family)
    if heads:
        warnings.warn(f"left out, a classification head: {_format_names(heads)}", stacklevel=6)
    return network.eval(), guess


def _find_family(state: Mapping[str, Tensor]) -> tuple[Family, str]:
    """The family, and what its names begin with in this file: "module.", "backbone." and the like."""
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
        prefixes = ", ".join(repr(prefix) for _, prefix in found)
        raise FileFormatError(f"expected one network, the file has several: below {prefixes}")
    return found[0]


def _find_heads(others: Mapping[str, Tensor], network: nn.Module) -> list[str]:
    """Returns those of these names that belong to a classification head beside the network.

    They are class centres ``[classes, d]`` or ``[d, classes]``, and numbers beside them: a bias, running statistics of
    the margin.
    """
    size = next(module for module in reversed(list(network.modules())) if isinstance(module, nn.Linear)).out_features
    centres = [name for name, tensor in others.items() if tensor.dim() == 2 and size in tensor.shape]
    parents = {name.rpartition(".")[0] for name in centres}
    numbers = [n for n, tensor in others.items() if tensor.dim() <= 1 and n.rpartition(".")[0] in parents]
    return [name for name in others if name in centres or name in numbers]


def _fill(network: nn.Module, state: Mapping[str, Tensor], family: Family) -> None:
    """Gives the network its weights, checked; others in `state` are left."""
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
    if like.is_floating_point() and tensor.dtype not in _READ:
        quantised = f", {QUANTISED}" if tensor.element_size() == 1 else ""
        raise FileFormatError(f"expected floating numbers in {name}, got {tensor.dtype}{quantised}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise FileFormatError(f"{name} has NaN or infinite values")
    if name.endswith("running_var") and bool((tensor < 0).any()):
        raise FileFormatError(f"{name} has negative values, which no variance has")


def _format_names(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _count_indices(shapes: Shapes, pattern: str) -> int:
    """The number of indices that a pattern's one group takes."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _get_shape(shapes: Shapes, name: str, dims: int) -> tuple[int, ...]:
    if name not in shapes:
        raise FileFormatError(f"expected {name}, the file lacks it")
    if len(shapes[name]) != dims:
        raise FileFormatError(f"expected {name} of {dims} dimensions, got shape {list(shapes[name])}")
    return shapes[name]


def _compute_last_size(shapes: Shapes, linear: str, norm: str) -> int:
    """Height and width of the map that the last linear layer reads: 7 for images of 112."""
    (channels,) = _get_shape(shapes, norm, 1)
    return max(1, isqrt(_get_shape(shapes, linear, 2)[1] // max(1, channels)))


def _build_iresnet(shapes: Shapes, preset: str) -> IResNet:
    blocks = [_count_indices(shapes, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    if not all(blocks):
        raise FileFormatError(f"expected an IResNet of four stages, got {blocks} blocks")
    features = _get_shape(shapes, "fc.weight", 2)[0]
    last_size = _compute_last_size(shapes, "fc.weight", "bn2.weight")
    return IResNet(blocks, features, last_size=last_size, eps=_EPS.get(preset, 1e-5))


def _build_ir(shapes: Shapes, preset: str) -> IR:
    count = _count_indices(shapes, r"body\.(\d+)\.")
    norm_between = "body.0.res_layer.5.running_mean" in shapes
    last = 4 + norm_between
    if any(re.match(r"body\.\d+\.res_layer\.([6-9]|\d\d)\.(weight|running_mean)", name) for name in shapes):
        raise FileFormatError("expected IR of basic blocks, got bottleneck blocks, as depths above 100 have")
    channels = [_get_shape(shapes, f"body.{index}.res_layer.1.weight", 4)[0] for index in range(count)]
    excite = None
    for name in (str(last + 1), "se_block"):
        fc1 = f"body.0.res_layer.{name}.fc1.weight"
        if fc1 in shapes:
            excite = name, max(1, channels[0] // max(1, _get_shape(shapes, fc1, 4)[0]))
    return IR(
        channels,
        _get_shape(shapes, "output_layer.3.weight", 2)[0],
        last_size=_compute_last_size(shapes, "output_layer.3.weight", "output_layer.0.weight"),
        norm_between=norm_between,
        excite=excite,
        affine="output_layer.4.weight" in shapes,
    )


def _build_mobilefacenet(shapes: Shapes, preset: str) -> MobileFaceNet:
    def get_expanded(block: str) -> int:
        return _get_shape(shapes, f"{block}.conv.conv.weight", 4)[0]

    stages = []
    for first, others in (("conv_23", "conv_3"), ("conv_34", "conv_4"), ("conv_45", "conv_5")):
        count = _count_indices(shapes, rf"{others}\.model\.(\d+)\.")
        stages.append(
            Bottlenecks(
                _get_shape(shapes, f"{first}.project.conv.weight", 4)[0],
                get_expanded(first),
                [get_expanded(f"{others}.model.{index}") for index in range(count)],
            )
        )
    return MobileFaceNet(
        _get_shape(shapes, "conv1.conv.weight", 4)[0],
        stages,
        _get_shape(shapes, "conv_6_sep.conv.weight", 4)[0],
        _get_shape(shapes, "linear.weight", 2)[0],
        _get_shape(shapes, "conv_6_dw.conv.weight", 4)[2],
    )


FAMILIES = (
    Family(
        "IResNet",
        "layer1.0.conv1.weight",
        _build_iresnet,
        lambda prefix, shapes: "magface" if "features." in prefix else "arcface",
        extra=r"qs\.(weight|bias)",  # CR-FIQA's regression of quality
    ),
    Family(
        "IR",
        "body.0.res_layer.1.weight",
        _build_ir,
        lambda prefix, shapes: "adaface" if "body.0.res_layer.5.running_mean" in shapes else "curricularface",
    ),
    Family("MobileFaceNet", "conv_23.conv.conv.weight", _build_mobilefacenet, lambda prefix, shapes: "facexzoo"),
)
"""Every layout of PyTorch checkpoints that load_checkpoint knows."""
