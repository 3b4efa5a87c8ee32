"""What a graph's operations read from torch's defaults is written down, so that later defaults change no number."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from .rows import Value, operation

_FACTORIES = {"arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randn", "tensor", "zeros"}
_ARITHMETIC = {"add", "sub", "mul", "div", "truediv", "true_divide"}


def fix_defaults(graph: fx.Graph, values: dict[fx.Node, Value], device: torch.device) -> None:
    """Factories get the dtype that they had while the graph was observed, and the device; arithmetic that makes floats
    of integers alone, as `levels / 255` does, is given floats."""
    for node in list(graph.nodes):
        value = values.get(node)
        if node.op not in ("call_function", "call_method") or value is None or value.dtype is None:
            continue
        tensors = [source for source in node.all_input_nodes if values[source].kind == "tensor"]
        if operation(node) in _FACTORIES and not tensors:
            said = {name: given for name, given in node.kwargs.items() if given is not None}
            node.kwargs = {"dtype": value.dtype, "device": device, **said}
        elif (
            operation(node) in _ARITHMETIC
            and value.dtype.is_floating_point
            and not any(_is_floating(values[source]) for source in tensors)
        ):
            for source in tensors:
                with graph.inserting_before(node):
                    floats = graph.call_method("to", (source, value.dtype))
                values[floats] = replace(values[source], dtype=value.dtype, constant=None)
                node.replace_input_with(source, floats)


def _is_floating(value: Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point
