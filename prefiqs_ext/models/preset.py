"""Presets: what a checkpoint wants done to an image before its first layer. It cannot be read off the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from prefiqs_ext.exceptions import InputError, InputTypeError

if TYPE_CHECKING:  # the command line lists presets without torch
    from prefiqs_ext.models.normalize import Normalize

_CHANNELS = 3
_LARGEST = 4096  # pixels of a side


@dataclass(frozen=True)
class Preset:
    """What a checkpoint was trained on: the size of its images, their channel order, and how levels are scaled.

    >>> preset = prefiqs_ext.Preset("mine", (112, 112), "bgr", mean=(127.5, 127.5, 127.5), std=(128.0, 128.0, 128.0))
    >>> preset.normalize()(crops).dtype  # what the network gets
    torch.float32

    Presets of the usual families have names, which every `preset=` takes: "arcface", "magface", "adaface", ...

    Attributes:
        name: what messages call it.
        size: (height, width) in pixels. An image of another size is refused, never resized.
        colour: the order of the channels that the network takes. You always give RGB; "bgr" is reordered for you.
        mean: three levels of 0-255, in the network's channel order.
        std: three numbers above 0, likewise. The network gets ``(x - mean) / std`` of levels x of 0-255.

    Raises:
        InputError: a field that cannot be, by name.
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

    @classmethod
    def resolve(cls, preset: Preset | str) -> Preset:
        """Returns a preset itself, or the one of this name; the one place where "a preset or its name" is resolved.

        Raises:
            InputError: an unknown name; the message lists the known ones.
            InputTypeError: neither a preset nor a name.
        """
        if isinstance(preset, cls):
            return preset
        if not isinstance(preset, str):
            raise InputTypeError(f"expected a Preset or the name of one, got {type(preset).__name__}")
        try:
            return PRESETS[preset]
        except KeyError:
            raise InputError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}, or a Preset") from None

    def with_size(self, size: int | tuple[int, int]) -> Preset:
        """Returns the same preset for images of another size: (height, width), or one number of pixels for both."""
        return replace(self, size=(size, size) if isinstance(size, int) else size)

    def normalize(self) -> Normalize:
        """Returns a new module that does to images of levels 0-255 what this preset says."""
        from prefiqs_ext.models.normalize import Normalize

        return Normalize(self.mean, self.std, flip=self.colour == "bgr")


def _make_preset(name: str, colour: Literal["rgb", "bgr"], mean: float, std: float, size: int = 112) -> Preset:
    return Preset(name, (size, size), colour, (mean,) * 3, (std,) * 3)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        # insightface arcface_torch; ElasticFace, GraFIQs and CR-FIQA train on the same input
        _make_preset("arcface", "rgb", 127.5, 127.5),
        _make_preset("elasticface", "rgb", 127.5, 127.5),
        _make_preset("magface", "bgr", 0.0, 255.0),
        _make_preset("curricularface", "rgb", 127.5, 127.5),
        _make_preset("adaface", "bgr", 127.5, 127.5),
        _make_preset("facexzoo", "bgr", 127.5, 128.0),
        # insightface's ONNX files: w600k_r50, w600k_mbf, glintr100
        _make_preset("insightface", "rgb", 127.5, 127.5),
        # OpenCV Zoo: the subtraction and the scale are inside the graph
        _make_preset("sface", "rgb", 0.0, 1.0),
        # dlib: the subtraction and the scale come with the weights
        _make_preset("dlib", "rgb", 0.0, 1.0, 150),
    )
}
"""Every known preset by name. All are for 112 x 112 pixels but dlib's 150 x 150. Sources: the checkpoints' own
repositories."""
