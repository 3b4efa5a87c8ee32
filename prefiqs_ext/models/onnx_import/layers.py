"""Layers with weights, norms and pooling over whole maps."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from prefiqs_ext.models.onnx_import.node import Node
from prefiqs_ext.models.onnx_import.registry import register
from prefiqs_ext.models.onnx_import.window import get_window, pad_images


@register("Conv", "auto_pad dilations group kernel_shape pads strides")
def _import_conv(node: Node) -> fx.Node:
    weight, groups = node.get_tensor(1), node.attributes.get("group", 1)
    node.expect(weight.dim() == 4 and weight.numel() > 0, f"a 2-d convolution, got weights {list(weight.shape)}")
    out_channels, group_channels, *kernel = weight.shape
    window = get_window(node, kernel)
    node.expect(groups > 0 and out_channels % groups == 0, f"groups that divide {out_channels}, got {groups}")
    node.expect_size(1, group_channels * groups)
    x, padding = node.get_activation(), window.before
    if window.before != window.after:
        x, padding = pad_images(node, window.before, window.after, 0.0), (0, 0)
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


@register("BatchNormalization", "epsilon momentum spatial training_mode")
def _import_batch_norm(node: Node) -> fx.Node:
    trains = node.attributes.get("training_mode", 0) or any(node.outputs[1:]) or not node.attributes.get("spatial", 1)
    node.expect(not trains, "inference with one mean per channel")
    node.expect(node.get_rank() in (2, 3, 4), f"an input of rank 2, 3 or 4, got rank {node.get_rank()}")
    node.expect_batch_first()
    channels = node.get_tensor(1).numel()
    node.expect_size(1, channels)
    kind = nn.BatchNorm2d if node.get_rank() == 4 else nn.BatchNorm1d
    norm = kind(channels, eps=node.attributes.get("epsilon", 1e-5))
    norm.weight, norm.bias = (nn.Parameter(node.get_vector(i, channels)) for i in (1, 2))
    norm.running_mean, norm.running_var = (node.get_vector(i, channels) for i in (3, 4))
    return node.call_module(norm, weight=1)


@register("PRelu")
def _import_prelu(node: Node) -> fx.Node:
    slope, rank = node.get_tensor(1), node.get_rank()
    node.expect_batch_first()
    aligned = (1,) * (rank - slope.dim()) + tuple(slope.shape)
    per_channel = len(aligned) == rank and all(size == 1 for axis, size in enumerate(aligned) if axis != 1)
    node.expect(slope.numel() == 1 or per_channel, f"one slope or one per channel, got shape {list(slope.shape)}")
    if slope.numel() > 1:
        node.expect_size(1, slope.numel())
    prelu = nn.PReLU(slope.numel())
    prelu.weight = nn.Parameter(slope.reshape(-1))
    return node.call_module(prelu, weight=1)


@register("LayerNormalization", "axis epsilon stash_type")
def _import_layer_norm(node: Node) -> fx.Node:
    node.expect(not any(node.outputs[1:]), "no mean and deviation as outputs")
    shape = node.get_fixed_shape()
    axis = node.resolve_axis(node.attributes.get("axis", -1))
    node.expect(node.batch_axis < axis, f"the batch before the normalised axes, it is axis {node.batch_axis}")
    sizes, eps = shape[axis:], node.attributes.get("epsilon", 1e-5)
    weight, bias = (_get_norm_parameter(node, index, sizes) for index in (1, 2))
    norm = nn.LayerNorm(sizes, eps, elementwise_affine=weight is not None, bias=bias is not None, device="meta")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            setattr(norm, name, nn.Parameter(value))
    return node.call_module(norm, weight=1)


def _get_norm_parameter(node: Node, index: int, sizes: tuple[int, ...]) -> Tensor | None:
    if not node.has(index):
        return None
    value = node.get_tensor(index)
    node.expect(value.dim() <= len(sizes), f"weights of shape {list(sizes)}, got {list(value.shape)}")
    return value.expand(sizes).clone()


@register("InstanceNormalization", "epsilon")
def _import_instance_norm(node: Node) -> fx.Node:
    node.expect(node.get_rank() in (3, 4), f"an input of rank 3 or 4, got rank {node.get_rank()}")
    node.expect_batch_first()
    channels = node.get_tensor(1).numel()
    node.expect_size(1, channels)
    kind = nn.InstanceNorm2d if node.get_rank() == 4 else nn.InstanceNorm1d
    norm = kind(channels, eps=node.attributes.get("epsilon", 1e-5), affine=True)
    norm.weight, norm.bias = (nn.Parameter(node.get_vector(i, channels)) for i in (1, 2))
    return node.call_module(norm, weight=1)


@register("LpNormalization", "axis p")
def _import_lp_norm(node: Node) -> fx.Node:
    axis, p = node.resolve_axis(node.attributes.get("axis", -1)), node.attributes.get("p", 2)
    node.expect(p in (1, 2), f"p of 1 or 2, got {p}")
    x = node.get_activation()
    return node.call_function(torch.div, x, node.call_function(torch.linalg.vector_norm, x, p, axis, keepdim=True))


def _add_linear(node: Node, weight: Tensor, bias: Tensor | None) -> fx.Node:
    """Add a linear layer with a weight ``[out, in]`` and a bias ``[out]``."""
    node.expect_size(-1, weight.shape[1])
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return node.call_module(linear, weight=1)


@register("Gemm", "alpha beta transA transB")
def _import_gemm(node: Node) -> fx.Node:
    node.expect(not node.attributes.get("transA", 0), "transA 0: the batch is first")
    node.expect_batch_first()
    weight = node.get_tensor(1)
    node.expect(weight.dim() == 2 and weight.numel() > 0, f"a weight matrix, got shape {list(weight.shape)}")
    weight = node.attributes.get("alpha", 1.0) * (weight if node.attributes.get("transB", 0) else weight.t())
    bias = node.get_tensor(2) if node.has(2) else None
    if bias is not None:
        features = weight.shape[0]
        node.expect(
            bias.shape in ((), (1,), (features,), (1, features), (1, 1)), f"{features} biases, got {list(bias.shape)}"
        )
        bias = node.attributes.get("beta", 1.0) * bias.reshape(-1).expand(features).clone()
    return _add_linear(node, weight, bias)


@register("MatMul")
def _import_matmul(node: Node) -> fx.Node:
    if node.is_constant(1) and node.get_constant(1).ndim == 2:
        weight = node.get_tensor(1)
        node.expect(weight.numel() > 0, f"a weight matrix, got shape {list(weight.shape)}")
        node.expect(node.batch_axis < node.get_rank() - 1, "rows of the batch, got columns")
        return _add_linear(node, weight.t(), None)
    node.align_batch()
    ranks = [node.get_constant(i).ndim if node.is_constant(i) else node.get_rank(i) for i in (0, 1)]
    node.expect(
        min(ranks) >= 2
        and node.batch_axis < node.get_activation_rank() - 2
        and max(ranks) == node.get_activation_rank(),
        f"matrices, one or more for each image; the batch is axis {node.batch_axis}, the ranks are {ranks}",
    )
    factors = [node.add_constant(i) if node.is_constant(i) else node.get_activation(i) for i in (0, 1)]
    return node.call_function(torch.matmul, *factors)


@register("GlobalAveragePool GlobalMaxPool")
def _import_global_pool(node: Node) -> fx.Node:
    node.expect_images()
    return node.call_module(nn.AdaptiveAvgPool2d(1) if node.op == "GlobalAveragePool" else nn.AdaptiveMaxPool2d(1))


@register("Dropout", "ratio seed")
def _import_dropout(node: Node) -> fx.Node:
    node.expect(not node.has(2) or not node.get_constant(2).any(), "training_mode false")
    ratio = node.attributes.get("ratio", node.get_number(1) if node.has(1) else 0.5)
    return node.call_module(nn.Dropout(ratio))
