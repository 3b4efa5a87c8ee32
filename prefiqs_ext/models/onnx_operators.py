"""Translate each ONNX operator to PyTorch.

For example, `_import_conv` adds an nn.Conv2d to the torch graph. A node is refused if PyTorch has nothing that computes
exactly the same, or if it would move the batch dimension or mix the images of a batch. The meaning of each operator is
at https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from prefiqs_ext.models.onnx_node import Node, Pair, Shape, Window

SHAPED_BY_INFERENCE = frozenset({"Reshape", "Expand"})
"""Operators whose second input is a shape. It is not used: the inferred shape of the output says the same."""


class Operator(NamedTuple):
    """How one operator is imported.

    Attributes:
        attributes: The names of the supported attributes. A node with another attribute is refused.
        build: Adds the translation of a node to the torch graph, and returns its result there.
    """

    attributes: frozenset[str]
    build: Callable[[Node], fx.Node]


OPERATORS: dict[str, Operator] = {}
"""All supported operators by their ONNX names."""


def _register(names: str, attributes: str = "") -> Callable[[Callable[[Node], fx.Node]], Callable[[Node], fx.Node]]:
    """Return a decorator that puts a function into OPERATORS under these names, with these supported attributes."""

    def add(build: Callable[[Node], fx.Node]) -> Callable[[Node], fx.Node]:
        OPERATORS.update(dict.fromkeys(names.split(), Operator(frozenset(attributes.split()), build)))
        return build

    return add


@_register("Conv", "auto_pad dilations group kernel_shape pads strides")
def _import_conv(node: Node) -> fx.Node:
    weight, groups = node.get_tensor(1), node.attributes.get("group", 1)
    node.expect(weight.dim() == 4 and weight.numel() > 0, f"a 2-d convolution, got weights {list(weight.shape)}")
    out_channels, group_channels, *kernel = weight.shape
    window = node.get_window(kernel)
    node.expect(groups > 0 and out_channels % groups == 0, f"groups that divide {out_channels}, got {groups}")
    node.expect_size(1, group_channels * groups)
    x, padding = node.get_activation(), window.before
    if window.before != window.after:
        x, padding = node.pad(window.before, window.after, 0.0), (0, 0)
    conv = nn.Conv2d(
        group_channels * groups,
        out_channels,
        window.kernel,
        window.stride,
        padding,
        window.dilation,
        groups,
        bias=node.has(2),
        device="meta",  # the weights come from the file, so none are made here
    )
    conv.weight = nn.Parameter(weight)
    if node.has(2):
        conv.bias = nn.Parameter(node.get_vector(2, out_channels))
    return node.call_module(conv, x, weight=1)


@_register("BatchNormalization", "epsilon momentum spatial training_mode")
def _import_batch_norm(node: Node) -> fx.Node:
    trains = node.attributes.get("training_mode", 0) or any(node.outputs[1:]) or not node.attributes.get("spatial", 1)
    node.expect(not trains, "inference with one mean per channel")
    node.expect(node.get_rank() in (2, 3, 4), f"an input of rank 2, 3 or 4, got rank {node.get_rank()}")
    channels = node.get_tensor(1).numel()
    node.expect_size(1, channels)
    kind = nn.BatchNorm2d if node.get_rank() == 4 else nn.BatchNorm1d
    norm = kind(channels, eps=node.attributes.get("epsilon", 1e-5))
    norm.weight, norm.bias = (nn.Parameter(node.get_vector(i, channels)) for i in (1, 2))
    norm.running_mean, norm.running_var = (node.get_vector(i, channels) for i in (3, 4))
    return node.call_module(norm, weight=1)


@_register("PRelu")
def _import_prelu(node: Node) -> fx.Node:
    slope, rank = node.get_tensor(1), node.get_rank()
    aligned = (1,) * (rank - slope.dim()) + tuple(slope.shape)
    per_channel = len(aligned) == rank and all(size == 1 for axis, size in enumerate(aligned) if axis != 1)
    node.expect(slope.numel() == 1 or per_channel, f"one slope or one per channel, got shape {list(slope.shape)}")
    if slope.numel() > 1:
        node.expect_size(1, slope.numel())
    prelu = nn.PReLU(slope.numel())
    prelu.weight = nn.Parameter(slope.reshape(-1))
    return node.call_module(prelu, weight=1)


@_register("Relu")
def _import_relu(node: Node) -> fx.Node:
    return node.call_module(nn.ReLU())


@_register("LeakyRelu", "alpha")
def _import_leaky_relu(node: Node) -> fx.Node:
    return node.call_module(nn.LeakyReLU(node.attributes.get("alpha", 0.01)))


@_register("Sigmoid")
def _import_sigmoid(node: Node) -> fx.Node:
    return node.call_module(nn.Sigmoid())


@_register("Tanh")
def _import_tanh(node: Node) -> fx.Node:
    return node.call_module(nn.Tanh())


@_register("HardSwish")
def _import_hard_swish(node: Node) -> fx.Node:
    return node.call_module(nn.Hardswish())


@_register("HardSigmoid", "alpha beta")
def _import_hard_sigmoid(node: Node) -> fx.Node:
    scaled = node.call_function(operator.mul, node.get_activation(), node.attributes.get("alpha", 0.2))
    return node.call_function(
        torch.clamp, node.call_function(operator.add, scaled, node.attributes.get("beta", 0.5)), min=0.0, max=1.0
    )


@_register("Clip", "min max")
def _import_clip(node: Node) -> fx.Node:
    low, high = (
        node.attributes.get(name) if node.opset < 11 else node.get_number(index) if node.has(index) else None
        for index, name in ((1, "min"), (2, "max"))
    )
    if low is None and high is None:
        return node.get_activation()
    if low == 0 and high in (None, 6):
        return node.call_module(nn.ReLU() if high is None else nn.ReLU6())
    return node.call_function(torch.clamp, node.get_activation(), min=low, max=high)


@_register("Softmax", "axis")
def _import_softmax(node: Node) -> fx.Node:
    rank = node.get_rank()
    axis = node.resolve_axis(node.attributes.get("axis", 1 if node.opset < 13 else -1), rank)
    # Before opset 13, the softmax ran over this axis and all later ones together.
    node.expect(node.opset >= 13 or axis == rank - 1, f"the last axis in opset {node.opset}, got axis {axis}")
    return node.call_module(nn.Softmax(axis))


@_register("Add Sub Mul Div")
def _import_arithmetic(node: Node) -> fx.Node:
    function = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.truediv}[node.op]
    ranks = [node.get_rank(i) for i in (0, 1) if not node.is_constant(i)]
    node.expect(bool(ranks), "an input that is not constant")
    # ONNX aligns shapes at the right: with different ranks, the batch would meet another dimension.
    node.expect(len(set(ranks)) == 1, f"inputs of equal rank, got ranks {ranks}")
    first, second = (_get_operand(node, i, ranks[0]) if node.is_constant(i) else node.get_activation(i) for i in (0, 1))
    return node.call_function(function, first, second)


def _get_operand(node: Node, index: int, rank: int) -> fx.Node | float:
    """Return a constant input for a calculation with an activation of this rank: as a number, or as a buffer."""
    value = node.get_tensor(index)
    node.expect(value.dim() <= rank, f"a constant of rank {rank} or less, got shape {list(value.shape)}")
    if value.numel() == 1:
        return float(value)
    value = value.reshape((1,) * (rank - value.dim()) + tuple(value.shape))
    node.expect(value.shape[0] == 1, f"a constant without a batch, got shape {list(value.shape)}")
    return node.add_buffer(index, value)


def _add_linear(node: Node, weight: Tensor, bias: Tensor | None) -> fx.Node:
    """Add a linear layer with a weight ``[out, in]`` and a bias ``[out]``."""
    node.expect_size(-1, weight.shape[1])
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return node.call_module(linear, weight=1)


@_register("Gemm", "alpha beta transA transB")
def _import_gemm(node: Node) -> fx.Node:
    factors = [node.attributes.get(name, 1.0) for name in ("alpha", "beta")]
    node.expect(factors == [1.0, 1.0], f"alpha and beta of 1, got {factors}")
    node.expect(not node.attributes.get("transA", 0), "transA 0: the batch is first")
    weight = node.get_tensor(1)
    node.expect(weight.dim() == 2 and weight.numel() > 0, f"a weight matrix, got shape {list(weight.shape)}")
    weight = weight if node.attributes.get("transB", 0) else weight.t()
    bias = node.get_tensor(2) if node.has(2) else None
    if bias is not None:
        features = weight.shape[0]
        node.expect(
            bias.shape in ((), (1,), (features,), (1, features), (1, 1)), f"{features} biases, got {list(bias.shape)}"
        )
        bias = bias.reshape(-1).expand(features).clone()
    return _add_linear(node, weight, bias)


@_register("MatMul")
def _import_matmul(node: Node) -> fx.Node:
    weight = node.get_tensor(1)
    node.expect(weight.dim() == 2 and weight.numel() > 0, f"a weight matrix, got shape {list(weight.shape)}")
    return _add_linear(node, weight.t(), None)


def _prepare_pool_input(node: Node, window: Window, fill: float, *, exact: bool) -> tuple[fx.Node, Pair]:
    """Return what to pool, and the padding for PyTorch's pooling module.

    PyTorch pads both sides alike, and by half the kernel at most. Otherwise the input is padded here, by a module of
    its own.

    Args:
        node: The pooling.
        window: Its window.
        fill: The value to pad with.
        exact: Whether padding here gives exactly the same result. If not, the node is refused.
    """
    if window.before == window.after and all(2 * p <= k for p, k in zip(window.before, window.kernel, strict=True)):
        return node.get_activation(), window.before
    node.expect(exact, "pads equal on both sides and at most half the kernel")
    return node.pad(window.before, window.after, fill), (0, 0)


@_register("MaxPool", "auto_pad ceil_mode dilations kernel_shape pads storage_order strides")
def _import_max_pool(node: Node) -> fx.Node:
    node.expect(not any(node.outputs[1:]), "no output of indices")
    window, ceil = node.get_window(), bool(node.attributes.get("ceil_mode", 0))
    x, padding = _prepare_pool_input(node, window, float("-inf"), exact=not ceil)
    return node.call_module(nn.MaxPool2d(window.kernel, window.stride, padding, window.dilation, ceil_mode=ceil), x)


@_register("AveragePool", "auto_pad ceil_mode count_include_pad dilations kernel_shape pads strides")
def _import_average_pool(node: Node) -> fx.Node:
    window, counts_padding = node.get_window(), bool(node.attributes.get("count_include_pad", 0))
    node.expect(window.dilation == (1, 1), f"no dilation, got {window.dilation}")
    node.expect(not node.attributes.get("ceil_mode", 0), "no ceil_mode")
    x, padding = _prepare_pool_input(node, window, 0.0, exact=counts_padding)
    return node.call_module(nn.AvgPool2d(window.kernel, window.stride, padding, count_include_pad=counts_padding), x)


@_register("GlobalAveragePool GlobalMaxPool")
def _import_global_pool(node: Node) -> fx.Node:
    node.expect(node.get_rank() == 4, f"an input of rank 4, got rank {node.get_rank()}")
    return node.call_module(nn.AdaptiveAvgPool2d(1) if node.op == "GlobalAveragePool" else nn.AdaptiveMaxPool2d(1))


@_register("ReduceMean ReduceL2", "axes keepdims noop_with_empty_axes")
def _import_reduce(node: Node) -> fx.Node:
    axes = node.get_integers("axes", 1, default=())
    node.expect(bool(axes), "axes: without them the batch is reduced too")
    dims = tuple(node.resolve_axis(axis, node.get_rank()) for axis in axes)
    function: Callable[..., Any] = torch.mean if node.op == "ReduceMean" else torch.linalg.vector_norm
    return node.call_function(
        function, node.get_activation(), dim=dims, keepdim=bool(node.attributes.get("keepdims", 1))
    )


@_register("Dropout", "ratio seed")
def _import_dropout(node: Node) -> fx.Node:
    node.expect(not node.has(2) or not node.get_constant(2).any(), "training_mode false")
    ratio = node.attributes.get("ratio", node.get_number(1) if node.has(1) else 0.5)
    return node.call_module(nn.Dropout(ratio))


@_register("Identity")
def _import_identity(node: Node) -> fx.Node:
    return node.get_activation()


@_register("Flatten", "axis")
def _import_flatten(node: Node) -> fx.Node:
    axis = node.attributes.get("axis", 1)
    node.expect(axis in (1, 1 - node.get_rank()), f"axis 1, which keeps the batch, got {axis}")
    return node.call_module(nn.Flatten(1))


@_register("Reshape", "allowzero")
def _import_reshape(node: Node) -> fx.Node:
    sizes = _get_checked_shape(node)
    # If a reshape keeps the number of rows, each row keeps its values.
    if len(sizes) == 2:
        return node.call_module(nn.Flatten(1))
    return node.call_function(torch.reshape, node.get_activation(), (-1, *_require_fixed(node, sizes[1:])))


@_register("Expand")
def _import_expand(node: Node) -> fx.Node:
    sizes = _get_checked_shape(node)
    node.expect(len(sizes) == node.get_rank(), f"a shape of rank {node.get_rank()}, got {list(sizes)}")
    return node.call_method("expand", -1, *_require_fixed(node, sizes[1:]))


def _get_checked_shape(node: Node) -> Shape:
    """Return the shape of the output. Refuse the node if its first size is not that of the input, the batch."""
    batch, sizes = node.get_shape()[0], node.get_output_shape()
    node.expect(
        len(sizes) > 1 and sizes[0] == batch, f"a shape that keeps the batch ({batch}), got {_format_shape(sizes)}"
    )
    return sizes


def _require_fixed(node: Node, sizes: Shape) -> list[int]:
    """Return the sizes. Refuse the node if one of them is open."""
    known = [size for size in sizes if size]
    node.expect(len(known) == len(sizes), f"a shape fixed by the file, got {_format_shape(sizes)} after the batch")
    return known


def _format_shape(shape: Shape) -> str:
    """Return the text of a shape, such as "[1, ?, 7]" if the second size is open."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


@_register("Transpose", "perm")
def _import_transpose(node: Node) -> fx.Node:
    perm = node.get_integers("perm", default=range(node.get_rank())[::-1])
    node.expect(perm[0] == 0, f"the batch to stay first, got perm {perm}")
    return node.call_function(torch.permute, node.get_activation(), tuple(perm))


@_register("Squeeze", "axes")
def _import_squeeze(node: Node) -> fx.Node:
    axes = node.get_integers("axes", 1, default=())
    node.expect(bool(axes), "axes: without them a batch of 1 is squeezed too")
    return node.call_function(
        torch.squeeze, node.get_activation(), tuple(node.resolve_axis(axis, node.get_rank()) for axis in axes)
    )


@_register("Unsqueeze", "axes")
def _import_unsqueeze(node: Node) -> fx.Node:
    axes = node.get_integers("axes", 1)
    x = node.get_activation()
    for axis in sorted(node.resolve_axis(axis, node.get_rank() + len(axes)) for axis in axes):
        x = node.call_function(torch.unsqueeze, x, axis)
    return x


@_register("Concat", "axis")
def _import_concat(node: Node) -> fx.Node:
    axis = node.resolve_axis(node.attributes["axis"], node.get_rank())
    return node.call_function(torch.cat, [node.get_activation(i) for i in range(len(node.inputs))], axis)


@_register("Pad", "mode pads value")
def _import_pad(node: Node) -> fx.Node:
    mode = node.attributes.get("mode", b"constant").decode()
    node.expect(mode == "constant", f"mode constant, got {mode}")
    node.expect(node.get_rank() == 4 and not node.has(3), "pads of all four axes of [N, C, H, W]")
    pads = node.get_integers("pads", 1)
    node.expect(len(pads) == 8 and min(pads) >= 0, f"eight pads of 0 or more, got {pads}")
    node.expect(not any(pads[:2] + pads[4:6]), f"no pads of the batch or the channels, got {pads}")
    value = node.get_number(2) if node.has(2) else node.attributes.get("value", 0.0)
    return node.pad((pads[2], pads[3]), (pads[6], pads[7]), value)
