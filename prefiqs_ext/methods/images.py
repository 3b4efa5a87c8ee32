"""What every method does with a batch: check it, normalise it, run it in chunks, refuse scores that are not finite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prefiqs_ext.batches import check_batch, name_rows
from prefiqs_ext.models.preset import Preset


def check_uint8(images: Tensor, preset: Preset) -> None:
    """Raises TypeError or ValueError unless these are uint8 images [N, 3, H, W] of the preset's size."""
    check_batch(images, preset)
    if images.dtype != torch.uint8:
        raise TypeError(f"expected uint8 images of 0-255, got {images.dtype}")


def score_chunks(images: Tensor, preset: Preset, chunk: int, score: Callable[[Tensor], Tensor]) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 [N], `score` being given at most `chunk` images at a time.

    TypeError, ValueError: for another batch, or naming the rows whose score is not finite.
    """
    check_uint8(images, preset)
    if not len(images):
        return torch.empty(0)
    scores = torch.cat([score(rows).detach().float() for rows in torch.split(images, chunk)])
    bad = ~scores.isfinite()
    if bool(bad.any()):
        raise ValueError(f"expected finite scores, got NaN or infinity for {name_rows(bad)}; check these images")
    return scores
