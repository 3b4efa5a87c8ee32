"""The engine: one network run with two weight sets in one pass.

`dualize` turns a model into a graph that gives the dense and the pruned embedding of every image. `convert/` does that;
`runtime/` makes the graph fast on the CPU and on CUDA.
"""

from __future__ import annotations

from prefiqs_ext.dual.convert.batch_axis import make_images
from prefiqs_ext.dual.convert.dualize import check_model, dualize, find_recalibration
from prefiqs_ext.dual.convert.norms import list_layers
from prefiqs_ext.dual.modules import DualConv1d, DualConv2d, DualLinear, duplicate
from prefiqs_ext.dual.runtime.buffers import BufferedGraph
from prefiqs_ext.dual.runtime.compare import compare_branches, make_comparison
from prefiqs_ext.dual.runtime.cuda_graphs import CudaGraphs, is_out_of_memory
from prefiqs_ext.dual.runtime.half import check_half, convert_to_half

__all__ = [
    "BufferedGraph",
    "CudaGraphs",
    "DualConv1d",
    "DualConv2d",
    "DualLinear",
    "check_half",
    "check_model",
    "compare_branches",
    "convert_to_half",
    "dualize",
    "duplicate",
    "find_recalibration",
    "is_out_of_memory",
    "list_layers",
    "make_comparison",
    "make_images",
]
