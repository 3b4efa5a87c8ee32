"""What pruning does to a network's scores on given images, and what it costs."""

from __future__ import annotations

from .late import Cost, late_layers
from .variation import Variation, vary

__all__ = ["Cost", "Variation", "late_layers", "vary"]
