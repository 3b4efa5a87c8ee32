"""One network, two weight sets, one pass: `dualize` turns a model into a graph that gives the pair of embeddings."""

from __future__ import annotations

from .convert import check_model, dualize
from .cuda_graphs import CudaGraphs, out_of_memory
from .half import to_half
from .memory import InPlace
from .modules import DualConv1d, DualConv2d, DualLinear, duplicate

__all__ = [
    "CudaGraphs",
    "DualConv1d",
    "DualConv2d",
    "DualLinear",
    "InPlace",
    "check_model",
    "dualize",
    "duplicate",
    "out_of_memory",
    "to_half",
]
