"""Where the convolutions of a dual graph leave their results: a few buffers, used over and over.

The first layers of a network give tensors of tens of megabytes. Allocated anew for each, such memory comes from the
system, which clears every page before its first use: on a layer that does little arithmetic this takes longer than
the layer. A graph's results are therefore given places ahead, by the time that each is needed (first fit), and the
buffers are kept from call to call.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from .modules import DualConv2d, DualLinear


@dataclass(frozen=True)
class _Place:
    """Of one result: its shape [rows, C, H, W] for one image, and the buffer that holds it."""

    shape: tuple[int, ...]
    buffer: int


class InPlace:
    """A dual graph whose convolutions write into buffers of its own; called as the graph is, with the same results.

    Calls from several threads at once get buffers of their own. An input of another size than the example's runs on the
    graph as it is.

    Args:
        graph_module: what :func:`prefiqs_ext.dual.dualize` gives. Shared, not copied.
        example: [N, ...], one or more inputs.
    """

    def __init__(self, graph_module: fx.GraphModule, example: Tensor) -> None:
        self._plain = graph_module
        self._input_shape = example.shape[1:]
        places = _plan(graph_module, example[:1])
        self._places = list(places.values())
        self._graph = _with_results_given(graph_module, list(places))
        self._idle: list[_Buffers] = []

    def __call__(self, batch: Tensor) -> Any:
        if batch.shape[1:] != self._input_shape:
            return self._plain(batch)
        try:
            buffers = self._idle.pop()  # not after a look whether there is one: another thread may take it in between
        except IndexError:
            buffers = _Buffers(self._places)
        try:
            return self._graph(batch, buffers.results(batch.shape[0]))
        finally:
            self._idle.append(buffers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}


class _Buffers:
    """The memory of one call at a time. It grows to the largest batch seen."""

    def __init__(self, places: list[_Place]) -> None:
        self._places = places
        self._images = 0
        self._buffers: list[Tensor] = []
        self._results: dict[int, list[Tensor]] = {}

    def results(self, images: int) -> list[Tensor]:
        """A tensor for each place, for a batch of so many images."""
        if images > self._images:
            # The smaller ones go before the larger are made; if memory is too short for these, none are left.
            self._images, self._buffers, self._results = 0, [], {}
            sizes = [0] * (1 + max((place.buffer for place in self._places), default=-1))
            for place in self._places:
                sizes[place.buffer] = max(sizes[place.buffer], prod(place.shape))
            self._buffers = [torch.empty(size * images) for size in sizes]
            self._images = images
        if images not in self._results:
            self._results[images] = [self._result(place, images) for place in self._places]
        return self._results[images]

    def _result(self, place: _Place, images: int) -> Tensor:
        rows, channels, height, width = place.shape
        rows *= images
        flat = self._buffers[place.buffer][: rows * prod(place.shape[1:])]
        return flat.view(rows, height, width, channels).permute(0, 3, 1, 2)


def _plan(graph_module: fx.GraphModule, example: Tensor) -> dict[fx.Node, _Place]:
    """A place for the result of each convolution that nobody sees after the graph has run."""
    shapes = _Shapes(graph_module)
    with torch.inference_mode():
        shapes.run(example)
    nodes = list(graph_module.graph.nodes)
    last_use = _last_uses(graph_module, nodes)
    places: dict[fx.Node, _Place] = {}
    sizes: list[int] = []  # of each buffer, in floats
    busy_until: list[int] = []
    for index, node in enumerate(nodes):
        if node not in shapes.shapes or last_use[node] >= len(nodes) - 1:
            continue
        size = prod(shapes.shapes[node])
        free = [buffer for buffer, until in enumerate(busy_until) if until < index]
        if free:
            # The smallest that holds it, or the largest there is, to grow the least.
            buffer = min(free, key=lambda b: (sizes[b] < size, sizes[b] if sizes[b] >= size else -sizes[b]))
            sizes[buffer] = max(sizes[buffer], size)
            busy_until[buffer] = last_use[node]
        else:
            buffer = len(sizes)
            sizes.append(size)
            busy_until.append(last_use[node])
        places[node] = _Place(shapes.shapes[node], buffer)
    return places


def _last_uses(graph_module: fx.GraphModule, nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """The index of the last node that may read a node's result: itself or, through a torch operation, as a view."""
    last_use: dict[fx.Node, int] = {}
    for index, node in reversed(list(enumerate(nodes))):
        last_use[node] = index
        for user in node.users:
            fresh = isinstance(_module(graph_module, user), (DualConv2d, DualLinear))  # its result is no view
            last_use[node] = max(last_use[node], nodes.index(user) if fresh else last_use[user])
    return last_use


def _module(graph_module: torch.nn.Module, node: fx.Node) -> object:
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of each convolution's result."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if type(_module(self.module, n)) is DualConv2d:
            self.shapes[n] = tuple(result.shape)
        return result


def _with_results_given(graph_module: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    """The graph on the same modules, with a second input: a list of tensors, where to write the results of `nodes`."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(graph_module.graph, copies))
    source = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(source):
        results = graph.placeholder("results")
    for index, node in enumerate(nodes):
        with graph.inserting_before(copies[node]):
            out = graph.call_function(operator.getitem, (results, index))
        copies[node].kwargs = {**copies[node].kwargs, "out": out}
    return fx.GraphModule(graph_module, graph).eval()
