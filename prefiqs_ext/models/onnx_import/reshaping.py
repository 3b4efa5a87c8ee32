"""Operators that move numbers and compute none: new shapes, other orders of axes, parts, and what joins them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import fx, nn

from prefiqs_ext.models.onnx_import.node import Node, format_shape
from prefiqs_ext.models.onnx_import.registry import register
from prefiqs_ext.models.onnx_import.state import Shape


@register("Flatten", "axis")
def _import_flatten(node: Node) -> fx.Node:
    rank, axis = node.get_rank(), node.attributes.get("axis", 1)
    behind = node.batch_axis < (axis + rank if axis < 0 else axis) <= rank and rank > 1
    node.expect(behind, f"an axis behind the batch, got axis {axis} of rank {rank}")
    return _reshape(node, None)


@register("Reshape", "allowzero", data=1)
def _import_reshape(node: Node) -> fx.Node:
    return _reshape(node, node.get_literal_shape())


def _reshape(node: Node, literal: Sequence[int] | None) -> fx.Node:
    """Add a call that gives the inferred shape, with any size along the batch axis.

    Numbers keep their order, so the batch stays in one piece if as many numbers as before come before its axis. Behind
    the batch, an axis may be joined with it or split off.

    Args:
        node: The node.
        literal: The new shape, if the file holds it.
    """
    old, new, before = node.get_shape(), node.get_output_shape(), node.batch_axis
    if before == 0 and len(new) == 2 and old[0] == new[0]:
        return node.call_module(nn.Flatten(1))
    axis = _find_batch_axis(node, old, new)
    # The size along the batch axis is free only if the file does not name it. (Many files name a batch of 1.)
    named = node.has_open_batch and literal is not None and literal[axis] not in (-1, 0) and new[axis] != node.batch
    node.expect(not named, f"a shape that keeps the batch ({node.batch}), got {format_shape(new)}")
    node.batch_axis = axis
    sizes = _require_fixed(node, new, axis)
    return node.call_function(torch.reshape, node.get_activation(), tuple(sizes))


def _find_batch_axis(node: Node, old: Shape, new: Shape) -> int:
    """Return the axis of the new shape that holds the batch. Refuse a shape that has none."""
    before, after = old[: node.batch_axis], old[node.batch_axis :]
    for axis, size in enumerate(new):
        keeps = _multiply(new[:axis]) == _multiply(before) and _multiply(new[axis:]) == _multiply(after)
        if keeps and None not in before and size is not None and size % node.batch == 0:
            return axis
    node.refuse(f"expected a shape that keeps the batch ({node.batch}), got {format_shape(new)}")


def _multiply(sizes: Shape) -> tuple[int, int]:
    """Return the product of the known sizes, and how many are open."""
    return prod(size for size in sizes if size is not None), sum(size is None for size in sizes)


def _require_fixed(node: Node, sizes: Shape, axis: int) -> list[int]:
    """Return the sizes, with -1 for the batch. Refuse the node if another one is open."""
    known = [-1 if place == axis else size for place, size in enumerate(sizes)]
    node.expect(None not in known, f"a shape fixed by the file, got {format_shape(sizes)}")
    return [size for size in known if size is not None]


@register("Expand", data=1)
def _import_expand(node: Node) -> fx.Node:
    old, new = node.get_shape(), node.get_output_shape()
    node.expect(len(new) == len(old), f"a shape of rank {len(old)}, got {format_shape(new)}")
    axis = node.batch_axis
    node.expect(new[axis] == old[axis], f"a shape that keeps the batch ({node.batch}), got {format_shape(new)}")
    return node.call_method("expand", node.get_activation(), *_require_fixed(node, new, axis))


@register("Transpose", "perm")
def _import_transpose(node: Node) -> fx.Node:
    perm = node.get_integers("perm", default=range(node.get_rank())[::-1])
    node.expect(sorted(perm) == list(range(node.get_rank())), f"each axis of {node.get_rank()} once, got perm {perm}")
    node.batch_axis = perm.index(node.batch_axis)
    return node.call_function(torch.permute, node.get_activation(), tuple(perm))


@register("Squeeze", "axes", data=1)
def _import_squeeze(node: Node) -> fx.Node:
    axes = node.get_integers("axes", 1, default=())
    node.expect(bool(axes), "axes: without them a batch of 1 is squeezed too")
    places = tuple(node.resolve_axis(axis) for axis in axes)
    node.batch_axis -= sum(place < node.batch_axis for place in places)
    return node.call_function(torch.squeeze, node.get_activation(), places)


@register("Unsqueeze", "axes", data=1)
def _import_unsqueeze(node: Node) -> fx.Node:
    axes = node.get_integers("axes", 1)
    rank = node.get_rank() + len(axes)
    places = sorted(axis + rank if axis < 0 else axis for axis in axes)
    node.expect(all(0 <= place < rank for place in places), f"axes of rank {rank}, got {axes}")
    x = node.get_activation()
    for place in places:
        node.batch_axis += place <= node.batch_axis
        x = node.call_function(torch.unsqueeze, x, place)
    return x


@register("Concat", "axis")
def _import_concat(node: Node) -> fx.Node:
    axis = node.resolve_axis(node.attributes["axis"])
    node.align_batch()
    parts = [_get_part(node, i) if node.is_constant(i) else node.get_activation(i) for i in range(len(node.inputs))]
    return node.call_function(torch.cat, parts, axis)


def _get_part(node: Node, index: int) -> fx.Node:
    """Return a constant input with a row for each image: a class token, for instance."""
    constant, rank = node.get_rowless_tensor(index), node.get_activation_rank()
    node.expect(constant.dim() == rank, f"a constant of rank {rank}, got shape {list(constant.shape)}")
    sizes: list[int | fx.Node] = [*constant.shape]
    sizes[node.batch_axis] = node.call_method("size", node.get_first_activation(), node.batch_axis)
    return node.call_method("expand", node.add_buffer(node.inputs[index], constant), *sizes)


@register("Split", "axis num_outputs split", data=1)
def _import_split(node: Node) -> list[fx.Node]:
    axis, count = node.resolve_axis(node.attributes.get("axis", 0)), len(node.outputs)
    size = node.get_fixed_size(axis)
    largest = -(-size // count)
    even = [min(largest, size - i * largest) for i in range(count)]
    sizes = node.get_integers("split", 1, default=even)
    node.expect(sum(sizes) == size and len(sizes) == count and min(sizes) >= 0, f"parts of {size}, got {sizes}")
    parts = node.call_function(torch.split, node.get_activation(), sizes, axis)
    return [node.call_function(operator.getitem, parts, i) for i in range(count)]


@register("Slice", "axes ends starts", data=1)
def _import_slice(node: Node) -> fx.Node:
    starts, ends = node.get_integers("starts", 1), node.get_integers("ends", 2)
    axes = node.get_integers("axes", 3, default=range(len(starts)))
    steps = node.get_integers("steps", 4, default=[1] * len(starts))
    node.expect(len(starts) == len(ends) == len(axes) == len(steps), "as many starts, ends, axes and steps")
    places = [slice(None)] * node.get_rank()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        node.expect(step > 0, f"steps of 1 or more, got {step}")
        if axis % len(places) == node.batch_axis and (start, step) == (0, 1) and end >= _TO_THE_END:
            continue
        places[node.resolve_axis(axis)] = slice(start, end, step)
    return node.call_function(operator.getitem, node.get_activation(), tuple(places))


_TO_THE_END = 2**31 - 1  # what exporters write for "to the end"


@register("Gather", "axis", data=1)
def _import_gather(node: Node) -> fx.Node:
    axis = node.resolve_axis(node.attributes.get("axis", 0))
    places, size = node.get_array_of_integers(1), node.get_fixed_size(axis)
    node.expect(bool(((places >= -size) & (places < size)).all()), f"places along an axis of {size}")
    places = np.where(places < 0, places + size, places)
    shift = places.ndim - 1 if axis < node.batch_axis else 0
    if places.ndim == 0:
        result = node.call_function(torch.select, node.get_activation(), axis, int(places))
    else:
        index = node.add_buffer(node.inputs[1], torch.from_numpy(places.reshape(-1)))
        result = node.call_function(torch.index_select, node.get_activation(), axis, index)
        if places.ndim > 1:
            result = node.call_function(torch.unflatten, result, axis, places.shape)
    node.batch_axis += shift
    return result


@register("Tile", data=1)
def _import_tile(node: Node) -> fx.Node:
    repeats = node.get_integers("repeats", 1)
    node.expect(len(repeats) == node.get_rank() and min(repeats) > 0, f"a count for each axis, got {repeats}")
    node.expect(repeats[node.batch_axis] == 1, "the batch to stay as it is")
    return node.call_method("repeat", node.get_activation(), *repeats)
