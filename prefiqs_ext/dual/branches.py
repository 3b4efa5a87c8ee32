"""A converted graph as two networks of ordinary operations, for exporters that do not know the package's own.

A pair, which is one tensor [2N, ...] in a converted graph, is two tensors [N, ...] here. Everything that was folded
into the layers stays folded, so both give the same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prefiqs_ext.dual.modules import (
    DualConv1d,
    DualConv2d,
    DualLinear,
    double_number,
    double_size,
    duplicate,
    find_module,
    is_dual_layer,
    is_norm,
)
from prefiqs_ext.pruning_masks import unpack_mask

_TWINS = (duplicate, double_number, double_size)
# Operators of a graph by torch.export, as methods: of these, torch's tracer sees that sizes grow with the batch.
_METHODS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._to_copy.default: lambda x, *, dtype=None, **_: x if dtype is None else x.to(dtype),
    torch.ops.aten.sym_size.int: Tensor.size,
    torch.ops.aten.reshape.default: Tensor.reshape,
    torch.ops.aten.expand.default: Tensor.expand,
}


@dataclass(frozen=True)
class _Branches:
    """What a node gives in the dense and in the pruned branch."""

    dense: Any
    pruned: Any


class SeparateBranches(nn.Module):
    """A converted graph whose layers are plain convolutions, with a second weight, weight * mask, where pruned.

    Args:
        graph: What `dualize` gave, in float32. Its tensors are shared, but for the masks, which are unpacked to a byte
            per weight.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = fx.GraphModule(graph, graph.graph)
        for node in {str(node.target): node for node in graph.graph.nodes if is_dual_layer(graph, node)}.values():
            layer = find_module(graph, node)
            plain = _PlainLinear(layer) if isinstance(layer, DualLinear) else _PlainConv(layer)
            self.graph.set_submodule(str(node.target), plain)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run both branches.

        Args:
            images: [N, ...], as the graph takes them.

        Returns:
            The dense and the pruned embeddings [N, d], not normalised, and the norms of K layers [N, K].
        """
        result = _Interpreter(self.graph).run(images)
        pair, norms = result if isinstance(result, tuple) else (result, images.new_empty(len(images), 0).float())
        return _take(pair, "dense"), _take(pair, "pruned"), norms


class _Interpreter(fx.Interpreter):
    """Runs a graph once for what both branches share, and once for each branch from the first pruned layer on."""

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; gives a value, or `_Branches` of two."""
        values = [self.env[source] for source in n.all_input_nodes]
        if n.target in _TWINS:  # both halves are equal: the shared value serves both branches
            return values[0]
        if n.op == "output":
            return fx.map_arg(n.args[0], self.env.__getitem__)
        if is_norm(n):
            return _measure_rows(_take(values[0], "dense"))
        layer = find_module(self.module, n)
        masked = isinstance(layer, _PlainLayer) and layer.mask is not None
        if not masked and not any(isinstance(value, _Branches) for value in values):
            return self._run_branch(n, "dense")
        return _Branches(self._run_branch(n, "dense"), self._run_branch(n, "pruned"))

    def _run_branch(self, n: fx.Node, branch: str) -> Any:
        def take(node: fx.Node) -> Any:
            return _take(self.env[node], branch)

        if n.op == "placeholder":
            return super().run_node(n)
        args, kwargs = fx.map_arg(n.args, take), fx.map_arg(n.kwargs, take)
        if isinstance(find_module(self.module, n), _PlainLayer):
            kwargs = {"pruned": branch == "pruned"}
        if n.target in _METHODS:
            return _METHODS[n.target](*args, **kwargs)
        return getattr(self, n.op)(n.target, args, kwargs)


class _PlainLayer(nn.Module):
    """What the layers have in common: one weight, one mask and the constants of each branch."""

    weight: Tensor
    mask: Tensor | None
    pruned_scale: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: DualConv2d | DualLinear) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight)
        mask = None if layer.mask is None else unpack_mask(layer.mask, layer.weight.shape)
        self.register_buffer("mask", mask)
        self.register_buffer("pruned_scale", layer.pruned_scale)
        self.register_buffer("bias", layer.bias)

    def _pick(self, pruned: bool) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of one branch."""
        bias = self.bias
        if bias is not None and bias.dim() == 2:
            bias = bias[int(pruned)]
        if not pruned or self.mask is None:
            return self.weight, bias
        weight = self.weight * self.mask
        if self.pruned_scale is not None:  # of the products alone: the bias has its gain in it
            weight = weight * self.pruned_scale.view(-1, *(1,) * (weight.dim() - 1))
        return weight, bias


class _PlainLinear(_PlainLayer):
    """A `DualLinear` in one branch."""

    def forward(self, src: Tensor, *, pruned: bool) -> Tensor:
        """Run one branch on src [N, ..., K]."""
        return F.linear(src, *self._pick(pruned))


class _PlainConv(_PlainLayer):
    """A `DualConv2d` or `DualConv1d` in one branch."""

    tap_shift: Tensor | None
    slope: Tensor | None

    def __init__(self, layer: DualConv2d) -> None:
        super().__init__(layer)
        self.register_buffer("tap_shift", layer.tap_shift)
        self.rectifies = layer.slope is not None and not bool(layer.slope.any())
        self.register_buffer("slope", None if self.rectifies else layer.slope)
        self.window: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        self.groups, self.pad, self.pad_mode = layer.groups, layer.pad, layer.pad_mode
        self.is_1d = isinstance(layer, DualConv1d)

    def forward(self, src: Tensor, residual: Tensor | None = None, *, pruned: bool) -> Tensor:
        """Run one branch on src [N, C, H, W], or [N, C, L]; the residual has as many rows."""
        if self.is_1d:
            src, residual = src.unsqueeze(2), None if residual is None else residual.unsqueeze(2)
        src = src.to(self.weight.dtype)
        if self.pad is not None:
            src = F.pad(src, self.pad, self.pad_mode)
        weight, bias = self._pick(pruned)
        result: Tensor = F.conv2d(src, weight, bias, groups=self.groups, **self.window)
        if self.tap_shift is not None:
            # Ones convolved with the shifts are the sums over the taps that fall inside the image.
            ones = torch.ones(1, 1, *map(int, src.shape[2:]))
            shifts = self.tap_shift[-1 if pruned else 0]  # one for both without a mask
            result = result + F.conv2d(ones, shifts.unsqueeze(1), **self.window)
        if residual is not None:
            result = result + residual
        if self.rectifies:
            result = F.relu(result)
        elif self.slope is not None:
            result = F.prelu(result, self.slope)
        return result.squeeze(2) if self.is_1d else result


def _measure_rows(rows: Tensor) -> Tensor:
    """Return the norms [N] of rows [N, ...], dimension by dimension: float32 sums of whole maps would lose digits."""
    while rows.dim() > 1:
        rows = torch.linalg.vector_norm(rows, dim=-1)
    return rows


def _take(value: Any, branch: str) -> Any:
    return getattr(value, branch) if isinstance(value, _Branches) else value
