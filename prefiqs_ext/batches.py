"""What a batch must be, checked in one place, and what a preset's normalisation is given of it."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from prefiqs_ext.models.preset import Preset

# Floating images come from divisions by 255 and resampling, which overshoot a little.
_OVERSHOOT = 1e-3


def check_batch(batch: Tensor, preset: Preset | None, rank: int | None = None) -> None:
    """Raises TypeError or ValueError unless the batch has type and shape of the preset's images; without a preset,
    float32 or uint8 of `rank` dimensions."""
    if not isinstance(batch, Tensor):
        raise TypeError(f"expected a torch.Tensor, got {type(batch).__name__}")
    if preset is None:
        if batch.dtype not in (torch.float32, torch.uint8):
            raise TypeError(f"expected a float32 or uint8 batch, got {batch.dtype}")
        if rank is not None and batch.dim() != rank:
            raise ValueError(f"expected a batch of {rank} dimensions, got shape {list(batch.shape)}")
        return
    if batch.dtype != torch.uint8 and not batch.is_floating_point():
        raise TypeError(f"expected uint8 images of 0-255 or floating ones of [0, 1], got {batch.dtype}")
    height, width = preset.size
    if batch.dim() != 4 or tuple(batch.shape[1:]) != (3, height, width):
        raise ValueError(
            f"expected images [N, 3, {height}, {width}] (preset {preset.name!r}), got {list(batch.shape)}; "
            "align and crop them to that size first"
        )


def check_values(batch: Tensor, preset: Preset | None, least: float, most: float) -> None:
    """Raises ValueError unless the extremes of a floating batch are finite and, with a preset, in [0, 1]."""
    if not (isfinite(least) and isfinite(most)):
        rows = name_rows(~batch.isfinite().flatten(1).all(dim=1))
        raise ValueError(f"expected finite values, got NaN or infinity in {rows}")
    if preset is not None and (least < -_OVERSHOOT or most > 1 + _OVERSHOOT):
        raise ValueError(
            f"expected floating images in [0, 1], got values from {least:g} to {most:g}; "
            "divide levels of 0-255 by 255, or pass them as uint8"
        )


def check_images(batch: Tensor, preset: Preset | None) -> None:
    """Type, shape and values at once, as the two above; for where nothing waits for a device."""
    check_batch(batch, preset)
    if batch.is_floating_point() and batch.numel():
        check_values(batch, preset, *(float(extreme) for extreme in batch.aminmax()))


def levels(batch: Tensor, preset: Preset | None) -> Tensor:
    """What the normalisation of a preset reads: levels of 0-255. Without a preset the batch itself."""
    if preset is None or batch.dtype == torch.uint8:
        return batch
    return batch.float().clamp(0, 1) * 255


def example_images(preset: Preset) -> Tensor:
    """One seeded image of the preset's size, uint8 [1, 3, H, W]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, *preset.size), dtype=torch.uint8, generator=generator)


def name_rows(chosen: Tensor, most: int = 8) -> str:
    """'rows 3, 7' from a bool tensor [N]."""
    rows = chosen.nonzero().flatten().tolist()
    return f"row{'s' * (len(rows) > 1)} " + ", ".join(map(str, rows[:most])) + (", ..." if len(rows) > most else "")
