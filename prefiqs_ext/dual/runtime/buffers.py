"""Runs a converted graph whose convolutions write into a few buffers that are kept from call to call.

The first layers of a network write tensors of tens of megabytes. If such memory is allocated for each call, the system
clears every page before its first use, which takes longer than a layer that does little arithmetic. Therefore each
result gets a place in a buffer ahead of time, and a buffer is used again once its last result has been read. The layers
of large maps run for a few images at a time (tiling.py), so that a result is still in cache when it is read.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prefiqs_ext.dual.modules import DualConv2d, find_module, is_dual_layer, is_norm
from prefiqs_ext.dual.runtime.tiling import find_cut, split_graph
from prefiqs_ext.dual.shapes import ValueShape, observe_shapes


@dataclass(frozen=True)
class _Place:
    """Where one result goes: its shape [rows, C, H, W] for one image, and the index of the buffer that holds it."""

    shape: ValueShape
    buffer: int


class BufferedGraph:
    """A converted graph whose convolutions write into kept buffers. Called like the graph; the same bits.

    Calls from several threads at once get separate buffers. An input of another size than the example's runs on the
    graph as it is.

    Args:
        graph_module: What :func:`prefiqs_ext.dual.dualize` gives. It is shared, not copied.
        example: [N, ...], one or more inputs.
        chunk: How many images most calls will bring.
    """

    def __init__(self, graph_module: fx.GraphModule, example: Tensor, *, chunk: int) -> None:
        self._plain = graph_module
        self._input_shape = example.shape[1:]
        shapes = observe_shapes(graph_module, example[:1])
        # Where the first part's results are joined, if the graph is cut, and how many images that part takes at a time.
        # Nodes of the graph are not kept, because they cannot be pickled.
        self._joined: list[_Place] = []
        self._early_images = chunk
        cut = find_cut(graph_module, shapes, chunk)
        if cut is None:
            self._parts = [_Part(graph_module, shapes)]
        else:
            early, late = split_graph(graph_module, cut.node)
            with torch.inference_mode():
                handed_over = early.forward(example[:1])
            self._parts = [
                _Part(early, observe_shapes(early, example[:1]), keep_result=True),
                _Part(late, observe_shapes(late, *handed_over)),
            ]
            self._joined, self._early_images = [_Place(cut.shape, 0)], cut.images
        self._idle: list[_Memory] = []

    def __call__(self, batch: Tensor) -> Any:
        """Run the graph on a batch [N, ...] and return what the graph gives, in memory of its own."""
        # Here and below graphs are run by forward(); their __call__ prints an error as well as raising it.
        if batch.shape[1:] != self._input_shape:
            return self._plain.forward(batch)
        try:
            memory = self._idle.pop()  # no test first: another thread may take the last one in between
        except IndexError:
            memory = _Memory(self._parts, self._joined)
        try:
            return self._run(batch, memory)
        finally:
            self._idle.append(memory)

    def _run(self, batch: Tensor, memory: _Memory) -> Any:
        inputs = self._run_early(batch, self._early_images, memory) if self._joined else (batch,)
        return self._parts[-1].run(memory.buffers[-1], *inputs)

    def _run_early(self, batch: Tensor, images: int, memory: _Memory) -> tuple[Tensor, ...]:
        """Run the early part on this many images at a time and join what the late part takes: a value and norms."""
        part, buffers, count = self._parts[0], memory.buffers[0], batch.shape[0]
        if count <= images:
            return part.run(buffers, batch)  # type: ignore[no-any-return]
        (joined,) = memory.joined.get_results(count)
        branches = _view_by_branch(joined, count)
        norms = []
        for begin in range(0, count, images):
            rows = batch[begin : begin + images]
            value, *norms_of_rows = part.run(buffers, rows)
            branches[:, begin : begin + images].copy_(_view_by_branch(value, rows.shape[0]))
            norms.append(norms_of_rows)
        return joined, *map(torch.cat, zip(*norms, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}


class _Part:
    """A part of the graph, with a place for the result of each of its convolutions.

    Args:
        graph_module: The part.
        shapes: What `observe_shapes` found for it.
        keep_result: Whether its last result gets a place too; the next run then overwrites it.
    """

    def __init__(
        self, graph_module: fx.GraphModule, shapes: dict[fx.Node, ValueShape], *, keep_result: bool = False
    ) -> None:
        places = _plan_places(graph_module, shapes, keep_result)
        self.places = list(places.values())
        self._rows = next(shapes[node].size[0] for node in graph_module.graph.nodes if node.op == "placeholder")
        self._graph = _add_results_input(graph_module, list(places))

    def run(self, buffers: _Buffers, value: Tensor, *norms: Tensor) -> Any:
        return self._graph.forward(value, buffers.get_results(value.shape[0] // self._rows), *norms)


class _Memory:
    """What one call at a time writes to: the buffers of each part, and the joined results of the early one."""

    def __init__(self, parts: Sequence[_Part], joined: list[_Place]) -> None:
        self.buffers = [_Buffers(part.places) for part in parts]
        self.joined = _Buffers(joined)


class _Buffers:
    """Memory for results, which grows to the largest batch that came."""

    def __init__(self, places: list[_Place]) -> None:
        self._places = places
        self._images = 0
        self._buffers: list[Tensor] = []
        self._results: dict[int, list[Tensor]] = {}

    def get_results(self, images: int) -> list[Tensor]:
        """Return a tensor for each place, for a batch of this many images."""
        if images > self._images:
            # The smaller buffers are freed before the larger ones are allocated. If that fails, there are none.
            self._images, self._buffers, self._results = 0, [], {}
            sizes = [0] * (1 + max((place.buffer for place in self._places), default=-1))
            for place in self._places:
                sizes[place.buffer] = max(sizes[place.buffer], place.shape.nbytes)
            self._buffers = [torch.empty(size * images, dtype=torch.uint8, device="cpu") for size in sizes]
            self._images = images
        if images not in self._results:
            self._results[images] = [self._view_result(place, images) for place in self._places]
        return self._results[images]

    def _view_result(self, place: _Place, images: int) -> Tensor:
        rows, channels, height, width = place.shape.size
        flat = self._buffers[place.buffer][: place.shape.nbytes * images].view(place.shape.dtype)
        return flat.view(rows * images, height, width, channels).permute(0, 3, 1, 2)


def _view_by_branch(rows: Tensor, images: int) -> Tensor:
    """View [branches * images, ...] as [branches, images, ...]."""
    return rows.view(-1, images, *rows.shape[1:])


def _plan_places(
    graph_module: fx.GraphModule, shapes: dict[fx.Node, ValueShape], keep_result: bool
) -> dict[fx.Node, _Place]:
    """Give each convolution's result a place, unless it is visible after the graph has run and not `keep_result`."""
    nodes = list(graph_module.graph.nodes)
    last_use = _find_last_uses(graph_module, nodes)
    places: dict[fx.Node, _Place] = {}
    sizes: list[int] = []  # of each buffer, in bytes
    busy_until: list[int] = []
    for index, node in enumerate(nodes):
        seen_after = last_use[node] >= len(nodes) - 1
        if type(find_module(graph_module, node)) is not DualConv2d or (seen_after and not keep_result):
            continue
        size = shapes[node].nbytes
        free = [buffer for buffer, until in enumerate(busy_until) if until < index]
        if free:
            # The smallest buffer that holds it, or else the largest, which has to grow the least.
            buffer = min(free, key=lambda b: (sizes[b] < size, sizes[b] if sizes[b] >= size else -sizes[b]))
            sizes[buffer] = max(sizes[buffer], size)
            busy_until[buffer] = last_use[node]
        else:
            buffer = len(sizes)
            sizes.append(size)
            busy_until.append(last_use[node])
        places[node] = _Place(shapes[node], buffer)
    return places


def _find_last_uses(graph_module: fx.GraphModule, nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """Find the index of the last node that may read each node's result, directly or as a view of it."""
    last_use: dict[fx.Node, int] = {}
    for index, node in reversed(list(enumerate(nodes))):
        last_use[node] = index
        for user in node.users:
            fresh = is_dual_layer(graph_module, user) or is_norm(user)  # whose result is never a view
            last_use[node] = max(last_use[node], nodes.index(user) if fresh else last_use[user])
    return last_use


def _add_results_input(graph_module: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    """Copy the graph, on the same modules, with a second input: the tensors to write the results of `nodes` to."""
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
