"""Norms of layers' outputs in the dense branch, which a converted graph can give beside the pair of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from prefiqs_ext import ops
from prefiqs_ext.dual.modules import is_dual_layer
from prefiqs_ext.dual.shapes import count_branches, observe_shapes
from prefiqs_ext.exceptions import InputError

_NAMED = 5  # layers that an error names


def list_layers(graph_module: fx.GraphModule) -> tuple[str, ...]:
    """List the layers that `dualize` takes as `norms`, in the order in which the graph first calls them.

    Args:
        graph_module: What `dualize` gave.
    """
    return tuple(_find_first_calls(graph_module))


def add_norms(graph_module: fx.GraphModule, names: Sequence[str], example: Tensor) -> None:
    """Make a graph give `(pair, norms)`, where norms is [N, K]: a column for each named layer.

    Args:
        graph_module: A converted graph, which gives the pair; changed in place.
        names: Of K layers, one or more.
        example: [N, ...], one or more inputs; the first is run.

    Raises:
        InputError: The graph has no layer of that name.
    """
    graph, calls, shapes = (
        graph_module.graph,
        _find_first_calls(graph_module),
        observe_shapes(graph_module, example[:1]),
    )
    norms = []
    for name in names:
        if name not in calls:
            some = ", ".join(map(repr, list(calls)[:_NAMED])) + (", ..." if len(calls) > _NAMED else "")
            raise InputError(f"expected norms of layers that the network calls, got {name!r}; there are {some}")
        node, branches = calls[name], count_branches(graph_module, calls[name])
        rows = shapes[node].size[0] // branches  # of one image: several, where the network cuts it into windows
        value = node
        if rows > 1:
            with graph.inserting_after(node):
                value = graph.call_function(torch.unflatten, (node, 0, (-1, rows)))
        with graph.inserting_after(value):
            norms.append(graph.call_function(ops.dense_norm, (value,), {"paired": branches == 2}))
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    with graph.inserting_before(output):
        output.args = ((output.args[0], graph.call_function(torch.stack, (norms, 1))),)
    graph_module.recompile()


def _find_first_calls(graph_module: fx.GraphModule) -> dict[str, fx.Node]:
    """Find the first call of each layer that reads what comes of the images, by the layer's name."""
    calls: dict[str, fx.Node] = {}
    grown: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        if node.op == "placeholder" or any(source in grown for source in node.all_input_nodes):
            grown.add(node)
            if is_dual_layer(graph_module, node):
                calls.setdefault(str(node.target), node)
    return calls
