"""Writes torch's default dtype and device into a graph, so that a later `torch.set_default_dtype` changes no number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from prefiqs_ext.dual.convert.batch_axis import Value, name_operation

_FACTORIES = {"arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randn", "tensor", "zeros"}
_CASTS = {"float", "double", "half", "bfloat16", "to", "_to_copy", "type", "type_as"}


def fix_defaults(graph: fx.Graph, values: dict[fx.Node, Value], device: torch.device) -> None:
    """Write down what the graph's operations would read from torch's defaults.

    Factories such as `torch.zeros` get the dtype that they had while the graph was observed, and the device. An
    operation that makes floats of integers, such as `levels / 255` or `levels.sqrt()`, gets floats as its input.

    Args:
        graph: Changed in place.
        values: What its nodes compute; gets an entry for each new node.
        device: Where the model is.
    """
    for node in list(graph.nodes):
        value = values.get(node)
        if node.op not in ("call_function", "call_method") or value is None or value.dtype is None:
            continue
        tensors = [source for source in node.all_input_nodes if values[source].kind == "tensor"]
        if name_operation(node) in _FACTORIES and not tensors:
            said = {name: given for name, given in node.kwargs.items() if given is not None}
            node.kwargs = {"dtype": value.dtype, "device": device, **said}
        elif tensors and _reads_default(node, value, [values[source] for source in tensors]):
            truths = all(values[source].dtype == torch.bool for source in tensors)
            if truths and any(isinstance(given, float) for given in node.args):  # where(x > 0, 0.5, 1.0)
                node.args = tuple(_convert_number(node, given, value.dtype, device) for given in node.args)
                if isinstance(node.target, torch._ops.OpOverload):  # the one for numbers
                    node.target = node.target.overloadpacket
                continue
            for source in tensors:
                with graph.inserting_before(node):
                    floats = graph.call_method("to", (source, value.dtype))
                values[floats] = replace(values[source], dtype=value.dtype, constant=None)
                node.replace_input_with(source, floats)


def _convert_number(node: fx.Node, given: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Turn a float into a tensor without dimensions, whose dtype the result gets; leave anything else as it is."""
    if not isinstance(given, float):
        return given
    with node.graph.inserting_before(node):
        return node.graph.call_function(torch.full, ((), given), {"dtype": dtype, "device": device})


def _reads_default(node: fx.Node, value: Value, sources: list[Value]) -> bool:
    """Tell whether the result has the default dtype: floats from inputs that are none, and no dtype in the call."""
    if value.dtype is None or not value.dtype.is_floating_point or name_operation(node) in _CASTS:
        return False
    says_dtype = any(isinstance(given, torch.dtype) for given in (*node.args, *node.kwargs.values()))
    return not says_dtype and not any(source.dtype is None or source.dtype.is_floating_point for source in sources)
