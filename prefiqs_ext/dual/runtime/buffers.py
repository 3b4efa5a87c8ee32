"""Where the convolutions of a dual graph leave their results: a few buffers, used over and over.

The first layers of a network give tensors of tens of megabytes. Allocated anew for each, such memory comes from the
system, which clears every page before its first use: on a layer that does little arithmetic this takes longer than
the layer. A graph's results are therefore given places ahead, by the time that each is needed (first fit), and the
buffers are kept from call to call. The layers of large maps run for a few images at a time (`stages.py`), so that
what one leaves is still in cache when the next reads it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from prefiqs_ext.dual.modules import DualConv2d, is_layer, module_of
from prefiqs_ext.dual.runtime.tiling import find_cut, observe_shapes, split


@dataclass(frozen=True)
class _Place:
    """Of one result: its shape [rows, C, H, W] for one image, and the buffer that holds it."""

    shape: tuple[int, ...]
    buffer: int


class BufferedGraph:
    """A dual graph whose convolutions write into buffers of its own; called as the graph is, with the same results.

    Calls from several threads at once get buffers of their own. An input of another size than the example's runs on the
    graph as it is.

    Args:
        graph_module: what :func:`prefiqs_ext.dual.dualize` gives. Shared, not copied.
        example: [N, ...], one or more inputs.
        chunk: how many images a call will mostly bring.
    """

    def __init__(self, graph_module: fx.GraphModule, example: Tensor, *, chunk: int) -> None:
        self._plain = graph_module
        self._input_shape = example.shape[1:]
        shapes = observe_shapes(graph_module, example[:1])
        # Where the graph is cut, if it is: what joins the parts' results, and how many images the first part takes at a
        # time. No node of a graph is kept: nodes cannot be pickled.
        self._joined: list[_Place] = []
        self._early_images = chunk
        cut = find_cut(graph_module, shapes, chunk)
        if cut is None:
            self._stages = [_Stage(graph_module, shapes)]
        else:
            early, late = split(graph_module, cut.node)
            crossing = torch.zeros(cut.shape, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
            self._stages = [
                _Stage(early, observe_shapes(early, example[:1]), keep_result=True),
                _Stage(late, observe_shapes(late, crossing)),
            ]
            self._joined, self._early_images = [_Place(cut.shape, 0)], cut.images
        self._idle: list[_Memory] = []

    def __call__(self, batch: Tensor) -> Any:
        # Graphs by their forward here and below: their call prints what fails in them beside raising it.
        if batch.shape[1:] != self._input_shape:
            return self._plain.forward(batch)
        try:
            memory = self._idle.pop()  # not after a look whether there is one: another thread may take it in between
        except IndexError:
            memory = _Memory(self._stages, self._joined)
        try:
            return self._run(batch, memory)
        finally:
            self._idle.append(memory)

    def _run(self, batch: Tensor, memory: _Memory) -> Any:
        if self._joined:
            batch = self._run_early(batch, self._early_images, memory)
        return self._stages[-1].run(batch, memory.buffers[-1])

    def _run_early(self, batch: Tensor, images: int, memory: _Memory) -> Tensor:
        """The first stage for so many images at a time; the value that the second one takes, of all."""
        stage, buffers, count = self._stages[0], memory.buffers[0], batch.shape[0]
        if count <= images:
            return stage.run(batch, buffers)  # type: ignore[no-any-return]
        (joined,) = memory.joined.results(count)
        branches = _by_branch(joined, count)
        for begin in range(0, count, images):
            rows = batch[begin : begin + images]
            branches[:, begin : begin + images].copy_(_by_branch(stage.run(rows, buffers), rows.shape[0]))
        return joined

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}


class _Stage:
    """A graph from one value to another, with a place for the result of each of its convolutions.

    shapes: of its nodes' values, for one image. keep_result: its last result has a place too, and so is gone at the
    next run.
    """

    def __init__(
        self, graph_module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]], *, keep_result: bool = False
    ) -> None:
        places = _plan(graph_module, shapes, keep_result)
        self.places = list(places.values())
        self._rows = next(shapes[node][0] for node in graph_module.graph.nodes if node.op == "placeholder")
        self._graph = _add_result_inputs(graph_module, list(places))

    def run(self, value: Tensor, buffers: _Buffers) -> Any:
        return self._graph.forward(value, buffers.results(value.shape[0] // self._rows))


class _Memory:
    """What one call at a time writes to: the buffers of each stage, and where the first one's results come together."""

    def __init__(self, stages: Sequence[_Stage], joined: list[_Place]) -> None:
        self.buffers = [_Buffers(stage.places) for stage in stages]
        self.joined = _Buffers(joined)


class _Buffers:
    """Memory for results. It grows to the largest batch seen."""

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
            self._buffers = [torch.empty(size * images, dtype=torch.float32, device="cpu") for size in sizes]
            self._images = images
        if images not in self._results:
            self._results[images] = [self._result(place, images) for place in self._places]
        return self._results[images]

    def _result(self, place: _Place, images: int) -> Tensor:
        rows, channels, height, width = place.shape
        rows *= images
        flat = self._buffers[place.buffer][: rows * prod(place.shape[1:])]
        return flat.view(rows, height, width, channels).permute(0, 3, 1, 2)


def _by_branch(rows: Tensor, images: int) -> Tensor:
    """[branches * images, ...] -> [branches, images, ...]."""
    return rows.view(-1, images, *rows.shape[1:])


def _plan(
    graph_module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]], keep_result: bool
) -> dict[fx.Node, _Place]:
    """A place for each convolution's result that nobody sees after the graph has run, or for all with `keep_result`."""
    nodes = list(graph_module.graph.nodes)
    last_use = _last_uses(graph_module, nodes)
    places: dict[fx.Node, _Place] = {}
    sizes: list[int] = []  # of each buffer, in floats
    busy_until: list[int] = []
    for index, node in enumerate(nodes):
        seen_after = last_use[node] >= len(nodes) - 1
        if type(module_of(graph_module, node)) is not DualConv2d or (seen_after and not keep_result):
            continue
        size = prod(shapes[node])
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
        places[node] = _Place(shapes[node], buffer)
    return places


def _last_uses(graph_module: fx.GraphModule, nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """The index of the last node that may read a node's result: itself or, through a torch operation, as a view."""
    last_use: dict[fx.Node, int] = {}
    for index, node in reversed(list(enumerate(nodes))):
        last_use[node] = index
        for user in node.users:
            fresh = is_layer(graph_module, user)  # its result is no view
            last_use[node] = max(last_use[node], nodes.index(user) if fresh else last_use[user])
    return last_use


def _add_result_inputs(graph_module: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
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
