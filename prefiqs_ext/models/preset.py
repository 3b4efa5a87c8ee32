"""Presets: how to prepare an image for a network. The weights of a network do not tell this."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from prefiqs_ext.exceptions import InputError, InputTypeError
from prefiqs_ext.models.template import Alignment, CropTemplate

if TYPE_CHECKING:  # the command line must list presets without importing torch
    from prefiqs_ext.models.normalize import Normalize

_CHANNELS = 3
_LARGEST = 4096  # pixels of a side of an image


@dataclass(frozen=True)
class Preset:
    """The input that a network was trained on: the size of images, the order of channels, and the scale of levels.

    >>> preset = prefiqs_ext.Preset("mine", (112, 112), "bgr", mean=(127.5, 127.5, 127.5), std=(128.0, 128.0, 128.0))
    >>> preset.normalize()(crops).dtype  # what the network gets
    torch.float32

    The presets of the usual families have names, which every `preset=` takes: "arcface", "magface", "adaface", ...

    Attributes:
        name: The name that messages use.
        size: (height, width) in pixels, each 1 to 4096. An image of another size is refused, never resized.
        colour: The order of the channels that the network takes. You always give RGB images; for "bgr", the channels
            are reordered for you.
        mean: Three finite levels (of 0-255), in the network's channel order.
        std: Three finite numbers above 0, in the same order. A level x becomes ``(x - mean) / std``.
        alignment: Where the face is in an image: as in "insightface" crops or in "dlib" crops. Photos are cut so.

    Raises:
        InputError: A field has a wrong value; the message names it.
    """

    name: str
    size: tuple[int, int]
    colour: Literal["rgb", "bgr"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    alignment: Alignment = "insightface"

    def __post_init__(self) -> None:
        if self.colour not in ("rgb", "bgr"):
            raise InputError(f"preset {self.name!r}: expected colour 'rgb' or 'bgr', got {self.colour!r}")
        if self.alignment not in get_args(Alignment):
            raise InputError(
                f"preset {self.name!r}: expected alignment 'insightface' or 'dlib', got {self.alignment!r}"
            )
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
        """Return the preset of this name. A preset is returned as it is.

        Raises:
            InputError: The name is unknown; the message lists the known names.
            InputTypeError: The argument is neither a preset nor a name.
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
        """Return the same preset for images of another size.

        Args:
            size: (height, width) in pixels, or one number for both.

        Raises:
            InputError: A side is not an integer of 1 to 4096.
        """
        return replace(self, size=(size, size) if isinstance(size, int) else size)

    @property
    def template(self) -> CropTemplate:
        """The size of an image, and where the face is in it."""
        return CropTemplate(self.size, self.alignment)

    def normalize(self) -> Normalize:
        """Return a new module that turns RGB images of levels 0-255 into the network's input."""
        from prefiqs_ext.models.normalize import Normalize

        return Normalize(self.mean, self.std, flip=self.colour == "bgr")


def _make_preset(name: str, colour: Literal["rgb", "bgr"], mean: float, std: float) -> Preset:
    return Preset(name, (112, 112), colour, (mean,) * 3, (std,) * 3)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        # InsightFace's arcface_torch; ElasticFace, GraFIQs and CR-FIQA train on the same input.
        _make_preset("arcface", "rgb", 127.5, 127.5),
        _make_preset("elasticface", "rgb", 127.5, 127.5),
        _make_preset("magface", "bgr", 0.0, 255.0),
        _make_preset("curricularface", "rgb", 127.5, 127.5),
        _make_preset("adaface", "bgr", 127.5, 127.5),
        _make_preset("facexzoo", "bgr", 127.5, 128.0),
        # InsightFace's ONNX files: w600k_r50, w600k_mbf, glintr100.
        _make_preset("insightface", "rgb", 127.5, 127.5),
        # OpenCV Zoo's ONNX file: the graph itself subtracts the mean and scales.
        _make_preset("sface", "rgb", 0.0, 1.0),
        # dlib: the network itself subtracts the mean, which is in its file, and scales.
        Preset("dlib", (150, 150), "rgb", (0.0,) * 3, (1.0,) * 3, "dlib"),
    )
}
"""All known presets by name. They take images of 112 x 112 pixels; only dlib's takes 150 x 150. The numbers come from
the repositories of the checkpoints."""
