"""Folds batch norm, normalisation, activations and additions into the convolutions and linear layers beside them.

For example, conv -> batch norm -> add -> ReLU becomes one layer with a bias, a residual and a slope. The masks were
taken from the raw weights before; folding scales the weights and leaves the masks as they are. Scales and shifts are
the same for both branches, so there is still one weight tensor. Only a shift before a pruned convolution differs
between the branches, because it passes through different weights: it becomes the layer's tap_shift.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from prefiqs_ext.dual.convert.batch_axis import Value, name_operation
from prefiqs_ext.dual.convert.layers import Layer
from prefiqs_ext.dual.convert.trace import TracedModel, erase_unused

_REMOVED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_CASTS = ("float", "to", "type")
_ARITHMETIC = ("add", "sub", "mul", "div", "truediv")


class ScaleShift(NamedTuple):
    """An operation that computes scale * source + shift; both tensors broadcast to the shape of the value."""

    source: fx.Node
    scale: Tensor
    shift: Tensor


def fold_into_layers(traced: TracedModel, values: dict[fx.Node, Value], layers: dict[str, Layer]) -> None:
    """Fold what stands beside the layers into them, wherever no other operation reads the value that disappears.

    After a layer, in this order: affine operations (batch norm in eval mode; adding, subtracting, multiplying or
    dividing by numbers or buffers, one or one per channel), one addition of a value of the same shape, one ReLU,
    LeakyReLU or PReLU. Before a convolution: affine operations, and the cast of a uint8 image to float.

    Linear layers take only the affine operations after them. A layer that is called several times is left alone,
    because what follows one call does not follow the other.

    Args:
        traced: The model's graph; changed in place.
        values: What its nodes compute.
        layers: The layers by the target of their node; changed in place.
    """
    folding = _Folding(traced, values, layers)
    folding.remove_identities()
    # Backwards: if the results of two convolutions are added, the later one takes the earlier as its residual.
    for node in reversed(list(traced.graph.nodes)):
        layer = folding.find_layer(node)
        if layer is not None:
            folding.fold_followers(node, layer)
    for node in reversed(list(traced.graph.nodes)):
        folding.fold_into_users(node)
    erase_unused(traced.graph)


class _Folding:
    def __init__(self, traced: TracedModel, values: dict[fx.Node, Value], layers: dict[str, Layer]) -> None:
        self.graph, self.root = traced.graph, traced.root
        self.values, self.layers = values, layers
        calls = [node.target for node in self.graph.nodes if node.op == "call_module"]
        self.single = {target for target in layers if calls.count(target) == 1}

    def find_layer(self, node: fx.Node) -> Layer | None:
        """Return the layer that a node calls, if something may be folded into it."""
        return self.layers[str(node.target)] if node.op == "call_module" and node.target in self.single else None

    def find_module(self, node: fx.Node) -> nn.Module | None:
        """Return the module of the caller's model that a node calls; None for layers and for other nodes."""
        is_module = node.op == "call_module" and node.target not in self.layers
        return self.root.get_submodule(str(node.target)) if is_module else None

    def remove_identities(self) -> None:
        for node in list(self.graph.nodes):
            dropout = node.op == "call_function" and "dropout" in name_operation(node)
            if isinstance(self.find_module(node), _REMOVED) or (dropout and not node.kwargs.get("training", True)):
                self._replace(node, node.all_input_nodes[0])

    def fold_followers(self, node: fx.Node, layer: Layer) -> None:
        while len(node.users) == 1 and layer.slope is None:
            user = next(iter(node.users))
            if len(node.args) == 1 and self._fold_affine_after(node, user, layer):
                pass
            elif len(node.args) == 1 and layer.dims and (other := self._find_other_operand(node, user)) is not None:
                user.prepend(node)  # the convolution moves to where both operands exist
                node.args = (*node.args, other)
            elif layer.dims and (slope := self._read_slope(user, layer)) is not None:
                layer.slope = slope
            else:
                return
            self._replace(user, node)

    def fold_into_users(self, node: fx.Node) -> None:
        """Fold an affine operation into the convolutions after it, if nothing else reads it."""
        affine = self._read_affine(node)
        if affine is None or not node.users:
            return
        folds = []
        for user in node.users:
            layer = self.find_layer(user)
            if layer is None or not layer.folds_before or user.args[0] is not node or node in user.args[1:]:
                return
            vectors = self._expand_to_channels(affine, node, 1, layer.channels_in, layer.weight.device)
            if vectors is None:
                return
            folds.append((layer, vectors))
        for layer, vectors in folds:
            layer.fold_before(*vectors)
        self._replace(node, affine.source)

    def _fold_affine_after(self, node: fx.Node, user: fx.Node, layer: Layer) -> bool:
        affine = self._read_affine(user)
        if affine is None or affine.source is not node:
            return False
        # A linear layer's channels are its last dimension, a convolution's always dim 1.
        axis = 1 if layer.dims else len(self.values[node].shape) - 1
        vectors = self._expand_to_channels(affine, node, axis, layer.channels_out, layer.weight.device)
        if vectors is None:
            return False
        layer.fold_after(*vectors)
        return True

    def _find_other_operand(self, node: fx.Node, user: fx.Node) -> fx.Node | None:
        """Return what is added to a convolution's result, if it has the same shape: residuals do not broadcast."""
        if name_operation(user) != "add" or user.op == "call_module" or user.kwargs or len(user.args) != 2:
            return None
        operands = [operand for operand in user.args if isinstance(operand, fx.Node) and operand is not node]
        if len(operands) != 1:
            return None
        ours, theirs = self.values[node], self.values[operands[0]]
        alike = theirs.batch and (theirs.shape, theirs.dtype, theirs.dim) == (ours.shape, ours.dtype, ours.dim)
        return operands[0] if alike else None

    def _read_slope(self, node: fx.Node, layer: Layer) -> Tensor | None:
        """Return the slopes [1] or [Co] of an activation that gives x above 0 and slope * x below; else None."""
        module = self.find_module(node)
        if isinstance(module, nn.PReLU):
            return module.weight.detach()
        if isinstance(module, nn.LeakyReLU):
            return torch.full((1,), module.negative_slope, device=layer.weight.device)
        if isinstance(module, nn.ReLU) or (module is None and name_operation(node) == "relu"):
            return torch.zeros(1, device=layer.weight.device)
        if node.op == "call_module":
            return None
        if name_operation(node) == "leaky_relu":
            slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
            return torch.full((1,), slope, device=layer.weight.device) if isinstance(slope, (int, float)) else None
        if name_operation(node) == "prelu":
            slope = self._read_constant([*node.args, *node.kwargs.values()][1])
            return None if slope is None else slope.reshape(-1)
        return None

    def _read_affine(self, node: fx.Node) -> ScaleShift | None:
        """Return the node as scale * source + shift of a float32 or uint8 value of the same shape, if it is that."""
        value = self.values.get(node)
        if value is None or not value.batch or value.dtype != torch.float32 or not node.all_input_nodes:
            return None
        module = self.find_module(node)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            affine = self._read_batch_norm(node, module)
        elif node.op in ("call_function", "call_method"):
            affine = self._read_arithmetic(node)
        else:
            affine = None
        if affine is None:
            return None
        source = self.values[affine.source]
        return affine if source.shape == value.shape and source.dtype in (torch.float32, torch.uint8) else None

    def _read_batch_norm(self, node: fx.Node, norm: nn.modules.batchnorm._BatchNorm) -> ScaleShift | None:
        if norm.running_mean is None or norm.running_var is None or not isinstance(node.args[0], fx.Node):
            return None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.detach().double()
        shift = -norm.running_mean.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.detach().double()
        channels = (1, -1) + (1,) * (len(self.values[node].shape) - 2)
        return ScaleShift(node.args[0], scale.view(channels), shift.view(channels))

    def _read_arithmetic(self, node: fx.Node) -> ScaleShift | None:
        """Read a cast, or the sum, product or the like of a growing value and a constant."""
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        name, operands = name_operation(node), node.args
        if name in _CASTS and isinstance(operands[0], fx.Node) and self.values[operands[0]].batch:
            return ScaleShift(operands[0], one, zero)
        if name not in _ARITHMETIC or node.kwargs or len(operands) != 2:
            return None
        growing = [isinstance(operand, fx.Node) and self.values[operand].batch for operand in operands]
        source, other = operands if growing[0] else reversed(operands)
        constant = self._read_constant(other)
        if constant is None or not isinstance(source, fx.Node):
            return None
        one, zero = one.to(constant.device), zero.to(constant.device)
        if name == "add":
            return ScaleShift(source, one, constant)
        if name == "sub":
            return ScaleShift(source, one, -constant) if growing[0] else ScaleShift(source, -one, constant)
        if name == "mul":
            return ScaleShift(source, constant, zero)
        return ScaleShift(source, 1 / constant, zero) if growing[0] else None

    def _read_constant(self, operand: object) -> Tensor | None:
        """Return a number, or a tensor that does not grow with the batch, as float64; None for anything else."""
        if isinstance(operand, fx.Node):
            operand = self.values[operand].constant
        if isinstance(operand, Tensor):
            return operand.detach().double()
        is_number = isinstance(operand, (int, float)) and not isinstance(operand, bool)
        return torch.tensor(operand, dtype=torch.float64) if is_number else None

    def _expand_to_channels(
        self, affine: ScaleShift, node: fx.Node, axis: int, channels: int, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        """Return scale and shift as vectors [channels] along `axis`, if they do not vary along another axis."""
        rank = len(self.values[node].shape)
        vectors = []
        for tensor in (affine.scale, affine.shift):
            if tensor.dim() > rank:
                return None
            shape = [1] * (rank - tensor.dim()) + list(tensor.shape)
            if any(size != 1 for index, size in enumerate(shape) if index != axis) or shape[axis] not in (1, channels):
                return None
            vectors.append(tensor.reshape(-1).expand(channels).to(device))
        return vectors[0], vectors[1]

    def _replace(self, node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)
