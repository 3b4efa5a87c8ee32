"""A graph by torch.export, for models that torch.fx cannot trace, in the form that torch.fx gives.

torch.export runs the forward on tensors without data, so that it may look at types, devices and shapes; modules are
gone, and operations are ATen's. Names of weights are the model's own, so layers are found by them.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

_DROPOUTS = (
    torch.ops.aten.dropout.default,
    torch.ops.aten.feature_dropout.default,
    torch.ops.aten.alpha_dropout.default,
)


def export(root: nn.Module, x: Tensor) -> fx.Graph:
    """The graph of root(x); its targets are found in root, which gets the constants it lacks.

    x: two rows or more: the exporter would take a single one for a constant. Whatever torch.export raises for a model
    that it cannot export.
    """
    module = _program(root, x).module(check_guards=False)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        # By the path of a module, as torch.fx has them.
        stack = node.meta.get("nn_module_stack", {}).values()
        copies[node].meta = {"nn_module_stack": dict(stack)}
        if node.op == "get_attr" and not _has(root, str(node.target)):
            constant: Any = reduce(getattr, str(node.target).split("."), module)
            root.register_buffer(str(node.target), constant)
    for node in list(graph.nodes):
        _restore(node, root)
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)  # assertions of shapes among them; what is left is checked on real rows
    return graph


def _program(root: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """For any number of rows; for one row where the forward makes a constant of it, as len() does: constants of 1 row
    are found and freed later, as in a file that was exported so."""
    try:
        return torch.export.export(root, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=1)},))
    except Exception as error:
        try:
            return torch.export.export(root, (x[:1],))
        except Exception:
            raise error from None


def _restore(node: fx.Node, root: nn.Module) -> None:
    """Batch norm becomes a call of its module again; a dropout that drops nothing goes."""
    if node.target is torch.ops.aten.batch_norm.default:
        source, _, _, mean, *_ = node.args
        name = str(mean.target).rpartition(".")[0] if isinstance(mean, fx.Node) and mean.op == "get_attr" else ""
        if isinstance(root.get_submodule(name), nn.modules.batchnorm._BatchNorm):
            node.op, node.target, node.args, node.kwargs = "call_module", name, (source,), {}
    elif node.target in _DROPOUTS and node.args[2] is False:
        assert isinstance(node.args[0], fx.Node)
        node.replace_all_uses_with(node.args[0])


def _has(root: nn.Module, target: str) -> bool:
    try:
        reduce(getattr, target.split("."), root)
    except AttributeError:
        return False
    return True
