"""Twelve ways to make a face hard to recognise: six kinds, each in a mild and in a strong dose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from prefiqs_ext.faces import RGB
from prefiqs_ext.faces.degrade import add_noise, blur, compress_jpeg, darken, down_sample, occlude


class Degradation(NamedTuple):
    """One way to make an image worse.

    Attributes:
        kind: what is done, such as "blur".
        dose: "mild" or "strong".
        label: kind and parameter for people to read.
        apply: makes the worse image of an image.
    """

    kind: str
    dose: str
    label: str
    apply: Callable[[RGB], RGB]


DEGRADATIONS: tuple[Degradation, ...] = (
    Degradation("blur", "mild", "blur, sigma 2 px", partial(blur, sigma=2)),
    Degradation("blur", "strong", "blur, sigma 4 px", partial(blur, sigma=4)),
    Degradation("noise", "mild", "noise, sigma 30", partial(add_noise, sigma=30, seed=0)),
    Degradation("noise", "strong", "noise, sigma 60", partial(add_noise, sigma=60, seed=0)),
    Degradation("down-sampling", "mild", "down-sampled to 1/4", partial(down_sample, factor=4)),
    Degradation("down-sampling", "strong", "down-sampled to 1/8", partial(down_sample, factor=8)),
    Degradation("occlusion", "mild", "mouth covered", partial(occlude, top=0.72, bottom=1)),
    Degradation("occlusion", "strong", "eyes covered", partial(occlude, top=0.32, bottom=0.58)),
    Degradation("darkness", "mild", "1/4 of the light", partial(darken, exposure=1 / 4, seed=1)),
    Degradation("darkness", "strong", "1/8 of the light", partial(darken, exposure=1 / 8, seed=1)),
    Degradation("JPEG", "mild", "JPEG, quality 20", partial(compress_jpeg, quality=20)),
    Degradation("JPEG", "strong", "JPEG, quality 5", partial(compress_jpeg, quality=5)),
)
"""The noise is seeded, so that an image always gives the same pixels."""
