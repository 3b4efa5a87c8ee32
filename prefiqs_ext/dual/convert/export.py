"""A graph by torch.export, for models that torch.fx cannot trace, in the form that torch.fx gives.

torch.export runs the forward on tensors without data, so that it may look at types, devices and shapes; modules are
gone, and operations are ATen's. Names of weights are the model's own, so layers are found by them.
"""

from __future__ import annotations

import warnings
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


def export(root: nn.Module, x: Tensor) -> fx.Graph:
    """The graph of root(x); its targets are found in root, which gets the constants it lacks.

    x: two rows or more: the exporter would take a single one for a constant. Whatever torch.export raises for a model
    that it cannot export.
    """
    # In functional form: what is written to a view reaches the readers of the tensor that is viewed.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's about itself
        module = _program(root, x).run_decompositions({}).module(check_guards=False)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        # By the path of a module, as torch.fx has them.
        stack = node.meta.get("nn_module_stack", {}).values()
        copies[node].meta = {"nn_module_stack": dict(stack)}
        if node.op == "get_attr" and not _has(root, str(node.target)):
            constant: Any = reduce(getattr, str(node.target).split("."), module)
            copies[node].target = name = str(node.target).replace(".", "_")
            root.register_buffer(name, constant)
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._native_batch_norm_legit_no_training.default:
            _restore_batch_norm(node, root)
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


def _restore_batch_norm(node: fx.Node, root: nn.Module) -> None:
    """In eval mode: a call of its module again where it is exactly what the module computes, else F.batch_norm."""
    source, weight, bias, mean, variance, momentum, eps = node.args
    name = str(mean.target).rpartition(".")[0] if isinstance(mean, fx.Node) and mean.op == "get_attr" else ""
    module = root.get_submodule(name)
    used = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    if (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.eps == eps
        and all(_tensor(tensor, root) is getattr(module, key) for key, tensor in used.items())
    ):
        node.op, node.target, node.args = "call_module", name, (source,)
    else:
        node.target, node.args = F.batch_norm, (source, mean, variance, weight, bias, False, momentum, eps)
    for first in list(node.users):  # of three results, two of them empty
        first.replace_all_uses_with(node)


def _tensor(node: fx.node.Argument, root: nn.Module) -> object:
    return reduce(getattr, str(node.target).split("."), root) if isinstance(node, fx.Node) else node


def _has(root: nn.Module, target: str) -> bool:
    try:
        reduce(getattr, target.split("."), root)
    except AttributeError:
        return False
    return True
