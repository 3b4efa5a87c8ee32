"""What a batch must be, checked in one place, and what a preset's normalisation is given of it."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from prefiqs_ext.exceptions import InputError, InputTypeError
from prefiqs_ext.models.preset import Preset

# Floating images come from divisions by 255 and resampling, which overshoot a little.
_OVERSHOOT = 1e-3


def check_batch(batch: Tensor, preset: Preset | None, rank: int | None = None) -> None:
    """Raises TypeError or ValueError unless the batch has type and shape of the preset's images; without a preset,
    float32 or uint8 of `rank` dimensions."""
    if not isinstance(batch, Tensor):
        raise InputTypeError(f"expected a torch.Tensor, got {type(batch).__name__}")
    if preset is None:
        if batch.dtype not in (torch.float32, torch.uint8):
            raise InputTypeError(f"expected a float32 or uint8 batch, got {batch.dtype}")
        if rank is not None and batch.dim() != rank:
            remedy = ": add a first dimension, batch[None]" if batch.dim() == rank - 1 else ""
            raise InputError(f"expected a batch of {rank} dimensions, got shape {list(batch.shape)}{remedy}")
        return
    if batch.dtype != torch.uint8 and not batch.is_floating_point():
        raise InputTypeError(f"expected uint8 images of 0-255 or floating ones of [0, 1], got {batch.dtype}")
    height, width = preset.size
    if batch.dim() != 4 or tuple(batch.shape[1:]) != (3, height, width):
        raise InputError(
            f"expected images [N, 3, {height}, {width}] (preset {preset.name!r}), got {list(batch.shape)}; "
            f"{_layout_remedy(list(batch.shape), height, width)}"
        )


def _layout_remedy(shape: list[int], height: int, width: int) -> str:
    """What to do with a batch of this shape where [N, 3, height, width] is expected."""
    size = [height, width]
    if shape[1:] == [*size, 3]:
        return "channels come second: batch.permute(0, 3, 1, 2)"
    if shape == [3, *size]:
        return "add a first dimension: batch[None]"
    if shape == [*size, 3]:
        return "channels come second, behind a first dimension: batch.permute(2, 0, 1)[None]"
    if shape[1:] == [1, *size]:
        return "repeat the grey channel: batch.expand(-1, 3, -1, -1)"
    if len(shape) == 3 and shape[1:] == size:
        return "repeat the grey channel: batch[:, None].expand(-1, 3, -1, -1)"
    if shape == size:
        return "repeat the grey channel behind a first dimension: batch.expand(1, 3, -1, -1)"
    if shape[1:] == [4, *size]:
        return "leave the fourth channel out: batch[:, :3]"
    return "align and crop them to that size first"


def check_values(batch: Tensor, preset: Preset | None, least: float, most: float) -> None:
    """Raises ValueError unless the extremes of a floating batch are finite and, with a preset, in [0, 1]."""
    if not (isfinite(least) and isfinite(most)):
        rows = name_rows(~batch.isfinite().flatten(1).all(dim=1))
        raise InputError(f"expected finite values, got NaN or infinity in {rows}")
    if preset is not None and (least < -_OVERSHOOT or most > 1 + _OVERSHOOT):
        if least < -_OVERSHOOT:
            remedy = "they look normalised already, which the preset does itself: pass levels of 0-255 as uint8"
        else:
            remedy = "divide levels of 0-255 by 255, or pass them as uint8"
        raise InputError(f"expected floating images in [0, 1], got values from {least:g} to {most:g}; {remedy}")


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
