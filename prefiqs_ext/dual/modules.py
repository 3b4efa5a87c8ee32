"""The layers that treat the dense and the pruned branch differently.

A pair is a batch of 2N rows: N dense rows, then the N pruned rows of the same images. Only the layers here treat the
two halves differently; every other operation of a converted graph runs on the pair as on any batch. A layer owns one
weight tensor, one bit per weight (its mask, packed by `prefiqs_ext.pruning_masks.pack_mask`) and a few numbers per
channel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prefiqs_ext import ops
from prefiqs_ext.pruning_masks import pack_mask


def duplicate(x: Tensor, dim: int = 0) -> Tensor:
    """Turn a value that both branches share into a pair of two equal halves.

    Args:
        x: [N, ...], any dtype.
        dim: The dimension that holds the N rows.

    Returns:
        [2N, ...] in the dtype and memory format of x.
    """
    return torch.cat([x, x], dim)


def double_size(size: tuple[int, ...], dim: int = 0) -> tuple[int, ...]:
    """Turn the shape (N, ...) of a shared value into that of its pair, (2N, ...); dim says where N is."""
    return (*size[:dim], 2 * size[dim], *size[dim + 1 :])


def double_number(number: int) -> int:
    """Turn a number that grows with N, such as a size that was read from a shared value, into that of its pair."""
    return 2 * number


class DualConv2d(nn.Module):
    """A convolution with the dense and the pruned weights, and everything that was folded into it.

    It computes `act(scale * conv(src) + bias + shift + residual)`, see `ops.dual_conv2d`. All tensors are copied;
    nothing is shared with the caller's.

    Args:
        weight: [Co, C/groups, kh, kw], before pruning. Kept as float32 in channels_last storage; `convert_to_half`
            rounds it to half precision.
        mask: bool, of the weight's shape, True where the pruned branch keeps the weight. Kept packed. None: both
            branches use the dense weights.
        pruned_scale: [Co], with a mask: what the pruned branch's sums of products are multiplied by. None: 1.
        bias: [Co] or, with a mask, [2, Co] (dense, pruned).
        tap_shift: [2, Co, kh, kw] (dense, pruned) with a mask, else [1, Co, kh, kw]. The shift is its sum over the
            kernel's taps that fall inside the image.
        slope: [1] or [Co], the slopes of a PReLU; zeros for ReLU. None: no activation.
        stride: As in torch.nn.Conv2d, like padding, dilation and groups.
        padding: Zeros on both sides of each axis.
        dilation: Steps between the taps.
        groups: Groups of channels.
        pad: Argument of torch.nn.functional.pad, applied to src first, for paddings that the operator does not have
            (reflection, zeros on one side).
        pad_mode: The mode of that padding.
    """

    weight: Tensor
    mask: Tensor | None
    pruned_scale: Tensor | None
    bias: Tensor | None
    tap_shift: Tensor | None
    slope: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        mask: Tensor | None = None,
        pruned_scale: Tensor | None = None,
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
        self.register_buffer("weight", _copy_float32(weight, torch.channels_last))
        self.register_buffer("mask", None if mask is None else pack_mask(mask).to(weight.device))
        self.register_buffer("pruned_scale", _copy_float32(pruned_scale))
        self.register_buffer("bias", _copy_float32(bias))
        self.register_buffer("tap_shift", _copy_float32(tap_shift))
        self.register_buffer("slope", _copy_float32(slope))
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.pad, self.pad_mode = pad, pad_mode

    def forward(
        self, src: Tensor, residual: Tensor | None = None, *, paired: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """Run the layer on one batch.

        Args:
            src: [N, C, H, W] or, if paired, [2N, C, H, W]; float32, or uint8 if not paired.
            residual: Added before the activation. As many rows as the result, or half as many, which both branches
                then share.
            paired: Whether src is a pair. An argument of the call, because a network may use one layer both ways.
            out: Where to write the result, as in `ops.dual_conv2d`.

        Returns:
            [2N, Co, Ho, Wo] with a mask, else with as many rows as src has.
        """
        if self.pad is not None:
            src = src if src.is_floating_point() else src.to(self.weight.dtype)
            src = F.pad(src, self.pad, self.pad_mode)
        return ops.dual_conv2d(
            src,
            self.weight,
            self.mask,
            self.pruned_scale,
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
        """Describe the layer for `print`."""
        out, inside, *kernel = self.weight.shape
        optional = ("mask", "pruned_scale", "bias", "tap_shift", "slope")
        folded = [name for name in optional if getattr(self, name) is not None]
        padding = self.padding if self.pad is None else f"{self.pad_mode} {self.pad}"
        return (
            f"{inside * self.groups} -> {out}, {'x'.join(map(str, kernel))}, stride={self.stride}, padding={padding}, "
            f"dilation={self.dilation}, groups={self.groups}, with {', '.join(folded) or 'weight only'}"
        )


class DualConv1d(DualConv2d):
    """A DualConv2d for [N, C, L], which it treats as a map of one row. Its weight is [Co, C/groups, 1, k]."""

    def forward(
        self, src: Tensor, residual: Tensor | None = None, *, paired: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """Run the layer on src [N, C, L], or [2N, C, L] if paired; returns [rows, Co, Lo] as DualConv2d does."""
        rows = [None if t is None else t.unsqueeze(2) for t in (residual, out)]
        return super().forward(src.unsqueeze(2), rows[0], paired=paired, out=rows[1]).squeeze(2)


class DualLinear(nn.Module):
    """A linear layer with the dense and the pruned weights. All tensors are copied.

    Args:
        weight: [Co, K], before pruning; kept as float32.
        mask: bool [Co, K], True where the pruned branch keeps the weight. Kept packed. None: both branches use the
            dense weights.
        pruned_scale: As in `DualConv2d`; kept as float32.
        bias: [Co] or, with a mask, [2, Co] (dense, pruned); kept as float32.
    """

    weight: Tensor
    mask: Tensor | None
    pruned_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        mask: Tensor | None = None,
        pruned_scale: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", _copy_float32(weight))
        self.register_buffer("mask", None if mask is None else pack_mask(mask).to(weight.device))
        self.register_buffer("pruned_scale", _copy_float32(pruned_scale))
        self.register_buffer("bias", _copy_float32(bias))

    def forward(self, src: Tensor, *, paired: bool = False) -> Tensor:
        """Run the layer on one batch.

        Args:
            src: [N, ..., K] or, if paired, [2N, ..., K]; float32.
            paired: Whether src is a pair.

        Returns:
            [2N, ..., Co] with a mask, else with as many rows as src has.
        """
        return ops.dual_linear(src, self.weight, self.mask, self.pruned_scale, self.bias, paired=paired)

    def extra_repr(self) -> str:
        """Describe the layer for `print`."""
        out, inside = self.weight.shape
        given = [name for name in ("mask", "pruned_scale", "bias") if getattr(self, name) is not None]
        return f"{inside} -> {out}, with {', '.join(given) or 'weight only'}"


def find_module(graph_module: nn.Module, node: fx.Node) -> Any:
    """Return the module that a node of a graph calls, or None if it calls none."""
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_dual_layer(graph_module: nn.Module, node: fx.Node) -> bool:
    """Tell whether a node of a converted graph calls a layer of this file."""
    return isinstance(find_module(graph_module, node), (DualConv2d, DualLinear))


def is_norm(node: fx.Node) -> bool:
    """Tell whether a node of a converted graph takes the norms of a layer's output."""
    return node.target is ops.dense_norm


def _copy_float32(tensor: Tensor | None, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor | None:
    """Copy to float32, so that nothing is shared with the caller's tensor."""
    if tensor is None:
        return None
    return torch.empty_like(tensor, dtype=torch.float32, memory_format=memory_format).copy_(tensor.detach())
