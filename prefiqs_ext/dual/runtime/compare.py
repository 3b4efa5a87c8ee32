"""Runs a converted graph on images and compares the embeddings of its two branches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, fx

from prefiqs_ext.dual.runtime.buffers import BufferedGraph
from prefiqs_ext.dual.runtime.cuda_graphs import CudaGraphs
from prefiqs_ext.ops import embedding_distance


def compare_branches(graph: fx.GraphModule | BufferedGraph, batch: Tensor) -> tuple[Tensor, ...]:
    """Run a pair of networks and compare its branches.

    Args:
        graph: What :func:`prefiqs_ext.dual.dualize` gives.
        batch: [N, ...], images as the graph takes them.

    Returns:
        D [N], both embeddings [N, d], the norms of the dense ones [N], and those of K layers [N, K] (K = 0 where the
        graph gives none); all float32.
    """
    result = graph(batch)
    pair, layer_norms = result if isinstance(result, tuple) else (result, None)
    if layer_norms is None:
        layer_norms = pair.new_empty(batch.shape[0], 0, dtype=torch.float32)
    return (*embedding_distance(pair), layer_norms)


def make_comparison(
    graph: fx.GraphModule, example: Tensor, device: torch.device, chunk: int
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Make what gives the bits of `compare_branches` in the fastest way that a device has.

    Args:
        graph: On the device. It is shared, not copied.
        example: [N, ...], one or more inputs, on the CPU.
        device: Where the graph is.
        chunk: How many images most calls will bring.
    """
    if device.type == "cuda":
        return CudaGraphs(partial(compare_branches, graph))
    return partial(compare_branches, BufferedGraph(graph, example, chunk=chunk))
