"""A dual graph cut in two: large maps a few images at a time, small maps for the whole chunk.

The first layers of a small network leave megabytes an image, and do little arithmetic on them: run on a whole chunk,
every one waits for what the last one wrote to slow memory. The later ones leave little, and have many weights, packed
or transformed once for as many images as there are. So the first run for a few images, whose values stay in cache, and
what they leave is joined for the rest. A row's bits do not depend on its batch, so no result changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from prefiqs_ext.dual.modules import DualConv2d, is_layer, module_of

_CACHE = 24 * 2**20  # bytes that stay in a third-level cache of the usual 32 MB
_PACKING = 16  # packing, masking and transforming a weight takes about as long as moving so many floats
_HIDDEN = 24  # from so many multiply-adds a byte on, a layer's arithmetic hides the moving
_FLOAT = 4


@dataclass(frozen=True)
class Cut:
    """After `node`, whose value for one image has `shape`: so far, `images` at a time."""

    node: fx.Node
    shape: tuple[int, ...]
    images: int


@dataclass(frozen=True)
class _Layer:
    """A layer's bytes and, for one image, its multiply-adds. values: what it reads and writes for one image."""

    index: int
    values: int
    weights: int
    operations: int

    def waits(self, images: int) -> bool:
        """Whether it is bound by slow memory, run for so many images."""
        return self.values * images > _CACHE and self.operations < _HIDDEN * self.values


def observe_shapes(graph_module: fx.GraphModule, value: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """The shape of each node's value, for one image's input."""
    shapes = _Shapes(graph_module)
    with torch.inference_mode():
        shapes.run(value)
    return shapes.shapes


def find_cut(graph_module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]], chunk: int) -> Cut | None:
    """The cut that moves the fewest bytes to and from slow memory for a chunk of images; None to run it whole."""
    nodes = list(graph_module.graph.nodes)
    layers = [
        _layer(graph_module, node, index, shapes) for index, node in enumerate(nodes) if is_layer(graph_module, node)
    ]
    best, least = None, _bytes_moved(layers, chunk, chunk)
    for node in _crossings(graph_module, nodes):
        if shapes[node][0] != _branches(graph_module, node):
            continue  # an image has several rows, whose order is the network's own
        early = [layer for layer in layers if layer.index <= nodes.index(node)]
        images = max(1, _CACHE // max(layer.values for layer in early))
        if images >= chunk:
            continue
        joining = 2 * _FLOAT * prod(shapes[node]) * chunk
        cost = joining + _bytes_moved(early, images, chunk) + _bytes_moved(layers[len(early) :], chunk, chunk)
        if cost < least:
            best, least = Cut(node, shapes[node], images), cost
    return best


def split(graph_module: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The graph up to `node`, and from its value on; both on the modules of the given one."""
    nodes = list(graph_module.graph.nodes)
    end = nodes.index(node) + 1
    early, late = fx.Graph(), fx.Graph()
    copies = _copy_nodes(nodes[:end], early, {})
    early.output(copies[node])
    _copy_nodes(nodes[end:], late, {node: late.placeholder("value")})
    return fx.GraphModule(graph_module, early).eval(), fx.GraphModule(graph_module, late).eval()


def _bytes_moved(layers: Sequence[_Layer], images: int, chunk: int) -> float:
    """By layers that run `images` at a time: values that are waited for, weights packed once a time."""
    values = sum(layer.values * chunk for layer in layers if layer.waits(images))
    return values + _PACKING * sum(layer.weights for layer in layers) * (chunk / images)


def _crossings(graph_module: fx.GraphModule, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The convolutions whose result is all that later nodes read of what came before; a layer among them."""
    found = []
    last_layer = max((index for index, node in enumerate(nodes) if is_layer(graph_module, node)), default=-1)
    read_until = [max((nodes.index(user) for user in node.users), default=-1) for node in nodes]
    farthest = -1  # node that reads a value from before the present one
    for index, node in enumerate(nodes):
        if type(module_of(graph_module, node)) is DualConv2d and farthest <= index < last_layer:
            found.append(node)
        if node.op != "get_attr":  # a constant can be read in both parts
            farthest = max(farthest, read_until[index])
    return found


def _copy_nodes(nodes: Sequence[fx.Node], graph: fx.Graph, copies: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a constant from the other part
            copies[node] = graph.node_copy(node)
        return copies[node]

    for node in nodes:
        copies[node] = graph.node_copy(node, copied)
    return copies


def _layer(graph_module: fx.GraphModule, node: fx.Node, index: int, shapes: dict[fx.Node, tuple[int, ...]]) -> _Layer:
    values = sum(prod(shapes.get(value, (0,))) for value in (node, *node.all_input_nodes))
    weight = module_of(graph_module, node).weight
    return _Layer(index, _FLOAT * values, _FLOAT * weight.numel(), prod(shapes[node]) * weight[0].numel())


def _branches(graph_module: fx.GraphModule, node: fx.Node) -> int:
    return 2 if node.kwargs.get("paired") or module_of(graph_module, node).mask is not None else 1


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of each value that is a tensor."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        return result
