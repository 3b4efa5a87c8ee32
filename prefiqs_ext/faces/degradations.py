"""What makes a face hard to recognise, one operation each: uint8 [H, W, 3] RGB -> the same shape, always a new array.

Nothing is drawn at random but from the seed given: the same arguments give the same pixels. ValueError: a parameter
outside its range.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prefiqs_ext.faces.image import RGB

_GREY = 127
_SENSOR_NOISE = 4


def blur(image: RGB, sigma: float) -> RGB:
    """Gaussian, sigma in pixels, above 0."""
    _check(sigma, "sigma", 1e-9, 1e4)
    # Not Pillow's, whose three box filters are some levels away from a Gaussian.
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)


def noise(image: RGB, sigma: float, seed: int) -> RGB:
    """White Gaussian in each channel, sigma in levels, 0 or more; of one seed, the same grain whatever the sigma."""
    _check(sigma, "sigma", 0, np.inf)
    return _with_noise(image, sigma, seed)


def down_sample(image: RGB, factor: int) -> RGB:
    """Means of factor x factor pixels, 1 or more, brought back to the size by bicubic interpolation."""
    _check(factor, "factor", 1, np.inf)
    whole = Image.fromarray(image)
    width, height = whole.size
    # The last column and row of means may lie partly outside; the box leaves that part out, else faces would shrink.
    inside = (0, 0, width / factor, height / factor)
    return np.array(whole.reduce(factor).resize(whole.size, Image.Resampling.BICUBIC, inside))


def occlude(image: RGB, top: float, bottom: float, left: float = 0, right: float = 1) -> RGB:
    """Greys out a rectangle, by default a band over the whole width; edges are fractions of height and width."""
    for low, high, names in ((top, bottom, "top, bottom"), (left, right, "left, right")):
        if not 0 <= low <= high <= 1:
            raise ValueError(f"expected {names} in ascending order in [0, 1], got {low:g}, {high:g}")
    covered, (height, width, _) = image.copy(), image.shape
    covered[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = _GREY
    return covered


def darken(image: RGB, exposure: float, seed: int) -> RGB:
    """Scales the light, by 0 or more, with the noise that a sensor has however little it gets (sigma 4 levels)."""
    _check(exposure, "exposure", 0, np.inf)
    return _with_noise(image * exposure, _SENSOR_NOISE, seed)


def jpeg(image: RGB, quality: int) -> RGB:
    """Compressed and decoded; quality is libjpeg's, 1 to 95."""
    _check(quality, "quality", 1, 95)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality)
    with Image.open(file) as decoded:
        return np.array(decoded)


def _with_noise(levels: NDArray[Any], sigma: float, seed: int) -> RGB:
    grain = np.random.default_rng(seed).standard_normal(levels.shape)
    return (levels + sigma * grain).round().clip(0, 255).astype(np.uint8)


def _check(value: float, name: str, least: float, most: float) -> None:
    if not least <= value <= most:  # nor is NaN
        raise ValueError(f"expected {name} of {least:g} to {most:g}, got {value:g}")
