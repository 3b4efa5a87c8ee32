"""Operators that compute every number on its own, or from the numbers along an axis: activations, arithmetic, sums."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from prefiqs_ext.models.onnx_import.node import Node
from prefiqs_ext.models.onnx_import.registry import register

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Neg": operator.neg,
    "Reciprocal": torch.reciprocal,
    "Sin": torch.sin,
    "Sqrt": torch.sqrt,
}


@register(" ".join(_FUNCTIONS))
def _import_function(node: Node) -> fx.Node:
    return node.call_function(_FUNCTIONS[node.op], node.get_activation())


@register("Relu")
def _import_relu(node: Node) -> fx.Node:
    return node.call_module(nn.ReLU())


@register("LeakyRelu", "alpha")
def _import_leaky_relu(node: Node) -> fx.Node:
    return node.call_module(nn.LeakyReLU(node.attributes.get("alpha", 0.01)))


@register("Sigmoid")
def _import_sigmoid(node: Node) -> fx.Node:
    return node.call_module(nn.Sigmoid())


@register("Tanh")
def _import_tanh(node: Node) -> fx.Node:
    return node.call_module(nn.Tanh())


@register("HardSwish")
def _import_hard_swish(node: Node) -> fx.Node:
    return node.call_module(nn.Hardswish())


@register("HardSigmoid", "alpha beta")
def _import_hard_sigmoid(node: Node) -> fx.Node:
    scaled = node.call_function(operator.mul, node.get_activation(), node.attributes.get("alpha", 0.2))
    return node.call_function(
        torch.clamp, node.call_function(operator.add, scaled, node.attributes.get("beta", 0.5)), min=0.0, max=1.0
    )


@register("Clip", "min max")
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


@register("Elu", "alpha")
def _import_elu(node: Node) -> fx.Node:
    return node.call_module(nn.ELU(node.attributes.get("alpha", 1.0)))


@register("Softplus")
def _import_softplus(node: Node) -> fx.Node:
    return node.call_module(nn.Softplus())


@register("Mish")
def _import_mish(node: Node) -> fx.Node:
    return node.call_module(nn.Mish())


@register("Gelu", "approximate")
def _import_gelu(node: Node) -> fx.Node:
    return node.call_module(nn.GELU(node.attributes.get("approximate", b"none").decode()))


@register("Softmax", "axis")
def _import_softmax(node: Node) -> fx.Node:
    rank = node.get_rank()
    axis = node.resolve_axis(node.attributes.get("axis", 1 if node.opset < 13 else -1))
    # Before opset 13, the softmax ran over this axis and all later ones together.
    node.expect(node.opset >= 13 or axis == rank - 1, f"the last axis in opset {node.opset}, got axis {axis}")
    return node.call_module(nn.Softmax(axis))


@register("Identity")
def _import_identity(node: Node) -> fx.Node:
    return node.get_activation()


@register("Cast", "round_mode saturate to")
def _import_cast(node: Node) -> fx.Node:
    node.expect(node.attributes["to"] == 1, "a cast to float32")  # every activation is float32, so it changes nothing
    return node.get_activation()


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.truediv,
    "Pow": operator.pow,
    "Sum": operator.add,
    "Max": torch.maximum,
    "Min": torch.minimum,
}


@register(" ".join(_ARITHMETIC))
def _import_arithmetic(node: Node) -> fx.Node:
    indices = range(len(node.inputs))
    node.align_batch()
    operands = [_get_operand(node, i) if node.is_constant(i) else node.get_activation(i) for i in indices]
    if node.op in ("Max", "Min"):
        operands = [node.add_buffer(node.name, torch.tensor(x)) if isinstance(x, float) else x for x in operands]
    if len(operands) == 1:
        return node.get_activation()
    function = _ARITHMETIC[node.op]
    result = node.call_function(function, *operands[:2])
    for operand in operands[2:]:
        result = node.call_function(function, result, operand)
    return result


def _get_operand(node: Node, index: int) -> fx.Node | float:
    """Return a constant input for a calculation with an activation: as a number, or as a buffer of its rank."""
    value, rank = node.get_rowless_tensor(index), node.get_activation_rank()
    node.expect(value.dim() <= rank, f"a constant of rank {rank} or less, got shape {list(value.shape)}")
    if value.numel() == 1:
        return float(value)
    return node.add_buffer(node.inputs[index], value.reshape((1,) * (rank - value.dim()) + tuple(value.shape)))


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceL2": torch.linalg.vector_norm,
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
}


@register(" ".join(_REDUCTIONS), "axes keepdims noop_with_empty_axes", data=1)
def _import_reduce(node: Node) -> fx.Node:
    axes = node.get_integers("axes", 1, default=())
    node.expect(bool(axes), "axes: without them the batch is reduced too")
    dims, keepdim = tuple(node.resolve_axis(axis) for axis in axes), bool(node.attributes.get("keepdims", 1))
    result = node.call_function(_REDUCTIONS[node.op], node.get_activation(), dim=dims, keepdim=keepdim)
    node.batch_axis -= 0 if keepdim else sum(dim < node.batch_axis for dim in dims)
    return result
