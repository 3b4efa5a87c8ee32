"""load refuses wrong checkpoints: each in one line that names the cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import layouts
import pytest
import torch
from checkpoint_layouts import LAYOUTS, preset_of, wrapped
from layouts import State
from torch import Tensor

from prefiqs_ext.exceptions import FileFormatError, UnsupportedNetworkError
from prefiqs_ext.models import load


def without(name: str) -> Callable[[State], object]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def nan(state: State) -> object:
    state["layer2.0.conv1.weight"][0, 0] = torch.nan
    return state


def converted(convert: Callable[[Tensor], Tensor]) -> Callable[[State], object]:
    return lambda state: {**state, "layer2.0.conv1.weight": convert(state["layer2.0.conv1.weight"])}


REFUSED: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (without("layer3.0.bn2.bias"), r"expected IResNet, whose layer3\.0\.bn2\.bias the file lacks"),
    "no linear layer": (without("fc.weight"), r"expected fc\.weight, the file lacks it"),
    "left over": (
        lambda state: {**state, "attention.weight": torch.zeros(3, 5), "layer1.0.extra": torch.zeros(2)},
        r"also has (layer1.0.extra|attention.weight), (layer1.0.extra|attention.weight)",
    ),
    "left over beside": (
        lambda state: {**wrapped("backbone.", state), "decoder.conv.weight": torch.zeros(3, 5, 1, 1)},
        "also has decoder.conv.weight",
    ),
    "two networks": (
        lambda state: {**wrapped("teacher.", state), **wrapped("student.", state)},
        "one network, the file has several: below 'teacher.', 'student.'",
    ),
    "shape": (
        lambda state: {**state, "layer2.0.conv2.weight": torch.zeros(128, 64, 3, 3)},
        r"layer2\.0\.conv2\.weight of shape \[128, 128, 3, 3\], got \[128, 64, 3, 3\]",
    ),
    "a block skipped": (
        lambda state: {name.replace("layer2.0", "layer2.1"): tensor for name, tensor in state.items()},
        r"also has|lacks",
    ),
    "nan": (nan, r"layer2\.0\.conv1\.weight has NaN or infinite values"),
    "negative variance": (
        lambda state: {**state, "layer1.0.bn1.running_var": torch.full((64,), -1.0)},
        r"layer1\.0\.bn1\.running_var has negative values",
    ),
    "integers": (
        converted(lambda tensor: tensor.to(torch.int8)),
        r"expected floating numbers in layer2\.0\.conv1\.weight, got torch\.int8",
    ),
    "complex": (converted(lambda tensor: tensor.to(torch.complex64)), r"expected floating .*, got torch\.complex64"),
    "sparse": (converted(Tensor.to_sparse), r"dense tensors, layer2\.0\.conv1\.weight is sparse or without values"),
    "quantised": (
        converted(lambda tensor: torch.quantize_per_tensor(tensor, 0.01, 0, torch.qint8)),
        r"expected ordinary dense tensors, layer2\.0\.conv1\.weight is of a quantised network: take the one in float32",
    ),
    "meta": (converted(lambda tensor: tensor.to("meta")), "expected ordinary dense tensors"),
    "another size": (
        lambda state: state,
        r"size \(64, 64\), got \(112, 112\) \('arcface'\): pass it with_size\(\(64, 64\)\), on .* --size 64x64",
    ),
    "another network": (lambda state: {"encoder.0.weight": torch.zeros(3)}, "the file has encoder.0.weight"),
    "no tensors": (lambda state: {"epoch": 3, "name": "r50"}, "expected a state dict, the file holds 'epoch', 'name'"),
    "a list": (lambda state: [1, 2], "expected a state dict, the file holds a list"),
    "expanded": (
        lambda state: {**state, "huge": torch.zeros(1).expand(1 << 40)},
        "expected tensors of at most .* bytes together, the file declares more",
    ),
    "expanded fc": (
        lambda state: {**state, "fc.weight": torch.zeros(1).expand(30, 1 << 34)},
        "expected tensors of at most",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str, tmp_path: Path) -> None:
    change, message = REFUSED[what]
    path = tmp_path / "checkpoint.pth"
    torch.save(change(LAYOUTS["iresnet, 64 pixels"].state()), path)
    with pytest.raises(ValueError, match=message) as error:
        load(path, "arcface")
    unsupported = what in ("integers", "quantised", "another size")
    assert type(error.value) is (UnsupportedNetworkError if unsupported else FileFormatError)
    assert str(error.value).startswith(f"cannot load {path}: ")
    assert "\n" not in str(error.value)


def replaced(name: str, *shape: int) -> Callable[[State], object]:
    return lambda state: {**state, name: torch.zeros(shape)}


def renamed(old: str, new: str) -> Callable[[State], object]:
    return lambda state: {name.replace(old, new): tensor for name, tensor in state.items()}


REFUSED_OTHERS: dict[tuple[str, str], tuple[Callable[[State], object], str]] = {
    ("SE-IResNet", "missing"): (
        without("layer3.0.se_block.fc1.weight"),
        r"expected IResNet, whose layer3\.0\.se_block\.fc1\.weight the file lacks",
    ),
    ("SE-IResNet", "in one block only"): (
        lambda state: {name: tensor for name, tensor in state.items() if "se_block" not in name or "layer3" in name},
        r"also has layer3\.0\.se_block\.fc1\.weight, layer3\.0\.se_block\.fc2\.weight$",
    ),
    ("SE-IResNet", "squeeze wider than its block"): (
        replaced("layer1.0.se_block.fc1.weight", 1000, 64, 1, 1),
        r"expected layer1\.0\.se_block\.fc1\.weight of shape \[64, 64, 1, 1\], got \[1000, 64, 1, 1\]",
    ),
    ("SE-IResNet", "linear squeeze"): (
        replaced("layer1.0.se_block.fc1.weight", 4, 64),
        r"expected layer1\.0\.se_block\.fc1\.weight of 4 dimensions, got shape \[4, 64\]",
    ),
    ("SE-IResNet", "under another name"): (renamed("se_block", "se"), r"also has layer1\.0\.se\.fc1\.weight, .* more"),
    ("face.evoLVe, IR-SE", "squeeze wider than its block"): (
        replaced("body.0.res_layer.5.fc1.weight", 1000, 64, 1, 1),
        r"expected body\.0\.res_layer\.5\.fc1\.weight of shape \[64, 64, 1, 1\]",
    ),
    ("adaface, bottlenecks", "missing"): (
        without("body.1.res_layer.6.weight"),
        r"expected IR, whose body\.1\.res_layer\.6\.weight the file lacks",
    ),
    ("adaface, bottlenecks", "no last convolution"): (
        without("body.2.res_layer.7.weight"),
        r"expected body\.2\.res_layer\.7\.weight, the file lacks it",
    ),
    ("adaface, bottlenecks", "wide inside"): (
        replaced("body.0.res_layer.1.weight", 32, 64, 1, 1),
        r"expected body\.0\.res_layer\.1\.weight of shape \[16, 64, 1, 1\], got \[32, 64, 1, 1\]",
    ),
    ("adaface, bottlenecks", "a wide first kernel"): (
        replaced("body.3.res_layer.1.weight", 32, 96, 3, 3),
        r"expected body\.3\.res_layer\.1\.weight of shape \[32, 96, 1, 1\], got \[32, 96, 3, 3\]",
    ),
    ("adaface, bottlenecks", "too wide to build"): (
        lambda state: {**state, "body.3.res_layer.7.weight": torch.zeros(1).expand(1 << 40, 32, 1, 1)},
        r"expected tensors of at most .* bytes together, the file declares more",
    ),
    ("adaface, bottlenecks", "8 layers"): (
        renamed(".res_layer.8.", ".res_layer.7."),
        r"expected IR blocks of one of 5, 6, 9 layers, got 8",
    ),
    ("adaface, bottlenecks", "no norms"): (
        lambda state: {name: tensor for name, tensor in state.items() if "running_mean" not in name},
        r"expected IR blocks of one of 5, 6, 9 layers, got 0",
    ),
    ("arcface_torch, MobileFaceNet", "missing"): (
        without("layers.5.layers.0.layers.2.layers.1.running_var"),
        r"expected MobileFaceNet, whose layers\.5\.layers\.0\.layers\.2\.layers\.1\.running_var the file lacks",
    ),
    ("arcface_torch, MobileFaceNet", "no second convolution"): (
        without("layers.1.layers.0.weight"),
        r"expected layers\.1\.layers\.0\.weight, the file lacks it",
    ),
    ("arcface_torch, MobileFaceNet", "groups that do not divide"): (
        replaced("layers.1.layers.0.weight", 16, 3, 3, 3),
        r"expected layers\.1\.layers\.0\.weight of shape \[16, 1, 3, 3\], got \[16, 3, 3, 3\]",
    ),
    ("arcface_torch, MobileFaceNet", "shape"): (
        replaced("layers.4.layers.1.layers.0.weight", 32, 2, 3, 3),
        r"expected layers\.4\.layers\.1\.layers\.0\.weight of shape \[32, 1, 3, 3\], got \[32, 2, 3, 3\]",
    ),
    ("arcface_torch, MobileFaceNet", "dimensions"): (
        replaced("conv_sep.layers.0.weight", 64, 32),
        r"expected conv_sep\.layers\.0\.weight of 4 dimensions, got shape \[64, 32\]",
    ),
    ("arcface_torch, MobileFaceNet", "nothing inside"): (
        replaced("layers.2.layers.0.layers.0.weight", 0, 16, 1, 1),
        r"expected layers\.2\.layers\.0\.layers\.0\.weight with values, got shape \[0, 16, 1, 1\]",
    ),
    ("arcface_torch, MobileFaceNet", "no channels"): (
        replaced("layers.1.layers.0.weight", 0, 0, 3, 3),
        r"expected layers\.1\.layers\.0\.weight with values, got shape \[0, 0, 3, 3\]",
    ),
    ("arcface_torch, MobileFaceNet", "a block skipped"): (
        renamed("layers.3.layers.0.", "layers.3.layers.1."),
        r"expected layers\.3\.layers\.0\.layers\.0\.layers\.0\.weight, the file lacks it",
    ),
    ("arcface_torch, MobileFaceNet", "and FaceX-Zoo's"): (
        lambda state: {**state, **wrapped("other.", layouts.mobilefacenet_state())},
        "expected one network, the file has several: below 'other.', ''",
    ),
    ("facexzoo", "no second convolution"): (
        without("conv2_dw.conv.weight"),
        r"expected conv2_dw\.conv\.weight, the file lacks it",
    ),
}


@pytest.mark.parametrize(("layout", "what"), REFUSED_OTHERS)
def test_refusals_of_other_layouts(layout: str, what: str, tmp_path: Path) -> None:
    change, message = REFUSED_OTHERS[layout, what]
    path = tmp_path / "checkpoint.pth"
    torch.save(change(LAYOUTS[layout].state()), path)
    with pytest.raises(ValueError, match=message) as error:
        load(path, preset_of(LAYOUTS[layout]))
    unsupported = what in ("8 layers", "no norms")
    assert type(error.value) is (UnsupportedNetworkError if unsupported else FileFormatError)
    assert str(error.value).startswith(f"cannot load {path}: ")
    assert "\n" not in str(error.value)
