"""Operators that give maps of another size: pooling, padding, resizing.

Resizing is linear, and works along the height and the width one after the other. So each of the many variants of Resize
is a matrix for each axis, which is made here by ONNX's definition: https://onnx.ai/onnx/operators/onnx__Resize.html.
"""

from __future__ import annotations

from math import inf

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from prefiqs_ext.models.onnx_import.node import Node
from prefiqs_ext.models.onnx_import.registry import register
from prefiqs_ext.models.onnx_import.state import Array
from prefiqs_ext.models.onnx_import.window import Pair, Window, get_window, pad_images

_BYTES = 8  # of a number of NumPy


@register("MaxPool", "auto_pad ceil_mode dilations kernel_shape pads storage_order strides")
def _import_max_pool(node: Node) -> fx.Node:
    node.expect(not any(node.outputs[1:]), "no output of indices")
    window, ceil = get_window(node), bool(node.attributes.get("ceil_mode", 0))
    if _is_symmetric(window):
        x, padding = node.get_activation(), window.before
    else:
        window, padding = _reach_last_place(node, window, ceil), (0, 0)
        x, ceil = pad_images(node, window.before, window.after, float("-inf")), False
    return node.call_module(nn.MaxPool2d(window.kernel, window.stride, padding, window.dilation, ceil_mode=ceil), x)


@register("AveragePool", "auto_pad ceil_mode count_include_pad dilations kernel_shape pads strides")
def _import_average_pool(node: Node) -> fx.Node:
    window, ceil = get_window(node), bool(node.attributes.get("ceil_mode", 0))
    counts_padding = bool(node.attributes.get("count_include_pad", 0))
    node.expect(window.dilation == (1, 1), f"no dilation, got {window.dilation}")
    if not ceil:
        if _is_symmetric(window):
            pool = nn.AvgPool2d(window.kernel, window.stride, window.before, count_include_pad=counts_padding)
            return node.call_module(pool)
        if counts_padding:
            x = pad_images(node, window.before, window.after, 0.0)
            return node.call_module(nn.AvgPool2d(window.kernel, window.stride), x)
    # PyTorch has nothing alike, so the sums are divided by the counts here.
    reached = _reach_last_place(node, window, ceil)
    node.charge_bytes(_BYTES * _count_places(node, window, 0, ceil) * _count_places(node, window, 1, ceil))
    rows, columns = (_count_pixels(node, window, axis, ceil, counts_padding) for axis in (0, 1))
    x = pad_images(node, reached.before, reached.after, 0.0)
    sums = node.call_module(nn.AvgPool2d(window.kernel, window.stride, divisor_override=1), x)
    counts = torch.from_numpy(np.outer(rows, columns).astype(np.float32))
    return node.call_function(torch.div, sums, node.add_buffer(f"{node.name}_counts", counts))


def _is_symmetric(window: Window) -> bool:
    """Return whether PyTorch can pad this window: both sides alike, and by half the kernel at most."""
    half = all(2 * pad <= kernel for pad, kernel in zip(window.before, window.kernel, strict=True))
    return window.before == window.after and half


def _count_places(node: Node, window: Window, axis: int, ceil: bool) -> int:
    """Count the places of a window along an axis. With `ceil`, the last one may reach beyond the padding.

    It may not begin there, as for PyTorch and ONNX Runtime (and ONNX's own inference from opset 22 on).
    """
    size, before, stride = node.get_fixed_size(2 + axis), window.before[axis], window.stride[axis]
    room = size + before + window.after[axis] - (window.kernel[axis] - 1) * window.dilation[axis] - 1
    node.expect(room >= 0, "a window that fits the image")
    if not ceil:
        return room // stride + 1
    last = -(-room // stride)
    return last if last * stride >= size + before else last + 1


def _reach_last_place(node: Node, window: Window, ceil: bool) -> Window:
    """Return the window with as much padding behind as its last place needs."""
    if not ceil:
        return window
    after = []
    for axis in (0, 1):
        last = (_count_places(node, window, axis, ceil) - 1) * window.stride[axis]
        reach = last + (window.kernel[axis] - 1) * window.dilation[axis] + 1
        after.append(max(0, reach - node.get_fixed_size(2 + axis) - window.before[axis]))
    return window._replace(after=(after[0], after[1]))


def _count_pixels(node: Node, window: Window, axis: int, ceil: bool, counts_padding: bool) -> Array:
    """Count, along one axis, what each place of the window averages over: of the image, or of its padding too."""
    size, before, after = node.get_fixed_size(2 + axis), window.before[axis], window.after[axis]
    first, last = (-before, size + after) if counts_padding else (0, size)
    starts = np.arange(_count_places(node, window, axis, ceil)) * window.stride[axis] - before
    counts = np.minimum(starts + window.kernel[axis], last) - np.maximum(starts, first)
    node.expect(bool((counts > 0).all()), "windows that reach the image")
    return counts


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


@register("Pad", "mode pads value", data=1)
def _import_pad(node: Node) -> fx.Node:
    mode = node.attributes.get("mode", b"constant").decode()
    node.expect(mode in _PAD_MODES, f"mode constant, reflect or edge, got {mode}")
    rank, pads = node.get_rank(), node.get_integers("pads", 1)
    axes = node.get_integers("axes", 3, default=range(rank))
    node.expect(len(pads) == 2 * len(axes), f"two pads for each of {len(axes)} axes, got {pads}")
    sides: list[Pair] = [(0, 0)] * rank
    for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False):
        if before or after:
            sides[node.resolve_axis(axis)] = before, after
    value = node.get_number(2) if node.has(2) else node.attributes.get("value", 0.0)
    inside = rank == 4 and node.batch_axis == 0 and sides[:2] == [(0, 0)] * 2
    if mode == "constant" and inside and min(map(min, sides)) >= 0:
        return pad_images(node, (sides[2][0], sides[3][0]), (sides[2][1], sides[3][1]), value)
    x = _cut(node, sides)
    grown = [(max(before, 0), max(after, 0)) for before, after in sides]
    while grown and grown[0] == (0, 0):
        grown = grown[1:]
    if not grown:
        return x
    if mode != "constant":
        node.expect(inside, f"the pads of images [N, C, H, W], got {pads}")
        grown = [*[(0, 0)] * (2 - len(grown)), *grown]
        value = None
    flat = [pad for side in reversed(grown) for pad in side]
    return node.call_function(F.pad, x, flat, _PAD_MODES[mode], value)


def _cut(node: Node, sides: list[Pair]) -> fx.Node:
    """Cut off what negative pads take away."""
    x = node.get_activation()
    for axis, (before, after) in enumerate(sides):
        if before < 0 or after < 0:
            start, left = max(0, -before), node.get_fixed_size(axis) + min(before, 0) + min(after, 0)
            node.expect(left > 0, f"pads that leave something of axis {axis}")
            x = node.call_function(torch.narrow, x, axis, start, left)
    return x


@register("Upsample", "mode scales", data=1)
def _import_upsample(node: Node) -> fx.Node:
    return _resize(node, node.get_numbers("scales", 1), "asymmetric", "floor")


@register(
    "Resize",
    "coordinate_transformation_mode cubic_coeff_a exclude_outside extrapolation_value keep_aspect_ratio_policy mode "
    "nearest_mode antialias axes",
    data=1,
)
def _import_resize(node: Node) -> fx.Node:
    node.expect(not node.attributes.get("antialias", 0), "no antialias")
    scales = node.get_numbers("scales", 1 if node.opset < 11 else 2)
    coordinates = node.attributes.get(
        "coordinate_transformation_mode", b"half_pixel" if node.opset >= 11 else b"asymmetric"
    ).decode()
    rounding = node.attributes.get("nearest_mode", b"round_prefer_floor" if node.opset >= 11 else b"floor").decode()
    return _resize(node, scales, coordinates, rounding)


def _resize(node: Node, scales: list[float], coordinates: str, rounding: str) -> fx.Node:
    """Add the product with one matrix along the height, and one along the width.

    Args:
        node: The node.
        scales: Of the axes that the node names, all of them by default; empty if it gives sizes.
        coordinates: How a place in the result becomes one in the source.
        rounding: How mode "nearest" rounds it.
    """
    node.expect_images()
    mode = node.attributes.get("mode", b"nearest").decode()
    node.expect(mode in ("nearest", "linear", "cubic"), f"mode nearest, linear or cubic, got {mode}")
    axes = node.get_integers("axes", default=range(4))
    factors = dict(zip((axis % 4 for axis in axes), scales, strict=False))
    old, new = node.get_shape(), node.get_output_shape()
    node.expect(old[:2] == new[:2], "the batch and the channels to stay as they are")
    x = node.get_activation()
    for axis in (2, 3):
        size, side = node.get_fixed_size(axis), new[axis]
        if side is None:
            node.refuse("expected a height and width fixed by the file")
        scale = factors.get(axis, side / size)
        node.expect(0 < scale < inf, f"scales above 0, got {scale}")
        if (size, scale) == (side, 1.0):
            continue
        places = _find_places(node, coordinates, size, side, scale)
        matrix = _make_matrix(node, mode, rounding, places, size)
        weights = node.add_buffer(f"{node.name}_{'height' if axis == 2 else 'width'}", torch.from_numpy(matrix))
        if axis == 2:
            x = node.call_function(torch.matmul, weights, x)
        else:
            x = node.call_function(torch.matmul, x, node.call_method("t", weights))
    return x


def _find_places(node: Node, coordinates: str, size: int, side: int, factor: float) -> Array:
    """Return where each place of the result lies in the source, in float32 as ONNX Runtime computes it."""
    places = np.arange(side, dtype=np.float32)
    scale = np.float32(factor)
    if coordinates == "asymmetric":
        return places / scale
    if coordinates == "align_corners":
        return places * np.float32((size - 1) / max(side - 1, 1))
    if coordinates == "pytorch_half_pixel" and side == 1:
        return places * 0
    node.expect(coordinates in ("half_pixel", "pytorch_half_pixel"), f"half_pixel and the like, got {coordinates}")
    return (places + np.float32(0.5)) / scale - np.float32(0.5)


def _make_matrix(node: Node, mode: str, rounding: str, places: Array, size: int) -> Array:
    """Return the weight of each number of the source for each place, ``[places, size]`` in float32."""
    node.charge_bytes(_BYTES * len(places) * size)
    rows = np.arange(len(places))
    matrix = np.zeros((len(places), size))
    if mode == "nearest":
        nearest = {
            "round_prefer_floor": np.ceil(places - 0.5),
            "round_prefer_ceil": np.floor(places + 0.5),
            "floor": np.floor(places),
            "ceil": np.ceil(places),
        }
        node.expect(rounding in nearest, f"a nearest_mode of the ONNX standard, got {rounding}")
        matrix[rows, np.clip(nearest[rounding], 0, size - 1).astype(np.int64)] = 1
        return matrix.astype(np.float32)
    if mode == "linear":
        places = np.clip(places, 0, size - 1)
    floor = np.floor(places).astype(np.int64)
    part = places - floor
    a = node.attributes.get("cubic_coeff_a", -0.75)
    taps = {0: 1 - part, 1: part} if mode == "linear" else {tap: _weigh_cubic(part - tap, a) for tap in (-1, 0, 1, 2)}
    outside = bool(node.attributes.get("exclude_outside", 0))
    for tap, weights in taps.items():
        source = floor + tap
        kept = (source >= 0) & (source < size) if outside else np.ones(len(source), dtype=bool)
        np.add.at(matrix, (rows, np.clip(source, 0, size - 1)), np.where(kept, weights, 0))
    if outside:
        matrix /= matrix.sum(1, keepdims=True)
    return matrix.astype(np.float32)


def _weigh_cubic(distance: Array, a: float) -> Array:
    """Return the weight of a number at this distance, by cubic convolution (Keys, 1981, with a = -.5 or -.75)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))
