"""From a module to a graph: what the model computes, as a list of operations.

The one place that knows how a graph is had: by torch.fx, which runs the forward on stand-ins for tensors; where that
fails, because the forward looks at a tensor's type or shape, by torch.export (exported.py). What follows sees no
difference.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from prefiqs_ext.dual.convert.export import export
from prefiqs_ext.exceptions import UnsupportedNetworkError
from prefiqs_ext.models.embedding import NoOutputError, select_output

PREFIX = "model."
"""What names of the caller's model begin with in a traced graph; anything else is a constant found while tracing."""

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
class Traced:
    """graph: one placeholder, no operation that writes to its input. root: what the graph's targets are found in; it
    computes what the graph computes. model: `root.model`, the caller's model with its structure and buffers copied and
    its parameters shared."""

    graph: fx.Graph
    root: nn.Module
    model: nn.Module


def is_plain_layer(module: nn.Module) -> bool:
    """Whether the module computes exactly what Conv1d, Conv2d or Linear compute from `weight` and `bias`."""
    for kind in (nn.Conv1d, nn.Conv2d):
        if isinstance(module, kind):
            methods = type(module)
            return methods.forward is kind.forward and methods._conv_forward is kind._conv_forward
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def trace(model: nn.Module, x: Tensor, output: int | str | None = None) -> Traced:
    """The graph of a copy of the model's structure; the model itself is only read.

    x: an input of two rows or more. output: which of the model's outputs the graph gives; None for all of them.
    Raises ValueError for what a graph would lose (hooks, parametrizations), for a forward that cannot be traced, and
    for an output that is not there.
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
        # A copied graph has a class of its own, whose call prints what fails in it; torch.export may yet succeed.
        if isinstance(module, fx.GraphModule) and "__call__" in vars(type(module)):
            delattr(type(module), "__call__")
    graph = _graph(root, x)
    _without_mutation(graph, root)
    for node in graph.nodes:
        # A convolution's result is channels_last here, where view() would refuse what it did before.
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[-1], torch.dtype):
            node.target = "reshape"
        elif node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    return Traced(graph, root, root.model)


def erase_unused(graph: fx.Graph) -> None:
    """Removes what does not lead to the output."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)


def _graph(root: _OneInput, x: Tensor) -> fx.Graph:
    try:
        return _Tracer().trace(root)
    except NoOutputError as error:
        raise NoOutputError(f"dualize: {error}") from None
    except Exception as error:
        reason = _reason(error)
    try:
        graph = export(root, x)
    except NoOutputError as error:
        raise NoOutputError(f"dualize: {error}") from None
    except Exception as error:
        raise UnsupportedNetworkError(
            f"dualize: cannot trace {type(root.model).__name__}, neither by torch.fx ({reason}) nor by torch.export "
            f"({_reason(error)}); its forward must take one tensor and must not branch on tensor values"
        ) from error
    erase_unused(graph)  # assertions of shapes among them; what is left is checked on real rows
    return graph


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class _OneInput(nn.Module):
    """Optional arguments of the model's forward keep their defaults, and tracing sees them as plain Python values."""

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


def _without_mutation(graph: fx.Graph, root: nn.Module) -> None:
    """Operations that write to their first input become ones that do not; later readers of the input read the result.

    (The `inplace` of modules is switched off where they are copied.)
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
