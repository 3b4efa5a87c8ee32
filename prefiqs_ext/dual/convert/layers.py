"""Finds the convolutions and linear layers of a graph, and does the arithmetic of what is folded into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from prefiqs_ext.dual.convert.batch_axis import Value, describe_node, name_operation
from prefiqs_ext.dual.convert.trace import PREFIX, TracedModel, erase_unused, is_plain_layer
from prefiqs_ext.dual.modules import DualConv1d, DualConv2d, DualLinear
from prefiqs_ext.exceptions import UnsupportedNetworkError

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_OPAQUE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_FUNCTIONS = ("conv1d", "conv2d", "linear")
_FOLDED_TOGETHER = 128 * 1024  # weights; 1 MiB in float64. Bounds memory, not speed
_SIGNATURE = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass
class Layer:
    """One convolution or linear layer of the caller's model, and what is folded into it.

    It computes act(scale_out * (W * (scale_in * x + shift_in) + bias) + shift_out + residual). W is `weight`, in the
    pruned branch masked by `mask`; act is the activation with `slope`. The folded vectors hold one float64 number per
    channel; `build_module` computes in float64 and rounds once, to float32. `pad` and `pad_mode` are arguments of
    torch.nn.functional.pad, for paddings that the operator does not have.
    """

    weight: Tensor
    bias: Tensor | None
    mask: Tensor | None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    pad: tuple[int, ...] | None = None
    pad_mode: str = "constant"
    scale_in: Tensor | None = None
    shift_in: Tensor | None = None
    scale_out: Tensor | None = None
    shift_out: Tensor | None = None
    slope: Tensor | None = None

    @property
    def dims(self) -> int:
        """How many dimensions the map has: 2, 1 or, for a linear layer, 0."""
        return self.weight.dim() - 2

    @property
    def channels_in(self) -> int:
        """Channels of the source, C."""
        return self.weight.shape[1] * self.groups

    @property
    def channels_out(self) -> int:
        """Channels of the result, Co."""
        return self.weight.shape[0]

    @property
    def folds_before(self) -> bool:
        """Whether an affine operation before the layer can be folded into it.

        A linear layer has no tap_shift to keep the branches apart. Zeros that `pad` writes would count as inside the
        image.
        """
        return self.dims > 0 and (self.pad is None or self.pad_mode != "constant")

    def fold_before(self, scale: Tensor, shift: Tensor) -> None:
        """Fold in an operation before the layer, which now reads v instead of scale * v + shift; both are [C]."""
        if self.scale_in is not None and self.shift_in is not None:
            scale, shift = self.scale_in * scale, self.scale_in * shift + self.shift_in
        self.scale_in, self.shift_in = scale, shift

    def fold_after(self, scale: Tensor, shift: Tensor) -> None:
        """Fold in an operation after the layer: the result becomes scale * result + shift; both are [Co]."""
        if self.scale_out is not None and self.shift_out is not None:
            scale, shift = self.scale_out * scale, self.shift_out * scale + shift
        self.scale_out, self.shift_out = scale, shift

    def build_module(self) -> nn.Module:
        """Build the module of a converted graph; it shares no tensor with this layer."""
        weight, bias, tap_shift = self._fold()
        if self.dims == 0:
            return DualLinear(weight, self.mask, bias=bias)
        mask, pad = self.mask, self.pad
        if self.dims == 1:  # a 2-d convolution on a map of one row
            weight = weight.unsqueeze(2)
            mask = None if mask is None else mask.unsqueeze(2)
            tap_shift = None if tap_shift is None else tap_shift.unsqueeze(2)
            pad = None if pad is None else (*pad, 0, 0)
        return (DualConv2d if self.dims == 2 else DualConv1d)(
            weight,
            mask,
            bias=bias,
            tap_shift=tap_shift,
            slope=self.slope,
            stride=_extend_to_two(self.stride, 1),
            padding=_extend_to_two(self.padding, 0),
            dilation=_extend_to_two(self.dilation, 1),
            groups=self.groups,
            pad=pad,
            pad_mode=self.pad_mode,
        )

    def _fold(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return weight, bias and tap_shift with everything folded in, or the caller's own tensors if nothing is."""
        if self.scale_in is None and self.scale_out is None:
            return self.weight, self.bias, None
        filters = self.weight.shape[0]
        scale_out = self.scale_out
        if scale_out is None:
            scale_out = torch.ones(filters, dtype=torch.float64, device=self.weight.device)
        bias = None if self.bias is None else self.bias.double() * scale_out
        if self.shift_out is not None:
            bias = self.shift_out if bias is None else bias + self.shift_out
        weight = torch.empty_like(self.weight, dtype=torch.float32)
        tap_shifts = []
        # A few filters at a time, because a whole layer in float64 would set the peak of a conversion's memory.
        few = max(1, _FOLDED_TOGETHER // self.weight[0].numel())
        for rows in (slice(begin, begin + few) for begin in range(0, filters, few)):
            scaled = self.weight[rows].double() * scale_out[rows].view(-1, *(1,) * (weight.dim() - 1))
            if self.scale_in is None or self.shift_in is None:
                weight[rows] = scaled
                continue
            weight[rows] = scaled * self._expand_to_weights(self.scale_in)[rows]
            # Padding adds zeros after the operation that is folded, so its shift reaches only taps inside the image.
            shifts = scaled * self._expand_to_weights(self.shift_in)[rows]
            branches = [shifts] if self.mask is None else [shifts, shifts * self.mask[rows].to(weight.device)]
            tap_shifts.append(torch.stack([branch.sum(1) for branch in branches]))
        tap_shift = torch.cat(tap_shifts, dim=1) if tap_shifts else None
        return weight, bias, tap_shift if tap_shift is not None and bool(tap_shift.any()) else None

    def _expand_to_weights(self, vector: Tensor) -> Tensor:
        """Expand [C] to [Co, C/groups, 1, 1]: for every filter, the input channels of its group."""
        filters, inside = self.weight.shape[:2]
        rows = vector.view(self.groups, 1, inside).expand(-1, filters // self.groups, -1)
        return rows.reshape(filters, inside, *(1,) * self.dims)


def refuse_hidden_weights(traced: TracedModel) -> None:
    """Refuse attention and recurrent modules, whose weights a graph does not show.

    Raises:
        UnsupportedNetworkError: Naming the module.
    """
    opaque = {name: module for name, module in traced.root.named_modules() if isinstance(module, _OPAQUE)}
    for node in traced.graph.nodes:
        for path in node.meta.get("nn_module_stack", {}):  # an exported graph shows what is inside such modules
            if path in opaque:
                what = f"{path.removeprefix(PREFIX)!r} ({type(opaque[path]).__name__})"
                raise UnsupportedNetworkError(f"dualize: cannot see into the weights of {what}")
        hides = node.op == "call_function" and name_operation(node) == "multi_head_attention_forward"
        if node.op == "call_module":
            module = traced.root.get_submodule(str(node.target))
            parts = module.modules() if not is_plain_layer(module) else ()
            hides = any(isinstance(part, (*LAYERS, *_OPAQUE)) for part in parts)
        if hides:
            raise UnsupportedNetworkError(f"dualize: cannot see into the weights of {describe_node(node, traced.root)}")


def find_layers(traced: TracedModel, values: dict[fx.Node, Value], masks: dict[str, Tensor]) -> dict[str, Layer]:
    """Find the layers of a graph. Calls such as F.conv2d with the model's own weight become calls of a layer.

    Args:
        traced: The model's graph; changed in place.
        values: What its nodes compute; gets an entry for each new node.
        masks: From the name of a module to the bool mask of its weight. A mask that removes nothing is dropped.

    Returns:
        From the target of a call_module node to its layer.

    Raises:
        UnsupportedNetworkError: A pruned weight is used by another operation than a convolution or linear layer, or a
            pruned layer reads a value without a batch, whose two results would have no rows.
    """
    removing = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    layers: dict[str, Layer] = {}
    for node in list(traced.graph.nodes):
        if node.op == "call_module":
            module = traced.root.get_submodule(str(node.target))
            if isinstance(module, LAYERS):
                layers[str(node.target)] = _read_module(module, removing.get(_find_model_name(str(node.target))))
        elif node.op == "call_function" and name_operation(node) in _FUNCTIONS:
            _replace_function(node, traced, values, layers, removing)
    erase_unused(traced.graph)
    used: dict[str, Layer] = {}
    for node in traced.graph.nodes:
        target = str(node.target)
        name = _find_model_name(target.removesuffix(".weight"))
        if node.op == "call_module" and target in layers:
            used[target] = layers[target]
            if used[target].mask is not None and not values[node].batch:
                raise UnsupportedNetworkError(f"dualize: the pruned layer {name!r} reads a value without a batch")
            _move_rows_first(node, used[target], values)
        elif node.op == "get_attr" and target.endswith(".weight") and name in removing:
            user = describe_node(next(iter(node.users)), traced.root)
            raise UnsupportedNetworkError(
                f"dualize: the pruned weight of {name!r} is used by {user}, not by a convolution or linear layer"
            )
    return used


def _move_rows_first(node: fx.Node, layer: Layer, values: dict[fx.Node, Value]) -> None:
    """Move the batch to dimension 0 before a linear layer that reads it elsewhere, and back after the layer."""
    value, source = values[node], node.args[0]
    if not value.batch or value.dim == 0:
        return
    if layer.dims:
        name = _find_model_name(str(node.target))
        raise UnsupportedNetworkError(
            f"dualize: the convolution {name!r} reads a value whose batch is in dim {value.dim}"
        )
    assert isinstance(source, fx.Node)
    graph, dim = node.graph, value.dim
    with graph.inserting_before(node):
        first = graph.call_function(torch.movedim, (source, dim, 0))
    with graph.inserting_after(node):
        back = graph.call_function(torch.movedim, (node, 0, dim))
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
    node.args = (first,)
    for moved, like in ((first, values[source]), (node, value)):
        shape = (like.shape[dim], *like.shape[:dim], *like.shape[dim + 1 :])
        values[moved] = Value(True, "tensor", shape, like.dtype)
    values[back] = value


def _find_model_name(target: str) -> str:
    """Return what the caller's model calls a target; "" for the model itself."""
    return target.removeprefix(PREFIX) if target.startswith(PREFIX) else ""


def _read_module(module: nn.Conv1d | nn.Conv2d | nn.Linear, mask: Tensor | None) -> Layer:
    layer = Layer(module.weight.detach(), None if module.bias is None else module.bias.detach(), mask)
    if not isinstance(module, nn.Linear):
        layer.stride, layer.dilation, layer.groups = module.stride, module.dilation, module.groups
        _set_padding(layer, module.padding, module.padding_mode)
    return layer


def _replace_function(
    node: fx.Node,
    traced: TracedModel,
    values: dict[fx.Node, Value],
    layers: dict[str, Layer],
    removing: dict[str, Tensor],
) -> None:
    """Turn F.conv2d(x, self.weight, ...) into a call of a layer, if weight and bias are the model's own tensors."""
    arguments: dict[str, Any] = {**dict(zip(_SIGNATURE, node.args, strict=False)), **node.kwargs}
    weight, bias = arguments["weight"], arguments.get("bias")
    if not all(isinstance(tensor, fx.Node) and tensor.op == "get_attr" for tensor in (weight, bias or weight)):
        return
    owner = str(weight.target).removesuffix(".weight")
    layer = Layer(
        _get_tensor(traced.root, weight),
        None if bias is None else _get_tensor(traced.root, bias),
        removing.get(_find_model_name(owner)),
    )
    if layer.dims:
        layer.stride, layer.dilation = (
            _repeat_size(arguments.get(key, 1), layer.dims) for key in ("stride", "dilation")
        )
        layer.groups = arguments.get("groups", 1)
        padding = arguments.get("padding", 0)
        _set_padding(layer, padding if isinstance(padding, str) else _repeat_size(padding, layer.dims), "zeros")
    # One module per weight, and another one only where the weight is used with another bias, stride or padding.
    name = owner if owner != weight.target else f"{owner}_layer"
    while name in layers and not _is_same(layers[name], layer):
        name += "_"
    layers[name] = layer
    with traced.graph.inserting_before(node):
        call = traced.graph.call_module(name, (arguments["input"],))
    values[call] = values[node]
    node.replace_all_uses_with(call)
    traced.graph.erase_node(node)


def _is_same(a: Layer, b: Layer) -> bool:
    tensors = (a.weight is b.weight, a.bias is b.bias)
    return all(tensors) and all(
        getattr(a, field) == getattr(b, field)
        for field in ("stride", "padding", "dilation", "groups", "pad", "pad_mode")
    )


def _set_padding(layer: Layer, padding: str | Sequence[int], mode: str) -> None:
    """Set the operator's own padding for equal zeros on both sides; anything else is padded before the operator."""
    if padding == "same":  # torch's rule: of an odd number of zeros, one more goes to the end
        totals = [step * (size - 1) for step, size in zip(layer.dilation, layer.weight.shape[2:], strict=True)]
    else:
        totals = [0] * layer.dims if isinstance(padding, str) else [2 * each for each in padding]
    if mode == "zeros" and all(total % 2 == 0 for total in totals):
        layer.padding = tuple(total // 2 for total in totals)
        return
    layer.padding = (0,) * layer.dims
    layer.pad = tuple(side for total in reversed(totals) for side in (total // 2, total - total // 2))
    layer.pad_mode = "constant" if mode == "zeros" else mode


def _get_tensor(root: nn.Module, node: fx.Node) -> Tensor:
    tensor: Tensor = reduce(getattr, str(node.target).split("."), root)  # type: ignore[assignment]
    return tensor


def _repeat_size(size: int | Sequence[int], dims: int) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return sizes * dims if len(sizes) == 1 else sizes


def _extend_to_two(sizes: tuple[int, ...], before: int) -> tuple[int, int]:
    first, last = sizes if len(sizes) == 2 else (before, *sizes)
    return first, last
