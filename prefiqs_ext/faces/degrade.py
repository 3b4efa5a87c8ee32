"""Makes faces harder to recognise: single operations, and the random steps from which a harder set is made.

    steps = draw_steps("ann/1.jpg", seed=0, height=112)  # drawn from the seed and the name alone
    worse = degrade(image, steps)

The operations come first, then the table of KINDS that a draw chooses from, then `degrade` and the draws. An operation
takes uint8 [H, W, 3] RGB and gives a new array of the same shape. The same arguments always give the same pixels.
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
    """Blurs with a Gaussian.

    Args:
        image: uint8 [H, W, 3] RGB.
        sigma: Standard deviation in pixels, above 0.

    Raises:
        InputError: sigma is out of range.
    """
    _check_range(sigma, "sigma", least=1e-9, most=1e4)
    # Not Pillow's, whose three box filters are some levels away from a Gaussian.
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)


def add_noise(image: RGB, sigma: float, seed: int) -> RGB:
    """Adds white Gaussian noise to each channel.

    Args:
        image: uint8 [H, W, 3] RGB.
        sigma: Standard deviation in levels, 0 or more.
        seed: Decides the grain, which is the same for every sigma.

    Raises:
        InputError: sigma is out of range.
    """
    _check_range(sigma, "sigma", least=0, most=np.inf)
    return _add_grain(image, sigma, seed)


def down_sample(image: RGB, factor: int) -> RGB:
    """Takes means of factor x factor pixels and brings them back to the size by bicubic interpolation.

    Args:
        image: uint8 [H, W, 3] RGB.
        factor: 1 or more.

    Raises:
        InputError: factor is out of range.
    """
    _check_range(factor, "factor", least=1, most=np.inf)
    whole = Image.fromarray(image)
    width, height = whole.size
    # The last column and row of means may lie partly outside; the box leaves that part out, else faces would shrink.
    inside = (0, 0, width / factor, height / factor)
    return np.array(whole.reduce(factor).resize(whole.size, Image.Resampling.BICUBIC, inside))


def occlude(image: RGB, top: float, bottom: float, left: float = 0, right: float = 1) -> RGB:
    """Covers a rectangle with grey; by default a band over the whole width.

    Args:
        image: uint8 [H, W, 3] RGB.
        top: Upper edge, a fraction of the height.
        bottom: Lower edge, a fraction of the height.
        left: Left edge, a fraction of the width.
        right: Right edge, a fraction of the width.

    Raises:
        InputError: Edges are outside [0, 1] or not in ascending order.
    """
    for low, high, names in ((top, bottom, "top, bottom"), (left, right, "left, right")):
        if not 0 <= low <= high <= 1:
            raise InputError(f"expected {names} in ascending order in [0, 1], got {low:g}, {high:g}")
    covered, (height, width, _) = image.copy(), image.shape
    covered[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = _GREY
    return covered


def darken(image: RGB, exposure: float, seed: int) -> RGB:
    """Scales the light, and adds the noise (sigma 4 levels) that a sensor has however little light it gets.

    Args:
        image: uint8 [H, W, 3] RGB.
        exposure: The fraction of the light that is left, 0 or more.
        seed: Decides the grain of the noise.

    Raises:
        InputError: exposure is out of range.
    """
    _check_range(exposure, "exposure", least=0, most=np.inf)
    return _add_grain(image * exposure, _SENSOR_NOISE, seed)


def compress_jpeg(image: RGB, quality: int) -> RGB:
    """Compresses to JPEG and decodes again.

    Args:
        image: uint8 [H, W, 3] RGB.
        quality: libjpeg's quality, 1 to 95.

    Raises:
        InputError: quality is out of range.
    """
    _check_range(quality, "quality", least=1, most=95)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality)
    with Image.open(file) as decoded:
        return np.array(decoded)


class Kind(NamedTuple):
    """One kind of degradation."""

    apply: Callable[..., RGB]
    """The operation."""
    parameter: str
    """The name of the argument that says how strong it is."""
    grades: tuple[float, ...]
    """Its values for the grades 1 to 5, from barely visible to severe."""


KINDS: dict[str, Kind] = {
    # side of a grey rectangle, a fraction of the crop's; anywhere in the crop
    "occlusion": Kind(occlude, "side", (0.15, 0.25, 0.35, 0.45, 0.55)),
    # pixels of a crop 112 high
    "blur": Kind(blur, "sigma", (0.8, 1.3, 2, 3, 4)),
    "down-sampling": Kind(down_sample, "factor", (2, 3, 4, 5, 7)),
    # fraction of the light
    "darkness": Kind(darken, "exposure", (1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 8)),
    # levels
    "noise": Kind(add_noise, "sigma", (5, 10, 18, 26, 36)),
    "JPEG": Kind(compress_jpeg, "quality", (40, 25, 15, 10, 7)),
}
"""The kinds, in the order in which a picture comes about, which is the order in which mixes are applied: what stands
before the face, the lens, the distance, the sensor with little light, its noise, the file."""

SHARES = (1 / 8, 1 / 2, 1 / 4, 1 / 8)
"""Shares of the images that get no, one, two and three kinds.

Kinds are drawn evenly, and so are grades: 1 to 5 for a single kind, 1 to 4 for each of two, 1 to 3 for each of three,
because they add up. Clean LFW becomes a set on which SFace rejects about a quarter of the mated pairs at FMR 1e-3;
the grades were chosen by that alone."""

_HEIGHT = 112


class Step(NamedTuple):
    """One degradation of one image."""

    kind: str
    """A key of KINDS."""
    grade: int
    """1 to 5; HIGHER is stronger."""
    parameters: dict[str, float]
    """The arguments of the kind's operation besides the image."""


def degrade(image: RGB, steps: Sequence[Step]) -> RGB:
    """Applies steps to an image, one after another.

    Args:
        image: uint8 [H, W, 3] RGB.
        steps: What to do, as `draw_steps` gives it. Without steps the image comes back as it is.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    for kind, _, parameters in steps:
        image = KINDS[kind].apply(image, **parameters)
    return image


def draw_steps(name: str, seed: int, height: int) -> list[Step]:
    """Draws what is done to an image, from the seed and its name alone: no other image plays a part.

    Blur and down-sampling grow with the crop's height, so that a face suffers the same at every size (factors are
    rounded, to 2 or more). Noise, JPEG's blocks and the noise of darkness are of the same pixels at every size, and so
    they are milder on larger crops.

    Args:
        name: The image's name in its set, such as "ann/1.jpg".
        seed: Another seed gives another set.
        height: The crop's height in pixels.

    Returns:
        The steps, in the order of KINDS; empty if the image stays clean.
    """
    key = hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest()
    random = np.random.default_rng(int.from_bytes(key, "big"))
    count = random.choice(len(SHARES), p=SHARES)
    kinds = sorted(random.choice(len(KINDS), count, replace=False))
    names = list(KINDS)
    return [draw_step(names[kind], int(random.integers(1, 7 - count)), random, height) for kind in kinds]


def draw_step(kind: str, grade: int, random: np.random.Generator, height: int = _HEIGHT) -> Step:
    """Makes a step of a given kind and grade; its place or its grain is drawn.

    Args:
        kind: A key of KINDS.
        grade: 1 to 5; HIGHER is stronger.
        random: Draws the place of an occlusion, or the seed of a noise.
        height: The crop's height in pixels.
    """
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


def _add_grain(levels: NDArray[Any], sigma: float, seed: int) -> RGB:
    grain = np.random.default_rng(seed).standard_normal(levels.shape)
    return (levels + sigma * grain).round().clip(0, 255).astype(np.uint8)


def _check_range(value: float, name: str, *, least: float, most: float) -> None:
    if not least <= value <= most:  # nor is NaN
        raise InputError(f"expected {name} of {least:g} to {most:g}, got {value:g}")
