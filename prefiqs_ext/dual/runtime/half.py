"""Converts a graph to half precision: what becomes float16 or bfloat16, and what stays float32.

Weights and the values between layers become half precision; masks, scales, biases, slopes and tap shifts stay as they
are. The last layers, whose results reach the output through no other layer, read a float32 source and so give a float32
result: the embedding is not rounded. The operations after them, the tail, compute in float32.
"""

from __future__ import annotations

import itertools
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from prefiqs_ext import ops
from prefiqs_ext.dual.convert.freeze import FrozenNorm
from prefiqs_ext.dual.modules import DualConv2d, DualLinear, is_dual_layer, is_norm
from prefiqs_ext.exceptions import InputError

# Of an embedding in half precision, largest difference over largest size, in units of the type's rounding. Some fifty
# to a hundred roundings add up like their square root; a wrong kernel is off by its own size.
_ROUNDINGS = 32
# What rounding adds to the difference of the two embeddings, at most, relative to D: on random images, where this ratio
# is .5 to 1.5 of that on faces. Beyond it the order by D suffers; docs/usage.md, "In bfloat16", has the measurements.
_LARGEST_NOISE = 0.065


def convert_to_half(graph_module: fx.GraphModule, device: torch.device, dtype: torch.dtype) -> None:
    """Move a graph to a device and to half precision, in place.

    The graph still takes uint8 or float32 inputs. It gives float32 pairs, or half-precision ones if the tail shares a
    module with what comes before it.

    Args:
        graph_module: What `dualize` gave.
        device: Where it is to run.
        dtype: torch.bfloat16 or, on CUDA, torch.float16.
    """
    graph = graph_module.graph
    tail = _find_tail(graph_module)
    layers = {node for node in graph.nodes if is_dual_layer(graph_module, node)}
    last = {node for node in layers if all(user in tail for user in node.users)}
    for node in graph.nodes:
        in_half = node not in tail
        node.args, node.kwargs = (
            _replace_constants(given, device, dtype, in_half) for given in (node.args, node.kwargs)
        )
        if in_half and node.op == "call_method" and node.target == "float":
            node.target, node.args = "to", (*node.args, dtype)
        elif node.op in ("call_module", "get_attr"):
            _move(graph_module, str(node.target), device, dtype if in_half else torch.float32)
    _insert_casts(graph, tail, last, dtype)
    graph_module.recompile()


def check_half(
    graph_module: fx.GraphModule,
    example: Tensor,
    expected: Tensor | tuple[Tensor, Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Check that a graph in half precision gives nearly the pair, and norms, that it gave in float32 on the CPU.

    Args:
        graph_module: What `convert_to_half` changed.
        example: A batch for it, on the CPU; several images, of which the median decides about D.
        expected: What it gave for the example in float32.
        device: Where it is now.
        dtype: What it computes in.

    Raises:
        InputError: The activations overflow, or rounding drowns D, the distance between the branches.
        RuntimeError: The results differ, which is a fault of this package.
    """
    with torch.inference_mode():
        result = graph_module(example.to(device))
    given, wanted = (each if isinstance(each, tuple) else (each,) for each in (result, expected))
    remedy = "" if dtype == torch.bfloat16 else "; try dtype=torch.bfloat16, which does not overflow"
    most = _ROUNDINGS * torch.finfo(dtype).eps
    for what, numbers, reference in zip(("embedding", "vector of layers' norms"), given, wanted, strict=False):
        numbers = numbers.float().cpu()
        if not bool(numbers.isfinite().all()):
            raise InputError(f"the network gives NaN or infinity in {dtype} on {device}{remedy}")
        difference = float((numbers - reference).abs().max() / reference.abs().max())
        if difference > most:
            raise RuntimeError(
                f"the {what} in {dtype} on {device} differs from the CPU's by {difference:.2g} of its size, expected "
                f"at most {most:.2g}{remedy}"
            )
    _check_distance(given[0].float().cpu(), wanted[0], device, dtype)


def _check_distance(pair: Tensor, expected: Tensor, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a pair [2N, d] whose D is rounding rather than pruning, compared with the pair expected in float32.

    Both branches are rounded at each layer, mostly alike. What they are not rounded alike moves the difference of the
    embeddings by a vector of about the same length for all images, across the difference itself. So a D much longer
    than it hardly changes, and a shorter one is nothing else.
    """
    given, wanted = (ops.embedding_distance(each) for each in (pair, expected))
    differences = [each.embedding - each.pruned_embedding for each in (given, wanted)]
    noise = float((differences[0] - differences[1]).norm(dim=1).median())
    size = float(wanted.distance.median())
    if noise > _LARGEST_NOISE * size:
        remedy = "dtype=torch.float32 on the CPU"
        if dtype == torch.bfloat16:
            remedy += ", dtype=torch.float16 on CUDA"
        raise InputError(
            f"expected a pruning whose D stands out from rounding in {dtype}, got D of {size:.2g}, to which rounding "
            f"adds {noise:.2g}: take {remedy} or a larger sparsity"
        )


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Convert a floating tensor to dtype; return anything else (uint8 images, sizes, indices) as it is."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _find_tail(graph_module: fx.GraphModule) -> set[fx.Node]:
    """Find the nodes after the last layers.

    A tensor or module that earlier nodes use too exists once, in half precision. So its users do not belong to the
    tail, nor does anything before them.
    """
    nodes = list(reversed(graph_module.graph.nodes))
    in_half: set[str] = set()
    while True:
        tail: set[fx.Node] = set()
        for node in nodes:
            free = (
                node.op != "placeholder" and not is_dual_layer(graph_module, node) and str(node.target) not in in_half
            )
            if free and all(user in tail for user in node.users):
                tail.add(node)
        before = {str(node.target) for node in nodes if node not in tail and _has_numbers(graph_module, node)}
        if before <= in_half:
            return tail
        in_half |= before


def _has_numbers(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return node.op == "get_attr"
    module = graph_module.get_submodule(str(node.target))
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _replace_constants(given: Any, device: torch.device, dtype: torch.dtype, in_half: bool) -> Any:
    """Replace arguments that name a device or, in half precision, float32, as in x.to(torch.float32)."""

    def replace(each: Any) -> Any:
        if isinstance(each, torch.device):
            return device
        return dtype if in_half and each is torch.float32 else each

    return fx.node.map_aggregate(given, replace)


def _move(graph_module: fx.GraphModule, target: str, device: torch.device, dtype: torch.dtype) -> None:
    own = reduce(getattr, target.split("."), graph_module)
    if isinstance(own, (DualConv2d, DualLinear)):
        own.to(device)
        own.weight = _round_weight(own.weight, dtype)
    elif isinstance(own, FrozenNorm):
        own.to(device)  # it takes half-precision inputs, and its variances may exceed float16
    elif isinstance(own, nn.Module):
        own.to(device, dtype)
    elif isinstance(own, Tensor):
        path, _, name = target.rpartition(".")
        setattr(graph_module.get_submodule(path), name, cast(own, dtype).to(device))


def _round_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a weight so that the errors of a channel's taps nearly add up to zero.

    A tap's error is carried on to the next tap before that is rounded. Neighbouring pixels are much alike, so errors
    that cancel over the taps nearly cancel in the sums: at no cost, embeddings stay closer to the exact ones.

    Args:
        weight: [Co, C/groups, kh, kw] or [Co, K].
        dtype: What it becomes.
    """
    rounded = weight.to(dtype)
    if weight.dim() == 2:
        return rounded
    carried = torch.zeros_like(weight[:, :, 0, 0])
    for row, column in itertools.product(*map(range, weight.shape[2:])):
        wanted = weight[:, :, row, column] + carried
        rounded[:, :, row, column] = wanted
        carried = (wanted - rounded[:, :, row, column]).nan_to_num(0, 0, 0)  # of an overflow, nothing is carried
    return rounded


def _insert_casts(graph: fx.Graph, tail: set[fx.Node], last: set[fx.Node], dtype: torch.dtype) -> None:
    casts: dict[tuple[fx.Node, bool], fx.Node] = {}

    def cast_to_float32(source: fx.Node, for_layer: bool) -> fx.Node:
        if (source, for_layer) not in casts:
            with graph.inserting_after(source):
                # A layer's source may be a uint8 image, of which it would give a rounded result.
                casts[source, for_layer] = (
                    graph.call_method("to", (source, torch.float32))
                    if for_layer
                    else graph.call_function(cast, (source, torch.float32))
                )
        return casts[source, for_layer]

    for node in list(graph.nodes):
        if node.op == "placeholder":
            users = list(node.users)
            with graph.inserting_after(node):
                taken = graph.call_function(cast, (node, dtype))
            for user in users:
                user.replace_input_with(node, taken)
    for node in list(graph.nodes):
        if (node in tail or node in last) and not is_norm(node):  # which takes half precision as it is
            for source in node.all_input_nodes:
                if source not in tail and source not in last:
                    node.replace_input_with(source, cast_to_float32(source, node in last))
