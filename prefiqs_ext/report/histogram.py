"""The histogram of quality as plain numbers. The page draws it as an inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 640, 120
"""The size of the drawing in pixels. The labels of the axis lie below it."""

_STEPS = (0.005, 0.01, 0.02, 0.05)
_FEW_BARS, _MOST_BARS = 8, 40
_MOST_TICKS = 8


class Bar(NamedTuple):
    """One bar: x, width and height in pixels, and the hint that a pointer over it shows."""

    x: float
    width: float
    height: float
    hint: str


class Tick(NamedTuple):
    """One label of the axis: x in pixels, and the quality there."""

    x: float
    label: str


class Histogram(NamedTuple):
    """What the page draws."""

    bars: list[Bar]
    ticks: list[Tick]
    highest: int
    """The number of faces in the tallest bar."""


def build_histogram(counts: Sequence[int]) -> Histogram:
    """Build a histogram over the range of qualities that occur.

    Args:
        counts: the number of faces in each of len(counts) equal bins of [0, 1]; at least one of them is not 0.
    """
    fine = len(counts)
    # Few faces in many bars would look like a comb.
    most_bars = min(max(_FEW_BARS, round(2 * math.sqrt(sum(counts)))), _MOST_BARS)
    filled = [index for index, count in enumerate(counts) if count]
    for step in _STEPS:
        per_bar = round(step * fine)
        first, last = filled[0] // per_bar, filled[-1] // per_bar
        if last - first < most_bars:
            break
    totals = [sum(counts[bar * per_bar : (bar + 1) * per_bar]) for bar in range(first, last + 1)]
    width, highest = WIDTH / len(totals), max(totals)
    bars = [
        Bar(
            round(index * width, 2),
            round(width, 2),
            round(total / highest * HEIGHT, 2),
            f"{(first + index) * step:.3f} to {(first + index + 1) * step:.3f}: {total:,}",
        )
        for index, total in enumerate(totals)
    ]
    every = -(-(len(totals) + 1) // _MOST_TICKS)
    edges = range(0, len(totals) + 1, every)
    return Histogram(bars, [Tick(round(edge * width, 2), f"{(first + edge) * step:.3g}") for edge in edges], highest)
