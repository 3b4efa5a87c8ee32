"""Cuts a converted graph in two: the layers of large maps run for a few images at a time, the rest for a whole chunk.

The first layers of a small network write megabytes for each image and do little arithmetic. Run on a whole chunk, each
waits for what the layer before wrote to slow memory; run on one or two images, their values stay in cache. The later
layers write little but have many weights, which are packed or transformed once for all images, so they run on the
whole chunk. A row's bits do not depend on its batch, so no result changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from prefiqs_ext.dual.modules import DualConv2d, find_module, is_dual_layer, is_norm
from prefiqs_ext.dual.runtime import heuristics
from prefiqs_ext.dual.shapes import ValueShape, count_branches


@dataclass(frozen=True)
class Cut:
    """Where a graph is cut.

    Attributes:
        node: The last node of the first part.
        shape: Of its value for one image: [1 or 2, C, H, W].
        images: How many images the first part takes at a time.
    """

    node: fx.Node
    shape: ValueShape
    images: int


@dataclass(frozen=True)
class _LayerCost:
    """What a layer costs.

    Attributes:
        index: Of its node in the graph.
        values: Bytes that it reads and writes for one image.
        weights: How many weights it has.
        operations: Multiply-adds for one image.
    """

    index: int
    values: int
    weights: int
    operations: int

    def is_memory_bound(self, images: int) -> bool:
        """Tell whether the layer waits for slow memory when it runs on this many images."""
        in_cache = self.values * images <= heuristics.CACHE_BYTES
        return not in_cache and self.operations < heuristics.HIDING_OPERATIONS * self.values


def find_cut(graph_module: fx.GraphModule, shapes: dict[fx.Node, ValueShape], chunk: int) -> Cut | None:
    """Find the cut that moves the fewest bytes to and from slow memory.

    Args:
        graph_module: A converted graph.
        shapes: What `observe_shapes` found.
        chunk: How many images a call brings.

    Returns:
        The cut, or None if the graph should run whole.
    """
    nodes = list(graph_module.graph.nodes)
    layers = [
        _estimate_cost(graph_module, node, index, shapes)
        for index, node in enumerate(nodes)
        if is_dual_layer(graph_module, node)
    ]
    best, least = None, _estimate_bytes_moved(layers, chunk, chunk)
    for node in _find_crossings(graph_module, nodes):
        if shapes[node].size[0] != count_branches(graph_module, node):
            continue  # the network made several rows of an image; their order is its own
        early = [layer for layer in layers if layer.index <= nodes.index(node)]
        images = max(1, heuristics.CACHE_BYTES // max(layer.values for layer in early))
        if images >= chunk:
            continue
        joining = 2 * shapes[node].nbytes * chunk
        cost = (
            joining
            + _estimate_bytes_moved(early, images, chunk)
            + _estimate_bytes_moved(layers[len(early) :], chunk, chunk)
        )
        if cost < least:
            best, least = Cut(node, shapes[node], images), cost
    return best


def split_graph(graph_module: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split a graph after `node`. Both parts use the modules of the given graph.

    The first part gives a tuple: the node's value, and all norms before it. The second part takes these as its inputs.
    """
    nodes = list(graph_module.graph.nodes)
    end = nodes.index(node) + 1
    early, late = fx.Graph(), fx.Graph()
    handed_over = [node, *filter(is_norm, nodes[:end])]
    copies = _copy_nodes(nodes[:end], early, {})
    early.output(tuple(copies[each] for each in handed_over))
    _copy_nodes(nodes[end:], late, {each: late.placeholder(each.name) for each in handed_over})
    return fx.GraphModule(graph_module, early).eval(), fx.GraphModule(graph_module, late).eval()


def _estimate_bytes_moved(layers: Sequence[_LayerCost], images: int, chunk: int) -> float:
    """Estimate the bytes that layers move if they run on `images` of a chunk at a time.

    Counted are the values of layers that wait for slow memory, and the weights, which are packed each time.
    """
    values = sum(layer.values * chunk for layer in layers if layer.is_memory_bound(images))
    return values + heuristics.PACKING_BYTES * sum(layer.weights for layer in layers) * (chunk / images)


def _find_crossings(graph_module: fx.GraphModule, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Find the convolutions whose result, and norms, are all that later nodes read of what came before.

    Left out are those that no layer follows.
    """
    found = []
    last_layer = max((index for index, node in enumerate(nodes) if is_dual_layer(graph_module, node)), default=-1)
    read_until = [max((nodes.index(user) for user in node.users), default=-1) for node in nodes]
    farthest = -1  # the last node that reads a value from before the present one
    for index, node in enumerate(nodes):
        if type(find_module(graph_module, node)) is DualConv2d and farthest <= index < last_layer:
            found.append(node)
        if node.op != "get_attr" and not is_norm(node):  # both parts can read a constant; norms are handed over
            farthest = max(farthest, read_until[index])
    return found


def _copy_nodes(nodes: Sequence[fx.Node], graph: fx.Graph, copies: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    def get_copy(node: fx.Node) -> fx.Node:
        if node not in copies:  # a constant from the other part
            copies[node] = graph.node_copy(node)
        return copies[node]

    for node in nodes:
        copies[node] = graph.node_copy(node, get_copy)
    return copies


def _estimate_cost(
    graph_module: fx.GraphModule, node: fx.Node, index: int, shapes: dict[fx.Node, ValueShape]
) -> _LayerCost:
    values = sum(shapes[value].nbytes for value in (node, *node.all_input_nodes) if value in shapes)
    weight = find_module(graph_module, node).weight
    return _LayerCost(index, values, weight.numel(), shapes[node].numel * weight[0].numel())
