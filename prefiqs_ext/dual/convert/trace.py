"""Traces a module: what it computes, as a graph of operations.

torch.fx is tried first; it runs the forward on stand-ins for tensors. If that fails, because the forward looks at a
tensor's type or shape, torch.export is used (torch_export.py). The later steps see no difference.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from prefiqs_ext.dual.convert.torch_export import export
from prefiqs_ext.exceptions import UnsupportedNetworkError
from prefiqs_ext.models.embedding import NoOutputError, select_output

PREFIX = "model."
"""What the names of the caller's model begin with in a traced graph. Other names are constants that tracing found."""

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imatmul: operator.matmul,
    operator.ipow: operator.pow,
    operator.imod: operator.mod,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}


@dataclass(frozen=True)
class TracedModel:
    """A traced model.

    Attributes:
        graph: Has one placeholder, and no operation that writes to its input.
        root: What the graph's targets are found in. It computes what the graph computes.
        model: `root.model`: a copy of the caller's model that shares its parameters, but not its buffers.
    """

    graph: fx.Graph
    root: nn.Module
    model: nn.Module


def is_plain_layer(module: nn.Module) -> bool:
    """Tell whether a module computes exactly what Conv1d, Conv2d or Linear compute from `weight` and `bias`."""
    for kind in (nn.Conv1d, nn.Conv2d):
        if isinstance(module, kind):
            methods = type(module)
            return methods.forward is kind.forward and methods._conv_forward is kind._conv_forward
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def trace(model: nn.Module, x: Tensor, output: int | str | None = None) -> TracedModel:
    """Trace a copy of the model; the model itself is only read.

    Args:
        model: In eval mode; its forward takes one tensor.
        x: An input of two rows or more.
        output: Which of the model's outputs the graph gives, by index or key. None: all of them.

    Raises:
        UnsupportedNetworkError: The model has hooks or parametrizations, which a graph would lose, its forward cannot
            be traced, or it lacks that output.
    """
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise UnsupportedNetworkError(
                f"dualize: {name or 'the model'!r} has forward hooks, which a traced graph would not run: "
                "remove them (after torch.nn.utils.prune: prune.remove; after weight_norm: remove_weight_norm)"
            )
        if parametrize.is_parametrized(module):
            raise UnsupportedNetworkError(
                f"dualize: {name or 'the model'!r} computes its weight: "
                "call torch.nn.utils.parametrize.remove_parametrizations first"
            )
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    root = _OneInput(copy.deepcopy(model, parameters), output)
    for module in root.modules():
        # A copied graph has a class of its own, whose call prints any error; torch.export may still succeed.
        if isinstance(module, fx.GraphModule) and "__call__" in vars(type(module)):
            delattr(type(module), "__call__")
    graph = _trace_graph(root, x)
    _remove_mutation(graph, root)
    for node in graph.nodes:
        # Our convolutions give channels_last, for which view() fails where it worked on contiguous tensors.
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[-1], torch.dtype):
            node.target = "reshape"
        elif node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    return TracedModel(graph, root, root.model)


def erase_unused(graph: fx.Graph) -> None:
    """Remove the nodes that do not lead to the output."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)


def _trace_graph(root: _OneInput, x: Tensor) -> fx.Graph:
    try:
        return _Tracer().trace(root)
    except NoOutputError as error:
        raise NoOutputError(f"dualize: {error}") from None
    except Exception as error:
        reason = _summarise_error(error)
    try:
        graph = export(root, x)
    except NoOutputError as error:
        raise NoOutputError(f"dualize: {error}") from None
    except Exception as error:
        raise UnsupportedNetworkError(
            f"dualize: cannot trace {type(root.model).__name__}, neither by torch.fx ({reason}) nor by torch.export "
            f"({_summarise_error(error)}); its forward must take one tensor and must not branch on tensor values"
        ) from error
    erase_unused(graph)  # such as assertions of shapes; the graph is checked on real rows later
    return graph


def _summarise_error(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class _OneInput(nn.Module):
    """A module of one input, so that optional arguments of the model's forward keep their default values."""

    def __init__(self, model: nn.Module, output: int | str | None) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, x: Tensor) -> object:
        return select_output(self.model(x), self.output)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            return is_plain_layer(m)
        return super().is_leaf_module(m, module_qualified_name)


def _remove_mutation(graph: fx.Graph, root: nn.Module) -> None:
    """Make operations that write to their first input write elsewhere; later readers of the input read the result.

    The `inplace` of modules is switched off later, when they are copied (freeze.py).
    """
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not _make_out_of_place(node, root):
            continue
        later = {user for user in source.users if position[user] > position[node]}
        source.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _make_out_of_place(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        if not name.endswith("_") or name.endswith("__") or not hasattr(Tensor, name[:-1]):
            return False
        node.target = name[:-1]
        return True
    if node.op == "call_function":
        if node.target in _OUT_OF_PLACE:
            node.target = _OUT_OF_PLACE[node.target]
            return True
        name = getattr(node.target, "__name__", "")
        if name.endswith("_") and hasattr(F, name[:-1]):  # torch.relu_
            node.target = getattr(F, name[:-1])
            return True
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
            return True
    return False
