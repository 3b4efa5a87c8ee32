"""One network, two weight sets, one pass: `dualize` turns a model into a graph that gives the pair of embeddings."""

from __future__ import annotations

from .convert import dualize
from .memory import InPlace
from .modules import DualConv1d, DualConv2d, DualLinear, duplicate

__all__ = ["DualConv1d", "DualConv2d", "DualLinear", "InPlace", "dualize", "duplicate"]
