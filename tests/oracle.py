"""What the three operators, and a pair, mean in plain torch: slow, obvious, any floating dtype.

Nothing of prefiqs_ext is imported here. Computation happens in the dtype of ``weight`` (of ``pair`` for the distance):
pass float64 tensors for a float64 expectation. A uint8 ``src`` is read as the numbers 0 to 255.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unpack_mask(packed: Tensor, weight_shape: Sequence[int]) -> Tensor:
    """Packed bits int32 [Co, ceil(K / 32)] -> bool mask of ``weight_shape``, True = keep.

    Row o holds the K = kh * kw * C/g bits of filter o. Bit k = (r * kw + s) * (C/g) + c belongs to weight[o, c, r, s]
    and is bit k % 32, least significant first, of word k // 32. A linear weight [Co, K] has bit k at input k.
    """
    filters, channels, *kernel = weight_shape
    kh, kw = (1, 1, *kernel)[-2:]
    k = torch.arange(kh * kw * channels, device=packed.device)
    bits = (packed[:, k // 32] >> (k % 32)) & 1
    return (bits == 1).view(filters, kh, kw, channels).permute(0, 3, 1, 2).reshape(tuple(weight_shape))


def branch_weights(weight: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The weight of every branch: [dense] without a mask, else [dense, pruned]."""
    return [weight] if mask is None else [weight, torch.where(unpack_mask(mask, weight.shape), weight, 0)]


def branch_sources(src: Tensor, mask: Tensor | None, paired: bool) -> list[Tensor]:
    """The rows every branch reads: all of them without a mask, else its half of a pair, else the same rows twice."""
    if mask is None:
        return [src]
    return list(src.chunk(2)) if paired else [src, src]


def expected_dual_conv2d(
    src: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    pruned_scale: Tensor | None = None,
    bias: Tensor | None = None,
    tap_shift: Tensor | None = None,
    slope: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    paired: bool = False,
) -> Tensor:
    """act(scale * conv(src) + bias + sum over the taps inside the image of tap_shift + residual), dense rows first.

    src [N, C, H, W], or [2N, C, H, W] if paired; weight [Co, C/g, kh, kw]; mask packed int32 or None; pruned_scale [Co]
    or None: the scale of the pruned branch, that of the dense one is 1; bias [Co] or [2, Co]; tap_shift [2, Co, kh, kw]
    with a mask, [1, Co, kh, kw] without; slope [1] or [Co]; residual with as many rows as the result, or with half as
    many (shared by both branches). Result [rows, Co, Ho, Wo]: 2N rows with a mask, else src's.
    """
    dtype = weight.dtype
    window = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    src = src.to(dtype)
    sources, weights = branch_sources(src, mask, paired), branch_weights(weight, mask)
    branches = []
    for branch, (rows, branch_weight) in enumerate(zip(sources, weights, strict=True)):
        out = F.conv2d(rows, branch_weight, groups=groups, **window)
        if pruned_scale is not None and branch == 1:
            out = pruned_scale.to(dtype).view(-1, 1, 1) * out
        if tap_shift is not None:
            # An image of ones is 1 at the taps inside the image and 0 in the padding: convolving it adds up just those.
            inside = torch.ones(1, 1, *src.shape[2:], dtype=dtype, device=src.device)
            out = out + F.conv2d(inside, tap_shift[branch].to(dtype).unsqueeze(1), **window)
        if bias is not None:
            out = out + (bias if bias.dim() == 1 else bias[branch]).to(dtype).view(-1, 1, 1)
        branches.append(out)
    dst = torch.cat(branches)
    if residual is not None:
        residual = residual.to(dtype)
        shared = residual.shape[0] != dst.shape[0]
        dst = dst + (torch.cat([residual, residual]) if shared else residual)
    if slope is not None:
        dst = torch.where(dst > 0, dst, slope.to(dtype).view(1, -1, 1, 1) * dst)
    return dst


def expected_dual_linear(
    src: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    pruned_scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    paired: bool = False,
) -> Tensor:
    """scale * (src @ weight.T) + bias on the last dimension, dense rows first.

    src [N, ..., K], or [2N, ..., K] if paired; weight [Co, K]; mask packed int32 or None; pruned_scale and bias as in
    `expected_dual_conv2d`. Result [rows, ..., Co]: 2N rows with a mask, else src's.
    """
    sources, weights = branch_sources(src.to(weight.dtype), mask, paired), branch_weights(weight, mask)
    branches = []
    for branch, (rows, branch_weight) in enumerate(zip(sources, weights, strict=True)):
        out = F.linear(rows, branch_weight)
        if pruned_scale is not None and branch == 1:
            out = pruned_scale.to(weight.dtype) * out
        if bias is not None:
            out = out + (bias if bias.dim() == 1 else bias[branch]).to(weight.dtype)
        branches.append(out)
    return torch.cat(branches)


def expected_embedding_distance(pair: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """pair [2N, d], dense rows first -> (distance [N], embedding [N, d], pruned_embedding [N, d], embedding_norm [N]).

    Both halves are divided by their L2 norm; a zero row stays zero. The distance is the norm of the difference, so a
    zero pruned embedding is at distance 1. embedding_norm is the norm of the dense row before the division.
    """
    dense, pruned = pair.chunk(2)
    embedding, pruned_embedding = unit(dense), unit(pruned)
    distance = torch.linalg.vector_norm(embedding - pruned_embedding, dim=1)
    return distance, embedding, pruned_embedding, torch.linalg.vector_norm(dense, dim=1)


def expected_dense_norm(src: Tensor, paired: bool) -> Tensor:
    """The norms [N] of the rows of src [N, ...], or of the dense rows of a pair [2N, ...]."""
    rows = src.chunk(2)[0] if paired else src
    return torch.linalg.vector_norm(rows.reshape(len(rows), -1), dim=1)


def unit(rows: Tensor) -> Tensor:
    """Rows [N, d] divided by their L2 norms; a zero row stays zero."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(rows), rows / norm)


def expected_pair(
    model: nn.Module, masks: Mapping[str, Tensor], batch: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """[2N, d]: the model's embeddings, then those of a second model whose weights are multiplied by the masks.

    The embedding is the model's output, or the first of several. A uint8 batch stays uint8.
    """
    dense = copy.deepcopy(model).to(dtype)
    pruned = copy.deepcopy(dense)
    for name, mask in masks.items():
        weight = pruned.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.data *= mask
    batch = batch if batch.dtype == torch.uint8 else batch.to(dtype)
    halves = []
    for network in (dense, pruned):
        with torch.no_grad():
            out = network(batch.clone())
        halves.append(out if isinstance(out, Tensor) else out[0])
    return torch.cat(halves)
