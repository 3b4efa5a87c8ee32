"""What makes a face hard to recognise, each in a mild and a strong dose."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
"""RGB levels [H, W, 3]."""


class Degradation(NamedTuple):
    """One way to make an image worse. kind: what is done; dose: "mild" or "strong"; label: kind and parameter."""

    kind: str
    dose: str
    label: str
    apply: Callable[[Pixels], Pixels]


def _blur(image: Pixels, sigma: float) -> Pixels:
    # Not Pillow's, whose three box filters are some levels away from a Gaussian.
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)


def _noise(image: Pixels, sigma: float) -> Pixels:
    # The same grain in both doses: they differ in strength alone.
    noise = np.random.default_rng(0).standard_normal(image.shape)
    return (image + sigma * noise).round().clip(0, 255).astype(np.uint8)


def _down_sample(image: Pixels, factor: int) -> Pixels:
    whole = Image.fromarray(image)
    small = whole.reduce(factor)
    return np.asarray(small.resize(whole.size, Image.Resampling.BICUBIC))


def _occlude(image: Pixels, top: float, bottom: float) -> Pixels:
    """Greys out a band over the whole width; top and bottom are fractions of the height."""
    covered, height = image.copy(), image.shape[0]
    covered[round(top * height) : round(bottom * height)] = 127
    return covered


def _darken(image: Pixels, exposure: float) -> Pixels:
    """Scales the light, with the noise that a sensor has however little light it gets (sigma 4 levels)."""
    noise = np.random.default_rng(1).standard_normal(image.shape)
    return (image * exposure + 4 * noise).round().clip(0, 255).astype(np.uint8)


def _jpeg(image: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality)
    with Image.open(file) as decoded:
        return np.asarray(decoded)


DEGRADATIONS: tuple[Degradation, ...] = (
    Degradation("blur", "mild", "blur, sigma 2 px", partial(_blur, sigma=2)),
    Degradation("blur", "strong", "blur, sigma 4 px", partial(_blur, sigma=4)),
    Degradation("noise", "mild", "noise, sigma 30", partial(_noise, sigma=30)),
    Degradation("noise", "strong", "noise, sigma 60", partial(_noise, sigma=60)),
    Degradation("down-sampling", "mild", "down-sampled to 1/4", partial(_down_sample, factor=4)),
    Degradation("down-sampling", "strong", "down-sampled to 1/8", partial(_down_sample, factor=8)),
    Degradation("occlusion", "mild", "mouth covered", partial(_occlude, top=0.72, bottom=1)),
    Degradation("occlusion", "strong", "eyes covered", partial(_occlude, top=0.32, bottom=0.58)),
    Degradation("darkness", "mild", "1/4 of the light", partial(_darken, exposure=1 / 4)),
    Degradation("darkness", "strong", "1/8 of the light", partial(_darken, exposure=1 / 8)),
    Degradation("JPEG", "mild", "JPEG, quality 20", partial(_jpeg, quality=20)),
    Degradation("JPEG", "strong", "JPEG, quality 5", partial(_jpeg, quality=5)),
)
"""Seeded: an image gives the same pixels each time."""
