"""The self-check that ends every conversion: the graph against the model that it came from."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from .capture import Captured
from .rows import images, leaves

# Largest difference over largest size of an embedding. Rounding is below 1e-5 on IResNet-100; a wrong edge, shift or
# row is above 1e-3.
_TOLERANCE = 1e-4


def self_check(pair: fx.GraphModule, captured: Captured, masks: dict[str, Tensor], example: Tensor) -> None:
    """Runs the graph on one image and on three, made from the example.

    Dense half = the plain model on each image alone; pruned half = the same with masked weights; permuted images
    permute results. Raises RuntimeError naming the largest difference, ValueError where the model gives no numbers.
    """
    x = images(example, 3)
    with torch.no_grad():
        expected = {
            "the dense half and the model": _row_by_row(captured.model, {}, x),
            "the pruned half and the model with masked weights": _row_by_row(captured.model, masks, x),
        }
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
        raise RuntimeError(
            f"dualize: the self-check failed: {what} differ by {largest:.2g} of their size, "
            f"expected at most {_TOLERANCE:g}"
        )


def _row_by_row(model: nn.Module, masks: dict[str, Tensor], x: Tensor) -> Tensor:
    """The embeddings [N, d] of the model under the masks."""
    weights = {}
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weights[f"{name}.weight".removeprefix(".")] = weight * mask.to(weight.device)
    # A copy of each row: the model may work in place.
    outputs = (torch.func.functional_call(model, weights, (row.clone(),), tie_weights=False) for row in x[:, None])
    rows = torch.cat([embedding(output) for output in outputs])
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("dualize: the model gives NaN or infinity on inputs like the example: pass a typical one")
    return rows


def embedding(outputs: object) -> Tensor:
    """The first 2-d floating tensor among a model's outputs."""
    for leaf in leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.dim() == 2 and leaf.is_floating_point():
            return leaf
    raise ValueError("dualize: the model's output holds no embedding, a floating tensor [N, d]")


def _difference(a: Tensor, b: Tensor) -> float:
    size, difference = float(b.abs().max()), float((a - b).abs().nan_to_num(nan=torch.inf).max())
    return difference / size if size > 0 else difference
