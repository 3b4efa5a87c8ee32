"""Checkpoints in the published layouts, written out key by key, and what they compute, by functions of torch alone.

Nothing of prefiqs_ext is imported: a layout here is FIELD's list of names, not our modules' state_dict.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


class Writer:
    """Random weights that keep activations near 1."""

    def __init__(self, seed: int = 0) -> None:
        self.state: State = {}
        self._generator = torch.Generator().manual_seed(seed)

    def conv(self, name: str, out: int, inside: int, kernel: int) -> None:
        scale = (inside * kernel * kernel) ** -0.5
        self.state[f"{name}.weight"] = scale * torch.randn(out, inside, kernel, kernel, generator=self._generator)

    def linear(self, name: str, out: int, inside: int, *, bias: bool = True) -> None:
        self.state[f"{name}.weight"] = inside**-0.5 * torch.randn(out, inside, generator=self._generator)
        if bias:
            self.state[f"{name}.bias"] = 0.1 * torch.randn(out, generator=self._generator)

    def norm(self, name: str, channels: int, *, affine: bool = True) -> None:
        if affine:
            self.state[f"{name}.weight"] = 0.5 + torch.rand(channels, generator=self._generator)
            self.state[f"{name}.bias"] = 0.3 * torch.randn(channels, generator=self._generator)
        self.state[f"{name}.running_mean"] = 0.3 * torch.randn(channels, generator=self._generator)
        self.state[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=self._generator)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def prelu(self, name: str, channels: int) -> None:
        self.state[f"{name}.weight"] = 0.4 * torch.rand(channels, generator=self._generator)


def norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    weight, bias = (state.get(f"{name}.{key}") for key in ("weight", "bias"))
    return F.batch_norm(x, state[f"{name}.running_mean"], state[f"{name}.running_var"], weight, bias, eps=eps)


def squeeze_excite_state(to: Writer, name: str, channels: int) -> None:
    to.conv(f"{name}.fc1", channels // 16, channels, 1)
    to.conv(f"{name}.fc2", channels, channels // 16, 1)


def squeeze_excite(state: State, name: str, x: Tensor) -> Tensor:
    y = F.relu(F.conv2d(x.mean((2, 3), keepdim=True), state[f"{name}.fc1.weight"]))
    return x * torch.sigmoid(F.conv2d(y, state[f"{name}.fc2.weight"]))


def iresnet_state(blocks: Sequence[int], *, last: int = 7, features: int = 64, excite: bool = False) -> State:
    """insightface's arcface_torch; ElasticFace's and MagFace's backbone too. ElasticFace's may have SE."""
    to = Writer()
    to.conv("conv1", 64, 3, 3)
    to.norm("bn1", 64)
    to.prelu("prelu", 64)
    inside = 64
    for stage, (count, out) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 1):
        for index in range(count):
            name = f"layer{stage}.{index}"
            to.norm(f"{name}.bn1", inside)
            to.conv(f"{name}.conv1", out, inside, 3)
            to.norm(f"{name}.bn2", out)
            to.prelu(f"{name}.prelu", out)
            to.conv(f"{name}.conv2", out, out, 3)
            to.norm(f"{name}.bn3", out)
            if excite:
                squeeze_excite_state(to, f"{name}.se_block", out)
            if index == 0:
                to.conv(f"{name}.downsample.0", out, inside, 1)
                to.norm(f"{name}.downsample.1", out)
            inside = out
    to.norm("bn2", 512)
    to.linear("fc", features, 512 * last * last)
    to.norm("features", features)
    return to.state


def iresnet(state: State, x: Tensor, *, eps: float = 1e-5) -> Tensor:
    x = F.prelu(norm(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1), eps), state["prelu.weight"])
    for stage in (1, 2, 3, 4):
        index = 0
        while f"layer{stage}.{index}.conv1.weight" in state:
            name, stride = f"layer{stage}.{index}", 2 if index == 0 else 1
            y = F.conv2d(norm(state, f"{name}.bn1", x, eps), state[f"{name}.conv1.weight"], padding=1)
            y = F.prelu(norm(state, f"{name}.bn2", y, eps), state[f"{name}.prelu.weight"])
            y = norm(state, f"{name}.bn3", F.conv2d(y, state[f"{name}.conv2.weight"], None, stride, 1), eps)
            if f"{name}.se_block.fc1.weight" in state:
                y = squeeze_excite(state, f"{name}.se_block", y)
            if index == 0:
                x = norm(state, f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], None, 2), eps)
            x, index = x + y, index + 1
    x = norm(state, "bn2", x, eps).flatten(1)
    return norm(state, "features", F.linear(x, state["fc.weight"], state["fc.bias"]), eps)


def ir_state(
    channels: Sequence[int],
    *,
    adaface: bool,
    bottleneck: bool = False,
    excite: str | None = None,
    affine: bool = True,
    last: int = 7,
) -> State:
    """face.evoLVe's and CurricularFace's IR (5 entries in res_layer), AdaFace's (6, in its bottlenecks 9).

    excite: where SE's entry is.
    """
    to = Writer()
    to.conv("input_layer.0", 64, 3, 3)
    to.norm("input_layer.1", 64)
    to.prelu("input_layer.2", 64)
    inside = 64
    for index, out in enumerate(channels):
        name = f"body.{index}.res_layer"
        to.norm(f"{name}.0", inside)
        if bottleneck:
            to.conv(f"{name}.1", out // 4, inside, 1)
            to.norm(f"{name}.2", out // 4)
            to.prelu(f"{name}.3", out // 4)
            to.conv(f"{name}.4", out // 4, out // 4, 3)
            to.norm(f"{name}.5", out // 4)
            to.prelu(f"{name}.6", out // 4)
            to.conv(f"{name}.7", out, out // 4, 1)
            to.norm(f"{name}.8", out)
        else:
            to.conv(f"{name}.1", out, inside, 3)
            if adaface:
                to.norm(f"{name}.2", out)
            to.prelu(f"{name}.{2 + adaface}", out)
            to.conv(f"{name}.{3 + adaface}", out, out, 3)
            to.norm(f"{name}.{4 + adaface}", out)
        if excite:
            squeeze_excite_state(to, f"{name}.{excite}", out)
        if inside != out:
            to.conv(f"body.{index}.shortcut_layer.0", out, inside, 1)
            to.norm(f"body.{index}.shortcut_layer.1", out)
        inside = out
    to.norm("output_layer.0", inside)
    to.linear("output_layer.3", 48, inside * last * last)
    to.norm("output_layer.4", 48, affine=affine)
    return to.state


def ir(state: State, x: Tensor) -> Tensor:
    x = F.conv2d(x, state["input_layer.0.weight"], padding=1)
    x = F.prelu(norm(state, "input_layer.1", x), state["input_layer.2.weight"])
    index, before = 0, 0
    while f"body.{index}.res_layer.1.weight" in state:
        name = f"body.{index}.res_layer"
        bottleneck = f"{name}.8.running_mean" in state
        between = f"{name}.5.running_mean" in state
        out = state[f"{name}.{7 if bottleneck else 1}.weight"].shape[0]
        stride = 2 if out != before else 1
        y = norm(state, f"{name}.0", x)
        if bottleneck:
            y = norm(state, f"{name}.2", F.conv2d(y, state[f"{name}.1.weight"]))
            y = F.conv2d(F.prelu(y, state[f"{name}.3.weight"]), state[f"{name}.4.weight"], padding=1)
            y = F.prelu(norm(state, f"{name}.5", y), state[f"{name}.6.weight"])
            y = norm(state, f"{name}.8", F.conv2d(y, state[f"{name}.7.weight"], None, stride))
        else:
            y = F.conv2d(y, state[f"{name}.1.weight"], padding=1)
            y = norm(state, f"{name}.2", y) if between else y
            y = F.conv2d(
                F.prelu(y, state[f"{name}.{2 + between}.weight"]),
                state[f"{name}.{3 + between}.weight"],
                None,
                stride,
                1,
            )
            y = norm(state, f"{name}.{4 + between}", y)
        for excite in ("5", "6", "se_block"):
            if f"{name}.{excite}.fc1.weight" in state:
                y = squeeze_excite(state, f"{name}.{excite}", y)
        if f"body.{index}.shortcut_layer.0.weight" in state:
            x = F.conv2d(x, state[f"body.{index}.shortcut_layer.0.weight"], None, stride)
            x = norm(state, f"body.{index}.shortcut_layer.1", x)
        else:
            x = x[:, :, ::stride, ::stride]
        x, before, index = x + y, out, index + 1
    x = norm(state, "output_layer.0", x).flatten(1)
    return norm(state, "output_layer.4", F.linear(x, state["output_layer.3.weight"], state["output_layer.3.bias"]))


_STAGES = (("conv_23", "conv_3", 24, 40, 2), ("conv_34", "conv_4", 32, 48, 1), ("conv_45", "conv_5", 32, 56, 2))


def mobilefacenet_state(last: int = 7) -> State:
    """FaceX-Zoo's."""
    to = Writer()

    def linear(name: str, out: int, inside: int, kernel: int) -> None:
        to.conv(f"{name}.conv", out, inside, kernel)
        to.norm(f"{name}.bn", out)

    def activated(name: str, out: int, inside: int, kernel: int) -> None:
        linear(name, out, inside, kernel)
        to.prelu(f"{name}.prelu", out)

    def bottleneck(name: str, inside: int, out: int, wide: int) -> None:
        activated(f"{name}.conv", wide, inside, 1)
        activated(f"{name}.conv_dw", wide, 1, 3)
        linear(f"{name}.project", out, wide, 1)

    activated("conv1", 16, 3, 3)
    activated("conv2_dw", 16, 1, 3)
    inside = 16
    for first, others, out, wide, count in _STAGES:
        bottleneck(first, inside, out, wide)
        for index in range(count):
            bottleneck(f"{others}.model.{index}", out, out, wide + 8 * index)
        inside = out
    activated("conv_6_sep", 64, inside, 1)
    linear("conv_6_dw", 64, 1, last)
    to.linear("linear", 48, 64, bias=False)
    to.norm("bn", 48)
    return to.state


def mobilefacenet(state: State, x: Tensor) -> Tensor:
    def linear(name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        return norm(state, f"{name}.bn", F.conv2d(x, weight, None, stride, padding, 1, x.shape[1] // weight.shape[1]))

    def activated(name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        return F.prelu(linear(name, x, stride, padding), state[f"{name}.prelu.weight"])

    def bottleneck(name: str, x: Tensor, stride: int) -> Tensor:
        return linear(f"{name}.project", activated(f"{name}.conv_dw", activated(f"{name}.conv", x), stride, 1))

    x = activated("conv2_dw", activated("conv1", x, 2, 1), 1, 1)
    for first, others, _, _, count in _STAGES:
        x = bottleneck(first, x, 2)
        for index in range(count):
            x = x + bottleneck(f"{others}.model.{index}", x, 1)
    x = linear("conv_6_dw", activated("conv_6_sep", x)).flatten(1)
    return norm(state, "bn", F.linear(x, state["linear.weight"]))


def arcface_mobilefacenet_state(
    blocks: tuple[int, int, int, int] = (1, 4, 6, 2), *, scale: int = 2, unit: int = 64, last: int = 7
) -> State:
    """arcface_torch's get_mbf and get_mbf_large. unit: 64 in all that are published; other widths are multiples."""
    to = Writer()

    def linear(name: str, out: int, inside: int, kernel: int) -> None:
        to.conv(f"{name}.layers.0", out, inside, kernel)
        to.norm(f"{name}.layers.1", out)

    def activated(name: str, out: int, inside: int, kernel: int) -> None:
        linear(name, out, inside, kernel)
        to.prelu(f"{name}.layers.2", out)

    def bottleneck(name: str, out: int, inside: int, wide: int) -> None:
        activated(f"{name}.layers.0", wide, inside, 1)
        activated(f"{name}.layers.1", wide, 1, 3)
        linear(f"{name}.layers.2", out, wide, 1)

    narrow, broad = unit * scale, 2 * unit * scale
    activated("layers.0", narrow, 3, 3)
    if blocks[0] == 1:
        activated("layers.1", narrow, scale, 3)
    else:
        for index in range(blocks[0]):
            bottleneck(f"layers.1.layers.{index}", narrow, narrow, 2 * unit)
    stages = ((narrow, narrow, 2, 2), (narrow, broad, 4, 4), (broad, broad, 8, 4))
    for stage, (inside, out, first, others) in enumerate(stages, 1):
        bottleneck(f"layers.{2 * stage}", out, inside, first * unit)
        for index in range(blocks[stage]):
            bottleneck(f"layers.{2 * stage + 1}.layers.{index}", out, out, others * unit)
    activated("conv_sep", 8 * unit, broad, 1)
    linear("features.layers.0", 8 * unit, 1, last)
    to.linear("features.layers.2", 48, 8 * unit, bias=False)
    to.norm("features.layers.3", 48)
    return to.state


def arcface_mobilefacenet(state: State, x: Tensor) -> Tensor:
    def linear(name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        weight = state[f"{name}.layers.0.weight"]
        x = F.conv2d(x, weight, None, stride, padding, 1, x.shape[1] // weight.shape[1])
        return norm(state, f"{name}.layers.1", x)

    def activated(name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        return F.prelu(linear(name, x, stride, padding), state[f"{name}.layers.2.weight"])

    def bottleneck(name: str, x: Tensor, stride: int) -> Tensor:
        x = activated(f"{name}.layers.1", activated(f"{name}.layers.0", x), stride, 1)
        return linear(f"{name}.layers.2", x)

    def residual(name: str, x: Tensor) -> Tensor:
        index = 0
        while f"{name}.layers.{index}.layers.0.layers.0.weight" in state:
            x, index = x + bottleneck(f"{name}.layers.{index}", x, 1), index + 1
        return x

    x = activated("layers.0", x, 2, 1)
    x = activated("layers.1", x, 1, 1) if "layers.1.layers.0.weight" in state else residual("layers.1", x)
    for stage in (2, 4, 6):
        x = residual(f"layers.{stage + 1}", bottleneck(f"layers.{stage}", x, 2))
    x = linear("features.layers.0", activated("conv_sep", x)).flatten(1)
    return norm(state, "features.layers.3", F.linear(x, state["features.layers.2.weight"]))
