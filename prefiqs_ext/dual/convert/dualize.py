"""dualize: a model becomes a graph that gives the pair of embeddings, dense and pruned, in one pass."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from prefiqs_ext.dual.convert.batch_axis import Value, images, observe
from prefiqs_ext.dual.convert.defaults import fix_defaults
from prefiqs_ext.dual.convert.fold import fold
from prefiqs_ext.dual.convert.inference_form import inference_form
from prefiqs_ext.dual.convert.layers import LAYERS, Layer, find_layers, refuse_hidden_weights
from prefiqs_ext.dual.convert.pairing import pair
from prefiqs_ext.dual.convert.trace import PREFIX, Traced, trace
from prefiqs_ext.dual.convert.verify import verify
from prefiqs_ext.exceptions import InputTypeError, UnsupportedNetworkError
from prefiqs_ext.models.embedding import describe_no_embedding, is_embedding, iterate_leaves
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.utils.torch_defaults import torch_defaults


def dualize(
    model: nn.Module,
    pruning: Pruning | Mapping[str, Tensor] = Pruning(),  # noqa: B008, frozen
    *,
    example: Tensor,
    output: int | str | None = None,
    fuse: bool = True,
) -> fx.GraphModule:
    """A graph module: images [N, ...] -> the pair of embeddings [2N, d], dense rows first, not normalised.

    model: any module in eval mode with float32 parameters whose forward takes one tensor. It is only read: the result
        holds copies and no reference to it.
    pruning: which weights the pruned branch loses; or masks, module name -> bool tensor of its weight's shape, True =
        keep. All before the first layer that loses a weight is computed once for both branches.
    example: one or more inputs, float or uint8 [N, ...], on the model's device. The first row, and seeded variations of
        it, show which values carry the batch and serve the self-check.
    output: which of several outputs is the embedding, by index or key; None: the first floating tensor [N, d] of
        d = 2 columns or more.
    fuse: fold batch norm, input normalisation, activations and residuals into the layers. The results are equal but for
        rounding.

    The result takes any N, and the float or uint8 values that the model takes.

    Raises ValueError, in one line, for a model in train mode, without layers to prune, that cannot be traced, with
    operations that mix rows of the batch or hide their weights; RuntimeError if the self-check fails.
    """
    check_model(model, "dualize")
    _check_example(example)
    with torch_defaults(example.device):
        return _convert(model, pruning, example, output, fuse)


def _convert(
    model: nn.Module,
    pruning: Pruning | Mapping[str, Tensor],
    example: Tensor,
    output: int | str | None,
    fuse: bool,
) -> fx.GraphModule:
    masks = pruning.make_masks(model) if isinstance(pruning, Pruning) else _check_masks(pruning, model)
    traced = trace(model, images(example, 2), output)
    refuse_hidden_weights(traced)
    values = observe(traced, example)
    _keep_embedding(traced.graph, values, output)
    fix_defaults(traced.graph, values, example.device)
    layers = find_layers(traced, values, masks)
    if fuse:
        fold(traced, values, layers)
    pair(traced.graph, values, layers)
    result = _build(traced, layers, type(model).__name__)
    verify(result, traced, masks, example)
    return result


def check_model(model: nn.Module, who: str) -> None:
    """Raises TypeError or ValueError, in the name of who asks, unless all of the model is in eval mode and float32."""
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"{who}: expected a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if module.training:
            raise UnsupportedNetworkError(f"{who}: {name or 'the model'!r} is in train mode: call model.eval() first")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise UnsupportedNetworkError(
                f"{who}: expected float32 parameters, got {parameter.dtype} in {name!r}: call model.float()"
            )


def _check_example(example: Tensor) -> None:
    if not isinstance(example, Tensor) or example.dim() < 2 or example.shape[0] < 1:
        got = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise UnsupportedNetworkError(f"dualize: expected an example [N, ...] of one or more inputs, got {got}")
    if not example.is_floating_point() and example.dtype != torch.uint8:
        raise UnsupportedNetworkError(f"dualize: expected a floating or uint8 example, got {example.dtype}")


def _check_masks(masks: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Masks that are the caller's own, each fitting a layer."""
    modules = dict(model.named_modules())
    if not any(isinstance(module, LAYERS) for module in modules.values()):
        raise UnsupportedNetworkError(
            f"dualize: the model has no convolution or linear layer to prune: {type(model).__name__}"
        )
    for name, mask in masks.items():
        layer = modules.get(name)
        if not isinstance(layer, LAYERS):
            raise UnsupportedNetworkError(
                f"dualize: expected masks of convolutions and linear layers, got one for {name!r}"
            )
        if mask.dtype != torch.bool or mask.shape != layer.weight.shape:
            raise UnsupportedNetworkError(
                f"dualize: expected a bool mask {list(layer.weight.shape)} for {name!r}, "
                f"got {mask.dtype} {list(mask.shape)}"
            )
    return dict(masks)


def _keep_embedding(graph: fx.Graph, values: dict[fx.Node, Value], output: int | str | None) -> None:
    """The graph's output becomes the first embedding among its outputs. output: which of the model's they are."""
    result = next(node for node in reversed(graph.nodes) if node.op == "output")
    tensors = [
        leaf for leaf in iterate_leaves(result.args[0]) if isinstance(leaf, fx.Node) and values[leaf].kind == "tensor"
    ]
    for tensor in tensors:
        value = values[tensor]
        if value.batch and value.dim == 0 and is_embedding(value.shape, value.dtype) and value.shape[0] == 1:
            result.args = (tensor,)
            return
    raise UnsupportedNetworkError(
        f"dualize: {describe_no_embedding((_shape(values[tensor]) for tensor in tensors), output)} for N = 1"
    )


def _shape(value: Value) -> str:
    return f"{list(value.shape)}{f' with the batch in dim {value.dim}' if value.batch and value.dim else ''}"


def _build(traced: Traced, layers: dict[str, Layer], name: str) -> fx.GraphModule:
    """Gives the graph modules and tensors of its own, under the names of the caller's model."""
    owned: dict[str, Any] = {}
    names: dict[str, str] = {}
    for node in traced.graph.nodes:
        node.meta.clear()
        node.type = None
        if node.op not in ("call_module", "get_attr"):
            continue
        target = str(node.target)
        if target not in names:
            names[target] = target.removeprefix(PREFIX)
            while names[target] in owned:  # a constant found while tracing, named as something of the model's own
                names[target] += "_"
            owned[names[target]] = layers[target].module() if target in layers else _copy(traced.root, target)
        node.target = names[target]
    return fx.GraphModule(owned, traced.graph, class_name=f"Dual{name}").eval()


def _copy(root: nn.Module, target: str) -> object:
    source = reduce(getattr, target.split("."), root)
    if isinstance(source, Tensor):
        return source.detach().clone()
    return inference_form(source) if isinstance(source, nn.Module) else copy.deepcopy(source)
