"""The self-check that ends every conversion: the graph against the model that it came from."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from prefiqs_ext.dual.convert.batch_axis import images
from prefiqs_ext.dual.convert.trace import Traced
from prefiqs_ext.exceptions import UnsupportedNetworkError
from prefiqs_ext.models.embedding import select_embedding

# Largest difference over largest size of an embedding. Rounding is below 1e-5 on IResNet-100; a wrong edge, shift or
# row is above 1e-3.
_TOLERANCE = 1e-4


def verify(pair: fx.GraphModule, traced: Traced, masks: dict[str, Tensor], example: Tensor) -> None:
    """Runs the graph on one image and on three, made from the example.

    Dense half = the plain model on each image alone; pruned half = the same with masked weights, which the traced
    model is left with; permuted images permute results. Raises RuntimeError naming the largest difference, ValueError
    where the model gives no numbers, or others after it has written to its buffers.
    """
    x = images(example, 3)
    buffers = {name: buffer.clone() for name, buffer in traced.model.named_buffers()}
    with torch.no_grad():
        expected = {"the dense half and the model": _row_by_row(traced.root, x)}
        _mask(traced.model, masks)
        expected["the pruned half and the model with masked weights"] = _row_by_row(traced.root, x)
        differences: list[tuple[float, str]] = []
        for count in (1, 3):  # the last row is the example's own
            result = pair(x[-count:])
            for (what, rows), half in zip(expected.items(), result.chunk(2), strict=True):
                if half.shape != rows[-count:].shape:
                    raise RuntimeError(f"dualize: N = {count} gave a pair {list(result.shape)}: please report this")
                differences.append((_difference(half, rows[-count:]), f"{what} at N = {count}"))
        order = torch.arange(3).roll(1)
        permuted = torch.cat([half[order] for half in result.chunk(2)])
        differences.append((_difference(pair(x[order]), permuted), "rows and permuted rows"))
    largest, what = max(differences)
    if largest > _TOLERANCE:
        _refuse_writes(traced.model, buffers)
        raise RuntimeError(
            f"dualize: the self-check failed: {what} differ by {largest:.2g} of their size, "
            f"expected at most {_TOLERANCE:g}"
        )


class _Masked(nn.Module):
    """A weight that is masked whenever it is read: all masked at once would be a second network in memory."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def _mask(model: nn.Module, masks: dict[str, Tensor]) -> None:
    for name, mask in masks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        parametrize.register_parametrization(layer, "weight", _Masked(mask.to(layer.weight.device)), unsafe=True)


def _row_by_row(model: nn.Module, x: Tensor) -> Tensor:
    """The embeddings [N, d] of the model."""
    # A copy of each row: the model may work in place.
    outputs = (model(row.clone()) for row in x[:, None])
    rows = torch.cat([select_embedding(output) for output in outputs])
    if not bool(torch.isfinite(rows).all()):
        raise UnsupportedNetworkError(
            "dualize: the model gives NaN or infinity on inputs like the example: pass a typical one"
        )
    return rows


def _refuse_writes(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Raises ValueError for a buffer that is not as it was: a graph holds one state of it for all calls."""
    after = dict(model.named_buffers())
    for name, buffer in before.items():
        if name in after and not torch.equal(after[name], buffer):
            raise UnsupportedNetworkError(
                f"dualize: the forward writes to the buffer {name!r}: a result must not depend on the calls before it"
            )


def _difference(a: Tensor, b: Tensor) -> float:
    size, difference = float(b.abs().max()), float((a - b).abs().nan_to_num(nan=torch.inf).max())
    return difference / size if size > 0 else difference
