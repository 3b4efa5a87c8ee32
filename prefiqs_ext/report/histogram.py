"""The histogram of scores as plain numbers. The page draws it as an inline SVG."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import NamedTuple

from prefiqs_ext.report.distribution import Distribution

WIDTH, HEIGHT = 640, 120
"""The size of the drawing in pixels. The labels of the axis lie below it."""

_FEW_BARS, _MOST_BARS = 8, 40
_MOST_TICKS = 8


class Bar(NamedTuple):
    """One bar: x, width and height in pixels, and the hint that a pointer over it shows."""

    x: float
    width: float
    height: float
    hint: str


class Tick(NamedTuple):
    """One label of the axis: x in pixels, and the score there."""

    x: float
    label: str


class Histogram(NamedTuple):
    """What the page draws."""

    bars: list[Bar]
    ticks: list[Tick]
    highest: int
    """The number of faces in the tallest bar."""


def build_histogram(scores: Distribution) -> Histogram:
    """Build a histogram over the range of scores that occur; there must be one at least."""
    # Few faces in many bars would look like a comb.
    most_bars = min(max(_FEW_BARS, round(2 * math.sqrt(scores.counts.total()))), _MOST_BARS)
    for per_bar in (digit * 10**power for power in itertools.count() for digit in (5, 10, 20)):
        first, last = min(scores.counts) // per_bar, max(scores.counts) // per_bar
        if last - first < most_bars:
            break
    totals: Counter[int] = Counter()
    for index, count in scores.counts.items():
        totals[index // per_bar - first] += count
    number = last - first + 1
    width, highest, step = WIDTH / number, max(totals.values()), per_bar / scores.per_unit
    bars = [
        Bar(
            round(index * width, 2),
            round(width, 2),
            round(totals[index] / highest * HEIGHT, 2),
            f"{(first + index) * step:.6g} to {(first + index + 1) * step:.6g}: {totals[index]:,}",
        )
        for index in range(number)
    ]
    edges = range(0, number + 1, -(-(number + 1) // _MOST_TICKS))
    return Histogram(bars, [Tick(round(edge * width, 2), f"{(first + edge) * step:.6g}") for edge in edges], highest)
