"""What makes a face hard to recognise: one operation each, and the harder set that is drawn from them.

An operation takes uint8 [H, W, 3] RGB and gives the same shape, always a new array. Nothing is drawn at random but from
the seed given: the same arguments give the same pixels. ValueError: a parameter outside its range. The set's
degradations are drawn for each image from a seed and the image's name alone.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.faces.image import RGB

_GREY = 127
_SENSOR_NOISE = 4


def blur(image: RGB, sigma: float) -> RGB:
    """Gaussian, sigma in pixels, above 0."""
    _check_range(sigma, "sigma", 1e-9, 1e4)
    # Not Pillow's, whose three box filters are some levels away from a Gaussian.
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)


def noise(image: RGB, sigma: float, seed: int) -> RGB:
    """White Gaussian in each channel, sigma in levels, 0 or more; of one seed, the same grain whatever the sigma."""
    _check_range(sigma, "sigma", 0, np.inf)
    return _with_noise(image, sigma, seed)


def down_sample(image: RGB, factor: int) -> RGB:
    """Means of factor x factor pixels, 1 or more, brought back to the size by bicubic interpolation."""
    _check_range(factor, "factor", 1, np.inf)
    whole = Image.fromarray(image)
    width, height = whole.size
    # The last column and row of means may lie partly outside; the box leaves that part out, else faces would shrink.
    inside = (0, 0, width / factor, height / factor)
    return np.array(whole.reduce(factor).resize(whole.size, Image.Resampling.BICUBIC, inside))


def occlude(image: RGB, top: float, bottom: float, left: float = 0, right: float = 1) -> RGB:
    """Greys out a rectangle, by default a band over the whole width; edges are fractions of height and width."""
    for low, high, names in ((top, bottom, "top, bottom"), (left, right, "left, right")):
        if not 0 <= low <= high <= 1:
            raise InputError(f"expected {names} in ascending order in [0, 1], got {low:g}, {high:g}")
    covered, (height, width, _) = image.copy(), image.shape
    covered[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = _GREY
    return covered


def darken(image: RGB, exposure: float, seed: int) -> RGB:
    """Scales the light, by 0 or more, with the noise that a sensor has however little it gets (sigma 4 levels)."""
    _check_range(exposure, "exposure", 0, np.inf)
    return _with_noise(image * exposure, _SENSOR_NOISE, seed)


def jpeg(image: RGB, quality: int) -> RGB:
    """Compressed and decoded; quality is libjpeg's, 1 to 95."""
    _check_range(quality, "quality", 1, 95)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality)
    with Image.open(file) as decoded:
        return np.array(decoded)


def _with_noise(levels: NDArray[Any], sigma: float, seed: int) -> RGB:
    grain = np.random.default_rng(seed).standard_normal(levels.shape)
    return (levels + sigma * grain).round().clip(0, 255).astype(np.uint8)


def _check_range(value: float, name: str, least: float, most: float) -> None:
    if not least <= value <= most:  # nor is NaN
        raise InputError(f"expected {name} of {least:g} to {most:g}, got {value:g}")


class _Kind(NamedTuple):
    apply: Callable[..., RGB]
    parameter: str
    grades: tuple[float, ...]
    """From barely visible to severe."""


KINDS: dict[str, _Kind] = {
    # side of a grey rectangle, a fraction of the crop's; anywhere in the crop
    "occlusion": _Kind(occlude, "side", (0.15, 0.25, 0.35, 0.45, 0.55)),
    # pixels of a crop 112 high
    "blur": _Kind(blur, "sigma", (0.8, 1.3, 2, 3, 4)),
    "down-sampling": _Kind(down_sample, "factor", (2, 3, 4, 5, 7)),
    # fraction of the light
    "darkness": _Kind(darken, "exposure", (1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 8)),
    # levels
    "noise": _Kind(noise, "sigma", (5, 10, 18, 26, 36)),
    "JPEG": _Kind(jpeg, "quality", (40, 25, 15, 10, 7)),
}
"""In the order of a picture's making, in which mixes are applied: what stands before the face, the lens, the distance,
the sensor with little light, its noise, the file."""

SHARES = (1 / 8, 1 / 2, 1 / 4, 1 / 8)
"""Of images with no, one, two and three kinds. Kinds are drawn evenly, and so are grades: of one kind 1 to 5, of two 1
to 4, of three 1 to 3, for they add up. Of clean LFW this makes a set on which SFace rejects about a quarter of
mated pairs at FMR 1e-3; that alone is what grades were chosen by."""

_HEIGHT = 112


class Step(NamedTuple):
    """One degradation of one image."""

    kind: str
    """A key of KINDS."""
    grade: int
    """1 to 5, rising strength."""
    parameters: dict[str, float]
    """What the function in faces.degradations gets beside the image."""


def draw_steps(name: str, seed: int, height: int) -> list[Step]:
    """What is done to the image of this name, in order; empty: it stays clean.

    No other image has a part in it. Blur and down-sampling grow with the crop's height, so that a face suffers the same
    at every size (factors are rounded, to 2 or more). Noise, JPEG's blocks and darkness's noise are by pixels, as they
    come, and so milder on larger crops.
    """
    key = hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest()
    random = np.random.default_rng(int.from_bytes(key, "big"))
    count = random.choice(len(SHARES), p=SHARES)
    kinds = sorted(random.choice(len(KINDS), count, replace=False))
    names = list(KINDS)
    return [step(names[kind], int(random.integers(1, 7 - count)), random, height) for kind in kinds]


def step(kind: str, grade: int, random: np.random.Generator, height: int = _HEIGHT) -> Step:
    """A degradation of this grade; its place or grain is drawn."""
    name, strength = KINDS[kind].parameter, KINDS[kind].grades[grade - 1]
    parameters = {name: strength}
    if kind == "occlusion":
        top, left = random.uniform(0, 1 - strength, 2).tolist()
        edges = {"top": top, "bottom": top + strength, "left": left, "right": left + strength}
        parameters = {edge: round(place, 4) for edge, place in edges.items()}
    elif kind == "blur":
        parameters[name] = strength * height / _HEIGHT
    elif kind == "down-sampling":
        parameters[name] = max(2, round(strength * height / _HEIGHT))
    elif kind in ("darkness", "noise"):
        parameters["seed"] = int(random.integers(1 << 32))
    return Step(kind, grade, parameters)


def degrade(image: RGB, steps: Sequence[Step]) -> RGB:
    """The image (uint8 [H, W, 3]) after these steps."""
    for kind, _, parameters in steps:
        image = KINDS[kind].apply(image, **parameters)
    return image
