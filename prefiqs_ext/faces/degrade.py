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


def shade(image: RGB, contrast: float, angle: float) -> RGB:
    """Lights the face from one side: 1 + contrast times the light there, 1 - contrast on the other, linear between.

    Args:
        image: uint8 [H, W, 3] RGB.
        contrast: 0 to 1. At 1 one end is black, and the other overexposed.
        angle: Where the light comes from, in radians: 0 is the right, pi / 2 the top.

    Raises:
        InputError: contrast is out of range.
    """
    _check_range(contrast, "contrast", least=0, most=1)
    height, width, _ = image.shape
    y, x = np.linspace(1, -1, height)[:, None], np.linspace(-1, 1, width)
    along = x * np.cos(angle) + y * np.sin(angle)
    return _round_levels(image * (1 + contrast * along / np.abs(along).max())[:, :, None])


def reduce_contrast(image: RGB, share: float) -> RGB:
    """Moves all levels towards the image's mean luma (ITU-R BT.601).

    Args:
        image: uint8 [H, W, 3] RGB.
        share: The share of the contrast that is left, 0 to 1.

    Raises:
        InputError: share is out of range.
    """
    _check_range(share, "share", least=0, most=1)
    mean = float((image @ np.array([0.299, 0.587, 0.114])).mean())
    return _round_levels(mean + share * (image - mean))


def apply_gamma(image: RGB, gamma: float) -> RGB:
    """Raises levels, on a scale of 0 to 1, to a power.

    Args:
        image: uint8 [H, W, 3] RGB.
        gamma: Above 0. Above 1 darkens the middle, below 1 lightens it.

    Raises:
        InputError: gamma is out of range.
    """
    _check_range(gamma, "gamma", least=1e-9, most=1e4)
    return _round_levels(255 * (image / 255) ** gamma)


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
    # contrast between the sides; from anywhere
    "light": Kind(shade, "contrast", (0.4, 0.6, 0.75, 0.9, 1)),
    # pixels of a crop 112 high
    "blur": Kind(blur, "sigma", (0.8, 1.3, 2, 3, 4)),
    "down-sampling": Kind(down_sample, "factor", (2, 3, 4, 5, 7)),
    # fraction of the light
    "darkness": Kind(darken, "exposure", (1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 8)),
    # levels
    "noise": Kind(add_noise, "sigma", (5, 10, 18, 26, 36)),
    # share of the contrast
    "contrast": Kind(reduce_contrast, "share", (0.6, 0.4, 0.25, 0.15, 0.08)),
    # an exponent, or its inverse, which is as likely
    "gamma": Kind(apply_gamma, "gamma", (1.6, 2.3, 3.2, 4.5, 6.5)),
    "JPEG": Kind(compress_jpeg, "quality", (40, 25, 15, 10, 7)),
}
"""The kinds, in the order in which a picture comes about, which is the order in which mixes are applied: what stands
before the face, the light, the lens, the distance, the sensor with little light, its noise, the camera's processing,
the file."""

DEFAULT_KINDS = ("occlusion", "blur", "down-sampling", "darkness", "noise", "JPEG")
"""The kinds of the harder set, unless others are named."""

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


def draw_steps(name: str, seed: int, height: int, kinds: Sequence[str] = DEFAULT_KINDS) -> list[Step]:
    """Draws what is done to an image, from the seed and its name alone: no other image plays a part.

    Blur and down-sampling grow with the crop's height, so that a face suffers the same at every size (factors are
    rounded, to 2 or more). Noise, JPEG's blocks and the noise of darkness are of the same pixels at every size, and so
    they are milder on larger crops.

    Args:
        name: The image's name in its set, such as "ann/1.jpg".
        seed: Another seed gives another set.
        height: The crop's height in pixels.
        kinds: Different keys of KINDS, to draw from.

    Returns:
        The steps, in the order of KINDS; empty if the image stays clean.

    Raises:
        InputError: kinds are none, unknown or named twice.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds or len(set(kinds)) < len(kinds):
        raise InputError(f"expected different kinds of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}")
    names = [kind for kind in KINDS if kind in kinds]
    key = hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest()
    random = np.random.default_rng(int.from_bytes(key, "big"))
    count = min(random.choice(len(SHARES), p=SHARES), len(names))
    places = sorted(random.choice(len(names), count, replace=False))
    return [draw_step(names[place], int(random.integers(1, 7 - count)), random, height) for place in places]


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
    elif kind == "light":
        parameters["angle"] = round(random.uniform(0, 2 * np.pi), 4)
    elif kind == "gamma":
        parameters[name] = strength if random.integers(2) else 1 / strength
    elif kind in ("darkness", "noise"):
        parameters["seed"] = int(random.integers(1 << 32))
    return Step(kind, grade, parameters)


def _add_grain(levels: NDArray[Any], sigma: float, seed: int) -> RGB:
    grain = np.random.default_rng(seed).standard_normal(levels.shape)
    return _round_levels(levels + sigma * grain)


def _round_levels(levels: NDArray[Any]) -> RGB:
    return levels.round().clip(0, 255).astype(np.uint8)


def _check_range(value: float, name: str, *, least: float, most: float) -> None:
    if not least <= value <= most:  # nor is NaN
        raise InputError(f"expected {name} of {least:g} to {most:g}, got {value:g}")
