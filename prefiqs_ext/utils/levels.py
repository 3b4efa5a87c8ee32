"""What floating levels of images may be."""

from __future__ import annotations

OVERSHOOT = 1e-3
"""How far floating levels may lie outside [0, 1]: they come from division by 255 and resampling, which overshoot."""
