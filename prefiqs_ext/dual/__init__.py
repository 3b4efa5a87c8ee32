"""One network, two weight sets, one pass: `dualize` turns a model into a graph that gives the pair of embeddings."""

from __future__ import annotations

from prefiqs_ext.dual.convert.dualize import check_model, dualize
from prefiqs_ext.dual.modules import DualConv1d, DualConv2d, DualLinear, duplicate
from prefiqs_ext.dual.runtime.buffers import BufferedGraph
from prefiqs_ext.dual.runtime.cuda_graphs import CudaGraphs, out_of_memory
from prefiqs_ext.dual.runtime.half import to_half

__all__ = [
    "BufferedGraph",
    "CudaGraphs",
    "DualConv1d",
    "DualConv2d",
    "DualLinear",
    "check_model",
    "dualize",
    "duplicate",
    "out_of_memory",
    "to_half",
]
