"""The layers that know of the two branches. Everything else in a converted graph runs on the pair as on any batch.

A pair is a batch of 2N rows, dense rows first. A layer owns one weight tensor, one bit per weight (its mask, packed as
`prefiqs_ext.masks.pack_mask` says) and a few numbers per channel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prefiqs_ext import ops
from prefiqs_ext.masks import pack_mask


def duplicate(x: Tensor, dim: int = 0) -> Tensor:
    """A shared value [N, ...] -> the pair [2N, ...] of two equal halves, in x's memory format. dim: where N is."""
    return torch.cat([x, x], dim)


def paired_size(size: tuple[int, ...], dim: int = 0) -> tuple[int, ...]:
    """The shape (N, ...) of a shared value -> (2N, ...). dim: where N is."""
    return (*size[:dim], 2 * size[dim], *size[dim + 1 :])


class DualConv2d(nn.Module):
    """A convolution under the dense and the pruned weights, with what was folded into it.

    dst = act(conv(src) + bias + sum over the taps inside the image of tap_shift + residual), see ops.dual_conv2d.

    weight: [Co, C/g, kh, kw], not masked; kept as a float32 copy in channels_last storage (`to_half` makes it half
    precision, on a GPU). mask: bool of the weight's
    shape, True = keep, kept packed; None runs both branches, or the one, on the dense weights. bias [Co]; tap_shift
    [2, Co, kh, kw] with a mask, else [1, Co, kh, kw]; slope [1] or [Co], 0 for ReLU; all kept as float32 copies.
    stride, padding, dilation, groups: as in torch.nn.Conv2d. pad, pad_mode: arguments of torch.nn.functional.pad,
    applied to src first: paddings that the operator has not (reflection, one-sided zeros).
    """

    weight: Tensor
    mask: Tensor | None
    bias: Tensor | None
    tap_shift: Tensor | None
    slope: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        tap_shift: Tensor | None = None,
        slope: Tensor | None = None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        pad: tuple[int, ...] | None = None,
        pad_mode: str = "constant",
    ) -> None:
        super().__init__()
        self.register_buffer("weight", _own(weight, torch.channels_last))
        self.register_buffer("mask", None if mask is None else pack_mask(mask).to(weight.device))
        self.register_buffer("bias", _own(bias))
        self.register_buffer("tap_shift", _own(tap_shift))
        self.register_buffer("slope", _own(slope))
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.pad, self.pad_mode = pad, pad_mode

    def forward(
        self, src: Tensor, residual: Tensor | None = None, *, paired: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """src [N, C, H, W], or [2N, C, H, W] if paired, float32 or (not paired) uint8 -> [rows, Co, Ho, Wo].

        rows: 2N with a mask, else as many as src has. residual: as many rows as the result, or half as many, which both
        branches then share. paired is an argument of the call: a network may use one layer on both kinds of value. out:
        where to write the result, as ops.dual_conv2d takes it.
        """
        if self.pad is not None:
            src = src if src.is_floating_point() else src.to(self.weight.dtype)
            src = F.pad(src, self.pad, self.pad_mode)
        return ops.dual_conv2d(
            src,
            self.weight,
            self.mask,
            self.bias,
            self.tap_shift,
            self.slope,
            residual,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            paired=paired,
            out=out,
        )

    def extra_repr(self) -> str:
        out, inside, *kernel = self.weight.shape
        folded = [name for name in ("mask", "bias", "tap_shift", "slope") if getattr(self, name) is not None]
        padding = self.padding if self.pad is None else f"{self.pad_mode} {self.pad}"
        return (
            f"{inside * self.groups} -> {out}, {'x'.join(map(str, kernel))}, stride={self.stride}, padding={padding}, "
            f"dilation={self.dilation}, groups={self.groups}, with {', '.join(folded) or 'weight only'}"
        )


class DualConv1d(DualConv2d):
    """As DualConv2d for [N, C, L]: a map of one row. Its weight is [Co, C/g, 1, k]."""

    def forward(
        self, src: Tensor, residual: Tensor | None = None, *, paired: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """src [N, C, L], or [2N, C, L] if paired -> [rows, Co, Lo]."""
        rows = [None if t is None else t.unsqueeze(2) for t in (residual, out)]
        return super().forward(src.unsqueeze(2), rows[0], paired=paired, out=rows[1]).squeeze(2)


class DualLinear(nn.Module):
    """A linear layer under the dense and the pruned weights.

    weight: [Co, K], not masked, kept as a float32 copy. mask: bool [Co, K], True = keep, kept packed; None runs both
    branches, or the one, on the dense weights. bias: [Co], kept as a float32 copy.
    """

    weight: Tensor
    mask: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", _own(weight))
        self.register_buffer("mask", None if mask is None else pack_mask(mask).to(weight.device))
        self.register_buffer("bias", _own(bias))

    def forward(self, src: Tensor, *, paired: bool = False) -> Tensor:
        """src [N, ..., K], or [2N, ..., K] if paired -> [rows, ..., Co], rows: 2N with a mask, else as many as src."""
        return ops.dual_linear(src, self.weight, self.mask, self.bias, paired=paired)

    def extra_repr(self) -> str:
        out, inside = self.weight.shape
        return f"{inside} -> {out}, {'dense' if self.mask is None else 'with mask'}"


def module_of(graph_module: nn.Module, node: fx.Node) -> Any:
    """The module that a node of a graph calls; None where it calls none."""
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_layer(graph_module: nn.Module, node: fx.Node) -> bool:
    """Whether a node of a dual graph is one of these layers."""
    return isinstance(module_of(graph_module, node), (DualConv2d, DualLinear))


def _own(tensor: Tensor | None, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor | None:
    """A float32 copy that shares nothing with the caller's tensor."""
    if tensor is None:
        return None
    return torch.empty_like(tensor, dtype=torch.float32, memory_format=memory_format).copy_(tensor.detach())
