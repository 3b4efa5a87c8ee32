"""The self-check at the end of every conversion: the graph must give what the model gives."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from prefiqs_ext.dual.convert.batch_axis import make_images
from prefiqs_ext.dual.convert.trace import TracedModel
from prefiqs_ext.exceptions import UnsupportedNetworkError
from prefiqs_ext.models.embedding import select_embedding
from prefiqs_ext.recalibration import ChannelScale, RecalibratedLayers, Recalibration

# Largest difference divided by the largest number of an embedding. Rounding is below 1e-5 on IResNet-100; a wrong
# border, shift or row is above 1e-3.
_TOLERANCE = 1e-4


def verify(
    pair: fx.GraphModule,
    traced: TracedModel,
    masks: dict[str, Tensor],
    recalibration: Recalibration | None,
    example: Tensor,
) -> None:
    """Run the graph on one image and on three, and compare it with the model on each image alone.

    The dense half must be what the model gives, the pruned half what it gives with masked weights and recalibrated
    layers, and permuted images must give permuted results.

    Args:
        pair: The converted graph.
        traced: The model that it came from. Its weights stay masked.
        masks: From the name of a module to the bool mask of its weight.
        recalibration: The gains and shifts of the pruned layers, if they have any.
        example: One or more inputs; the images are made from its first row.

    Raises:
        UnsupportedNetworkError: The model gives NaN or infinity, or writes to its buffers.
        RuntimeError: The graph is wrong, which is a fault of this package. Names the largest difference.
    """
    x = make_images(example, 3)
    buffers = {name: buffer.clone() for name, buffer in traced.model.named_buffers()}
    with torch.no_grad():
        expected = {"the dense half and the model": _run_row_by_row(traced.root, x)}
        recalibrated = RecalibratedLayers()
        _apply_masks(traced.model, masks, recalibration, recalibrated)
        with recalibrated:
            expected["the pruned half and the model with masked weights"] = _run_row_by_row(traced.root, x)
        differences: list[tuple[float, str]] = []
        for count in (1, 3):  # the last row is the example's own
            result = pair(x[-count:])
            for (what, rows), half in zip(expected.items(), result.chunk(2), strict=True):
                if half.shape != rows[-count:].shape:
                    raise RuntimeError(f"dualize: N = {count} gave a pair {list(result.shape)}: please report this")
                differences.append((_measure_difference(half, rows[-count:]), f"{what} at N = {count}"))
        order = torch.arange(3).roll(1)
        permuted = torch.cat([half[order] for half in result.chunk(2)])
        differences.append((_measure_difference(pair(x[order]), permuted), "rows and permuted rows"))
    largest, what = max(differences)
    if largest > _TOLERANCE:
        _refuse_writes(traced.model, buffers)
        raise RuntimeError(
            f"dualize: the self-check failed: {what} differ by {largest:.2g} of their size, "
            f"expected at most {_TOLERANCE:g}: please report this"
        )


class _MaskedWeight(nn.Module):
    """A weight that is masked whenever it is read; masking all at once would need memory for a second network."""

    mask: Tensor

    def __init__(self, mask: Tensor, scale: ChannelScale | None, recalibrated: RecalibratedLayers) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.scale, self.recalibrated = scale, recalibrated

    def forward(self, weight: Tensor) -> Tensor:
        masked = weight * self.mask
        if self.scale is not None:
            self.recalibrated.add(masked, self.scale)
        return masked


def _apply_masks(
    model: nn.Module,
    masks: dict[str, Tensor],
    recalibration: Recalibration | None,
    recalibrated: RecalibratedLayers,
) -> None:
    scales = {} if recalibration is None else recalibration.layers
    for name, mask in masks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        masked = _MaskedWeight(mask.to(layer.weight.device), scales.get(name), recalibrated)
        parametrize.register_parametrization(layer, "weight", masked, unsafe=True)


def _run_row_by_row(model: nn.Module, x: Tensor) -> Tensor:
    """Compute the model's embeddings [N, d], one image at a time."""
    # Each row is copied, because the model may write to its input.
    outputs = (model(row.clone()) for row in x[:, None])
    rows = torch.cat([select_embedding(output) for output in outputs])
    if not bool(torch.isfinite(rows).all()):
        raise UnsupportedNetworkError(
            "dualize: the model gives NaN or infinity on inputs like the example: pass a typical one"
        )
    return rows


def _refuse_writes(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Refuse a model whose buffers have changed: a graph holds one state of a buffer for all calls."""
    after = dict(model.named_buffers())
    for name, buffer in before.items():
        if name in after and not torch.equal(after[name], buffer):
            raise UnsupportedNetworkError(
                f"dualize: the forward writes to the buffer {name!r}: a result must not depend on the calls before it"
            )


def _measure_difference(a: Tensor, b: Tensor) -> float:
    size, difference = float(b.abs().max()), float((a - b).abs().nan_to_num(nan=torch.inf).max())
    return difference / size if size > 0 else difference
