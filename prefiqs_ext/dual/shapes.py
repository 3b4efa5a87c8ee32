"""What the values of a converted graph look like: their shapes and dtypes, and how many branches they hold."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from prefiqs_ext.dual.modules import find_module


class ValueShape(NamedTuple):
    """A tensor without its numbers.

    Attributes:
        size: Of each dimension; the rows of one image come first.
        dtype: Of its numbers.
    """

    size: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return prod(self.size)

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return self.numel * self.dtype.itemsize


def observe_shapes(graph_module: fx.GraphModule, *inputs: Tensor) -> dict[fx.Node, ValueShape]:
    """Run a graph on its inputs for one image, and return the shape of each node's tensor."""
    recorder = _ShapeRecorder(graph_module)
    with torch.inference_mode():
        recorder.run(*inputs)
    return recorder.shapes


def count_branches(graph_module: fx.GraphModule, node: fx.Node) -> int:
    """Return 2 if the result of a layer's node is a pair, 1 if both branches share it."""
    return 2 if node.kwargs.get("paired") or find_module(graph_module, node).mask is not None else 1


class _ShapeRecorder(fx.Interpreter):
    """An interpreter that records the shape and dtype of each value that is a tensor."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.shapes: dict[fx.Node, ValueShape] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = ValueShape(tuple(result.shape), result.dtype)
        return result
