"""What the values of a converted graph look like: their shapes, and how many branches they hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from prefiqs_ext.dual.modules import find_module


def observe_shapes(graph_module: fx.GraphModule, *inputs: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Run a graph on its inputs for one image, and return the shape of each node's tensor."""
    shapes = _ShapeRecorder(graph_module)
    with torch.inference_mode():
        shapes.run(*inputs)
    return shapes.shapes


def count_branches(graph_module: fx.GraphModule, node: fx.Node) -> int:
    """Return 2 if the result of a layer's node is a pair, 1 if both branches share it."""
    return 2 if node.kwargs.get("paired") or find_module(graph_module, node).mask is not None else 1


class _ShapeRecorder(fx.Interpreter):
    """An interpreter that records the shape of each value that is a tensor."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        return result
