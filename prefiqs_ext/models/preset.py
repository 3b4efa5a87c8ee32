"""Presets: what a checkpoint wants done to an image before its first layer. It cannot be read off the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from prefiqs_ext.exceptions import InputError

_CHANNELS = 3
_LARGEST = 4096  # pixels of a side


class Normalize(nn.Module):
    """Image of levels 0-255 -> network input: (x - mean) / std, channels reordered first where the network wants BGR.

    scale, shift: buffers [3] in the network's channel order; the output is x * scale + shift. flip: RGB becomes BGR.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float], *, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        self.register_buffer("scale", torch.tensor([1 / s for s in std], dtype=torch.float32))
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """uint8 or floating [N, 3, H, W], RGB levels 0-255 -> [N, 3, H, W] of the buffers' dtype (float32)."""
        if self.flip:
            x = x.flip(1)
        return x.to(self.scale.dtype) * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)


@dataclass(frozen=True)
class Preset:
    """The input a checkpoint was trained on.

    size: (height, width) in pixels; images are never resized to it silently. colour: the order of the network's input
    channels. mean, std: levels of 0-255, one per channel in that order: network input = (x - mean) / std.
    ValueError names a field that cannot be.
    """

    name: str
    size: tuple[int, int]
    colour: Literal["rgb", "bgr"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.colour not in ("rgb", "bgr"):
            raise InputError(f"preset {self.name!r}: expected colour 'rgb' or 'bgr', got {self.colour!r}")
        if not isinstance(self.name, str):
            raise InputError(f"expected a preset's name as text, got {self.name!r}")
        if (
            not isinstance(self.size, tuple | list)
            or len(self.size) != 2
            or any(type(side) is not int for side in self.size)
            or not 1 <= min(self.size) <= max(self.size) <= _LARGEST
        ):
            raise InputError(
                f"preset {self.name!r}: expected size (height, width), integers of 1 to {_LARGEST}, got {self.size!r}"
            )
        for field in ("mean", "std"):
            values = getattr(self, field)
            if len(values) != _CHANNELS or not all(math.isfinite(v) for v in values):
                raise InputError(
                    f"preset {self.name!r}: expected {_CHANNELS} finite numbers as {field}, got {values!r}"
                )
        if min(self.std) <= 0:
            raise InputError(f"preset {self.name!r}: expected std above 0, got {self.std!r}")

    @staticmethod
    def named(name: str) -> Preset:
        """The preset of PRESETS under this name; ValueError lists the known names."""
        try:
            return PRESETS[name]
        except KeyError:
            raise InputError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}, or a Preset") from None

    def with_size(self, size: int | tuple[int, int]) -> Preset:
        """The same for images of another size: (height, width), or a number of pixels for both."""
        return replace(self, size=(size, size) if isinstance(size, int) else size)

    def normalize(self) -> Normalize:
        """A new module that does what this preset says."""
        return Normalize(self.mean, self.std, flip=self.colour == "bgr")


def _preset(name: str, colour: Literal["rgb", "bgr"], mean: float, std: float, size: int = 112) -> Preset:
    return Preset(name, (size, size), colour, (mean,) * 3, (std,) * 3)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        # insightface arcface_torch; ElasticFace, GraFIQs and CR-FIQA train on the same input
        _preset("arcface", "rgb", 127.5, 127.5),
        _preset("elasticface", "rgb", 127.5, 127.5),
        _preset("magface", "bgr", 0.0, 255.0),
        _preset("curricularface", "rgb", 127.5, 127.5),
        _preset("adaface", "bgr", 127.5, 127.5),
        _preset("facexzoo", "bgr", 127.5, 128.0),
        # insightface's ONNX files: w600k_r50, w600k_mbf, glintr100
        _preset("insightface", "rgb", 127.5, 127.5),
        # OpenCV Zoo: the subtraction and the scale are inside the graph
        _preset("sface", "rgb", 0.0, 1.0),
        # dlib: the subtraction and the scale come with the weights
        _preset("dlib", "rgb", 0.0, 1.0, 150),
    )
}
"""Every known preset by name, all 112 x 112 but dlib's 150 x 150. Sources: the checkpoints' own repositories."""
