"""Traces with torch.export the models that torch.fx cannot trace, and gives the graph the form that torch.fx gives.

torch.export runs the forward on tensors without data, so a forward may look at types, devices and shapes. No modules
are left in its graph, and the operations are ATen's. Weights keep the names that the model gives them, so layers are
found by name.
"""

from __future__ import annotations

import warnings
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


def export(root: nn.Module, x: Tensor) -> fx.Graph:
    """Trace root(x) with torch.export.

    Args:
        root: What the graph's targets are found in. It gets the constants that it lacks as buffers.
        x: An input of two rows or more; the exporter would take a batch of one for a constant.

    Raises:
        Exception: Whatever torch.export raises for a model that it cannot export.
    """
    # The decomposition makes the graph functional: what is written to a view reaches all readers of its base.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns about its own code
        module = _export_program(root, x).run_decompositions({}).module(check_guards=False)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        # torch.fx keys the stack by the path of a module, and so do we.
        stack = node.meta.get("nn_module_stack", {}).values()
        copies[node].meta = {"nn_module_stack": dict(stack)}
        if node.op == "get_attr" and not _has_target(root, str(node.target)):
            constant: Any = reduce(getattr, str(node.target).split("."), module)
            copies[node].target = name = str(node.target).replace(".", "_")
            root.register_buffer(name, constant)
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._native_batch_norm_legit_no_training.default:
            _restore_batch_norm(node, root)
    return graph


def _export_program(root: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """Export for any number of rows, or for one row where the forward makes a constant of it, as len() does.

    A constant of one row is found and freed later, as in a file that was exported with one.
    """
    try:
        return torch.export.export(root, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=1)},))
    except Exception as error:
        try:
            return torch.export.export(root, (x[:1],))
        except Exception:
            raise error from None


def _restore_batch_norm(node: fx.Node, root: nn.Module) -> None:
    """Turn a decomposed batch norm in eval mode back into a call of its module, or else of F.batch_norm."""
    source, weight, bias, mean, variance, momentum, eps = node.args
    name = str(mean.target).rpartition(".")[0] if isinstance(mean, fx.Node) and mean.op == "get_attr" else ""
    module = root.get_submodule(name)
    used = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    if (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.eps == eps
        and all(_get_tensor(tensor, root) is getattr(module, key) for key, tensor in used.items())
    ):
        node.op, node.target, node.args = "call_module", name, (source,)
    else:
        node.target, node.args = F.batch_norm, (source, mean, variance, weight, bias, False, momentum, eps)
    for first in list(node.users):  # the other two of its three results are empty
        first.replace_all_uses_with(node)


def _get_tensor(node: fx.node.Argument, root: nn.Module) -> object:
    return reduce(getattr, str(node.target).split("."), root) if isinstance(node, fx.Node) else node


def _has_target(root: nn.Module, target: str) -> bool:
    try:
        reduce(getattr, target.split("."), root)
    except AttributeError:
        return False
    return True
