"""The reliability diagram of a calibrated score as plain numbers. The page draws it as an inline SVG."""

from __future__ import annotations

from typing import NamedTuple

from prefiqs_ext.calibration.scale import Calibration

DIAGRAM_SIDE = 240
"""The side of the diagram in pixels; 0 to 100 points on both axes."""


class Dot(NamedTuple):
    """One tenth of the degraded copies: x and y in pixels, and the hint that a pointer over it shows."""

    x: float
    y: float
    hint: str


class Reliability(NamedTuple):
    """What the page draws and says."""

    dots: list[Dot]
    text: str


def build_reliability(calibration: Calibration) -> Reliability:
    """Build the diagram: expected similarity to the right, found similarity upwards, on faces left out of the fit."""
    dots = [
        Dot(
            round(_clamp(expected) * DIAGRAM_SIDE / 100, 2),
            round((100 - _clamp(found)) * DIAGRAM_SIDE / 100, 2),
            f"expected {expected:.1f}, found {found:.1f}, {count:,} copies",
        )
        for expected, found, count in calibration.reliability
    ]
    return Reliability(dots, calibration.describe())


def _clamp(points: float) -> float:
    return min(max(points, 0.0), 100.0)
