"""`dualize` turns a model into a graph that gives the pair of embeddings, dense and pruned, in one pass.

The steps: trace the model, find what carries the batch, write torch's defaults down, find the layers, fold into them,
decide where the pair starts, build the graph module, check it against the model, add the norms that are asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from prefiqs_ext.dual.convert.batch_axis import Value, make_images, observe_values
from prefiqs_ext.dual.convert.default_dtypes import fix_defaults
from prefiqs_ext.dual.convert.fold import fold_into_layers
from prefiqs_ext.dual.convert.freeze import freeze
from prefiqs_ext.dual.convert.layers import LAYERS, Layer, find_layers, refuse_hidden_weights
from prefiqs_ext.dual.convert.norms import add_norms
from prefiqs_ext.dual.convert.pairing import pair
from prefiqs_ext.dual.convert.recalibrate import find_constants
from prefiqs_ext.dual.convert.trace import PREFIX, TracedModel, trace
from prefiqs_ext.dual.convert.verify import verify
from prefiqs_ext.exceptions import InputError, InputTypeError, UnsupportedNetworkError
from prefiqs_ext.models.embedding import describe_no_embedding, is_embedding, iterate_leaves
from prefiqs_ext.pruning import Pruning, check_pruning
from prefiqs_ext.recalibration import Recalibration
from prefiqs_ext.utils.torch_defaults import torch_defaults


def dualize(
    model: nn.Module,
    pruning: Pruning | Mapping[str, Tensor] = Pruning(),  # noqa: B008, frozen
    *,
    example: Tensor,
    output: int | str | None = None,
    recalibration: Recalibration | None = None,
    norms: Sequence[str] = (),
    fold: bool = True,
) -> fx.GraphModule:
    """Convert a model into a graph that computes the dense and the pruned embeddings in one pass.

    Everything before the first layer that loses a weight is computed once for both branches.

    Args:
        model: Any module in eval mode with float32 parameters whose forward takes one tensor. It is only read: the
            result holds copies and no reference to it.
        pruning: Which weights the pruned branch loses. Or masks: from the name of a module to a bool tensor of its
            weight's shape, True where the weight is kept.
        example: One or more inputs [N, ...], float or uint8, on the model's device. Its first row and seeded
            variations of it show which values carry the batch, and serve the self-check.
        output: Which of several outputs is the embedding, by index or key. None: the first floating tensor [N, d]
            with d = 2 columns or more.
        recalibration: What `find_recalibration` gave for this model and pruning. It moves every channel of the
            pruned branch to the mean and the spread of the dense one.
        norms: Layers, by the model's names of the modules, whose outputs' norms the graph gives too; `list_layers`
            tells which there are. An output is taken with all that is folded into the layer, such as its activation
            and residual, so it is another one without `fold`. Of several calls of a layer, the first counts.
        fold: Whether to fold batch norm, input normalisation, activations and residuals into the layers. Results
            differ only by rounding.

    Returns:
        A graph module that takes images [N, ...], as the model does and for any N, and gives the pair of embeddings
        [2N, d]: dense rows first, not normalised. With norms, it gives a tuple of the pair and [N, K], float32: for
        each of the K layers the L2 norm of its output in the dense branch (`ops.dense_norm`).

    Raises:
        InputError: The model is in train mode or not float32, or the example or a mask is wrong, or the recalibration
            is of another model or pruning, or norms name a layer that the graph lacks.
        UnsupportedNetworkError: The model has no layer to prune, cannot be traced, mixes the rows of a batch, or
            hides weights.
        RuntimeError: The self-check failed, which is a fault of this package.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
        >>> images = torch.rand(2, 3, 8, 8)
        >>> pair = prefiqs_ext.dualize(model, example=images)(images)
        >>> pair.shape, torch.allclose(pair[:2], model(images), atol=1e-5)
        (torch.Size([4, 288]), True)
    """
    check_model(model, "dualize")
    _check_example(example)
    with torch_defaults(example.device):
        masks = _make_masks(pruning, model)
        traced, values, layers = _capture(model, masks, example, output)
        if recalibration is not None:
            _recalibrate(layers, masks, recalibration)
        if fold:
            fold_into_layers(traced, values, layers)
        pair(traced.graph, values, layers)
        result = _build_graph_module(traced, layers, type(model).__name__)
        verify(result, traced, masks, recalibration, example)
        if norms:
            add_norms(result, norms, example)
    return result


def find_recalibration(
    model: nn.Module,
    pruning: Pruning | Mapping[str, Tensor],
    images: Tensor,
    *,
    output: int | str | None = None,
) -> Recalibration:
    """Find the gains and shifts that hold the channels of the pruned branch to those of the dense branch.

    Args:
        model: As `dualize` takes it, like `pruning` and `output`.
        pruning: Which weights the pruned branch loses.
        images: What the model takes, [N, ...]. The constants match means and deviations over all of them.
        output: Which of several outputs is the embedding.

    Raises:
        InputError, UnsupportedNetworkError: As `dualize`; also a layer that gives NaN or infinity on these images.
    """
    check_model(model, "recalibrate")
    _check_example(images)
    with torch_defaults(images.device):
        traced, _, layers = _capture(model, _make_masks(pruning, model), images, output)
        return find_constants(traced, layers, images)


class _Captured(NamedTuple):
    """A model's graph, what its nodes compute, and its layers by the target of their node."""

    traced: TracedModel
    values: dict[fx.Node, Value]
    layers: dict[str, Layer]


def _capture(model: nn.Module, masks: dict[str, Tensor], example: Tensor, output: int | str | None) -> _Captured:
    traced = trace(model, make_images(example, 2), output)
    refuse_hidden_weights(traced)
    values = observe_values(traced, example)
    _keep_embedding(traced.graph, values, output)
    fix_defaults(traced.graph, values, example.device)
    return _Captured(traced, values, find_layers(traced, values, masks))


def _make_masks(pruning: Pruning | Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    check_pruning(pruning)
    return pruning.make_masks(model) if isinstance(pruning, Pruning) else _check_masks(pruning, model)


def check_model(model: nn.Module, who: str) -> None:
    """Check that a model is in eval mode and has float32 parameters.

    Args:
        model: What the caller was given.
        who: Who asks; the message begins with it.

    Raises:
        InputTypeError: It is no torch module.
        InputError: A part of it is in train mode, or has parameters of another floating dtype.
    """
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"{who}: expected a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if module.training:
            raise InputError(f"{who}: {name or 'the model'!r} is in train mode: call model.eval() first")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise InputError(
                f"{who}: expected float32 parameters, got {parameter.dtype} in {name!r}: call model.float()"
            )


def _recalibrate(layers: dict[str, Layer], masks: dict[str, Tensor], recalibration: Recalibration) -> None:
    """Give each pruned layer its constants."""
    recalibration.check_masks(masks)
    for layer in layers.values():
        if layer.mask is None:
            continue
        layer.recalibration = recalibration.layers.get(layer.name)
        if layer.recalibration is None:
            raise InputError(
                f"expected the recalibration of this network and pruning, got none of {layer.name!r}, which is pruned"
            )


def _check_example(example: Tensor) -> None:
    wanted = "dualize: expected an example [N, ...] of one or more inputs"
    if not isinstance(example, Tensor):
        raise InputTypeError(f"{wanted}, got {type(example).__name__}")
    if example.dim() < 2 or example.shape[0] < 1:
        raise InputError(f"{wanted}, got {list(example.shape)}")
    if not example.is_floating_point() and example.dtype != torch.uint8:
        raise InputError(f"dualize: expected a floating or uint8 example, got {example.dtype}")


def _check_masks(masks: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Check that each of the caller's own masks fits a layer."""
    modules = dict(model.named_modules())
    if not any(isinstance(module, LAYERS) for module in modules.values()):
        raise UnsupportedNetworkError(
            f"dualize: the model has no convolution or linear layer to prune: {type(model).__name__}"
        )
    for name, mask in masks.items():
        layer = modules.get(name)
        if not isinstance(layer, LAYERS):
            raise InputError(f"dualize: expected masks of convolutions and linear layers, got one for {name!r}")
        if mask.dtype != torch.bool or mask.shape != layer.weight.shape:
            raise InputError(
                f"dualize: expected a bool mask {list(layer.weight.shape)} for {name!r}, "
                f"got {mask.dtype} {list(mask.shape)}"
            )
    return dict(masks)


def _keep_embedding(graph: fx.Graph, values: dict[fx.Node, Value], output: int | str | None) -> None:
    """Make the first embedding among the graph's outputs its only one. output: as the caller of dualize chose."""
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
        f"dualize: {describe_no_embedding((_describe_shape(values[tensor]) for tensor in tensors), output)} for N = 1"
    )


def _describe_shape(value: Value) -> str:
    return f"{list(value.shape)}{f' with the batch in dim {value.dim}' if value.batch and value.dim else ''}"


def _build_graph_module(traced: TracedModel, layers: dict[str, Layer], name: str) -> fx.GraphModule:
    """Give the graph modules and tensors of its own, under the names that they have in the caller's model."""
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
            while names[target] in owned:  # a constant that tracing found, and named like a part of the model
                names[target] += "_"
            owned[names[target]] = (
                layers[target].build_module() if target in layers else _copy_target(traced.root, target)
            )
        node.target = names[target]
    return fx.GraphModule(owned, traced.graph, class_name=f"Dual{name}").eval()


def _copy_target(root: nn.Module, target: str) -> object:
    source = reduce(getattr, target.split("."), root)
    if isinstance(source, Tensor):
        return source.detach().clone()
    return freeze(source) if isinstance(source, nn.Module) else copy.deepcopy(source)
