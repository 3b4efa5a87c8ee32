"""The native operators as typed functions. Importing this file loads the native libraries.

A *pair* is an ordinary tensor ``[2N, ...]``: N dense rows first, then the same N inputs as the pruned network sees
them. Only convolutions and linear layers treat the two halves differently. The operators are for inference: an input
that requires grad is refused. Each docstring shows the same computation in plain PyTorch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

try:
    from prefiqs_ext import _C as _C  # registers torch.ops.prefiqs_ext.*
except ImportError as error:
    raise ImportError(
        f"prefiqs_ext needs torch >= 2.10 and its own native library; found torch {torch.__version__} ({error}). "
        "Install again beside this torch: pip install --force-reinstall --no-deps prefiqs_ext"
    ) from error

import prefiqs_ext.fake_ops  # noqa: F401  # registers the fake kernels


def _load_cuda() -> str | None:
    """Register the CUDA kernels, or return why they cannot be used. The CPU's kernels work either way."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    library = Path(_C.__file__).with_name("libprefiqs_cuda.so")
    if not library.is_file():
        return f"this build of prefiqs_ext has no CUDA kernels ({_C.cuda_left_out})"
    major, _, _ = _C.built_with_nvcc.partition(".")
    if torch.version.cuda.partition(".")[0] != major:  # whose driver may be too old for the runtime linked in
        return (
            f"the CUDA kernels were built with CUDA {_C.built_with_nvcc}, and torch {torch.__version__} with CUDA "
            f"{torch.version.cuda}; install a torch of CUDA {major}, or build prefiqs_ext beside this one"
        )
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"{library.name} does not load ({error})"
    return None


cuda_missing = _load_cuda()
"""Why the operators cannot take CUDA tensors; None if they can."""


class EmbeddingDistance(NamedTuple):
    """What :func:`embedding_distance` returns; all float32.

    Attributes:
        distance: ``[N]``, in [0, 2]; LOWER is a better image.
        embedding: ``[N, d]``, the dense rows, L2-normalised.
        pruned_embedding: ``[N, d]``, the pruned rows, L2-normalised.
        embedding_norm: ``[N]``, the L2 norms of the dense rows before normalisation.
    """

    distance: Tensor
    embedding: Tensor
    pruned_embedding: Tensor
    embedding_norm: Tensor


def dual_conv2d(
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
    out: Tensor | None = None,
) -> Tensor:
    """Convolve with the dense and the masked weights in one pass over the weights.

    It computes ``act(scale * conv(src) + bias + shift + residual)``. ``shift`` is the sum of ``tap_shift`` over the
    kernel's taps that fall inside the image; ``scale`` is 1 in the dense branch and ``pruned_scale`` in the pruned one.

    Values are multiplied in the dtype of ``weight``: float32 or bfloat16 on the CPU, float16 or bfloat16 on CUDA. Sums
    are float32. On CUDA float32 weights are rounded to float16 in every call, so keep them in float16.

    Args:
        src: ``[N, C, H, W]`` shared by both branches or, with ``paired``, a pair ``[2N, C, H, W]``. float32 or the
            dtype of ``weight``; or uint8 when not paired. channels_last is read in place, any other layout is
            copied first.
        weight: ``[Co, C/groups, kh, kw]`` float32 or bfloat16, on CUDA also float16; unmasked; channels_last is read
            in place.
        mask: int32 ``[Co, ceil(K/32)]`` with ``K = kh*kw*C/groups``, from :func:`prefiqs_ext.pruning_masks.pack_mask`.
            Bit ``k = (r*kw + s)*(C/groups) + c`` of a row, least significant first, is 1 where the pruned branch keeps
            the weight. None: no branch is pruned.
        pruned_scale: float32 ``[Co]``, with a mask: multiplies the pruned branch's sums of products, and nothing else.
            None: 1.
        bias: float32 ``[Co]`` or, with a mask, ``[2, Co]`` (dense, pruned).
        tap_shift: float32 ``[2, Co, kh, kw]`` (dense, pruned), ``[1, Co, kh, kw]`` without a mask.
        slope: float32 ``[1]`` or ``[Co]``: the slopes of a PReLU, 0 for ReLU. None: no activation.
        residual: ``[N, Co, H', W']``, added to both branches, or a pair ``[2N, Co, H', W']``; of the result's dtype.
        stride: Of rows and columns, as in torch's conv2d; padding and dilation likewise.
        padding: Zeros on both sides, of rows and columns. The padded image, like any tensor here, may have at most
            2**48 numbers.
        dilation: Steps between the taps, of rows and columns.
        groups: As in torch's conv2d.
        paired: Whether ``src`` is a pair.
        out: Where to write the result: a channels_last tensor of its shape and dtype, apart from all inputs.

    Returns:
        ``[2N, Co, H', W']``, or as many rows as ``src`` has when ``mask`` is None; channels_last, of ``src``'s dtype
        (of ``weight``'s for a uint8 ``src``). ``out`` if that is given.

    Raises:
        RuntimeError: An argument does not fit; says what was expected and what came.

    Example:
        >>> import torch.nn.functional as F
        >>> from prefiqs_ext import ops, pruning_masks
        >>> src, weight, bias, slope = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4), torch.rand(4)
        >>> keep = torch.rand(weight.shape) > 0.4
        >>> pair = ops.dual_conv2d(src, weight, pruning_masks.pack_mask(keep), bias=bias, slope=slope, padding=(1, 1))
        >>> branches = [F.prelu(F.conv2d(src, w, bias, padding=1), slope) for w in (weight, weight * keep)]
        >>> torch.allclose(pair, torch.cat(branches), atol=1e-4)
        True

        A tap shift is what a shift of the source before zero padding adds:

        >>> tap_shift = torch.randn(1, 4, 3, 3)
        >>> shift = F.conv2d(torch.ones(1, 1, 8, 8), tap_shift[0].unsqueeze(1), padding=1)
        >>> shifted = ops.dual_conv2d(src, weight, tap_shift=tap_shift, padding=(1, 1))
        >>> torch.allclose(shifted, F.conv2d(src, weight, padding=1) + shift, atol=1e-4)
        True
    """
    inputs = (src, weight, mask, pruned_scale, bias, tap_shift, slope, residual)
    settings = (stride, padding, dilation, groups, paired)
    if out is None:
        return torch.ops.prefiqs_ext.dual_conv2d(*inputs, *settings)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*inputs, out)):
        _refuse_grad_now("dual_conv2d")
    torch.ops.prefiqs_ext.dual_conv2d.out(*inputs, *settings, out=out)
    return out


def dual_linear(
    src: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    pruned_scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    paired: bool = False,
) -> Tensor:
    """Compute ``scale * (src @ weight.T) + bias`` with the dense and the masked weights in one pass over the weights.

    ``scale`` is 1 in the dense branch and ``pruned_scale`` in the pruned one.

    Args:
        src: ``[N, ..., I]`` shared by both branches or, with ``paired``, a pair ``[2N, ..., I]``; dtypes, here and of
            ``weight``, as in :func:`dual_conv2d`. A float32 ``src`` gives float32 results from weights of any dtype.
        weight: ``[O, I]``, unmasked.
        mask: int32 ``[O, ceil(I/32)]``, with bit ``i`` of a row as in :func:`dual_conv2d`. None: no branch is pruned.
        pruned_scale: float32 ``[O]``, as in :func:`dual_conv2d`.
        bias: float32 ``[O]`` or, with a mask, ``[2, O]`` (dense, pruned).
        paired: Whether ``src`` is a pair.

    Returns:
        ``[2N, ..., O]``, or as many rows as ``src`` has when ``mask`` is None; of ``src``'s dtype.

    Raises:
        RuntimeError: An argument does not fit; says what was expected and what came.

    Example:
        >>> import torch.nn.functional as F
        >>> from prefiqs_ext import ops, pruning_masks
        >>> src, weight, bias = torch.randn(2, 40), torch.randn(6, 40), torch.randn(6)
        >>> keep = torch.rand(weight.shape) > 0.4
        >>> pair = ops.dual_linear(src, weight, pruning_masks.pack_mask(keep), bias=bias)
        >>> torch.allclose(pair, torch.cat([F.linear(src, w, bias) for w in (weight, weight * keep)]), atol=1e-4)
        True

        With a scale of the pruned branch, and a bias for each:

        >>> scale, biases = torch.rand(6), torch.randn(2, 6)
        >>> pair = ops.dual_linear(src, weight, pruning_masks.pack_mask(keep), scale, biases)
        >>> branches = [F.linear(src, weight) + biases[0], scale * F.linear(src, weight * keep) + biases[1]]
        >>> torch.allclose(pair, torch.cat(branches), atol=1e-4)
        True
    """
    return torch.ops.prefiqs_ext.dual_linear(src, weight, mask, pruned_scale, bias, paired)  # type: ignore[no-any-return]


def embedding_distance(pair: Tensor) -> EmbeddingDistance:
    """L2-normalise both halves of a pair of embeddings and take the norm of their difference (D of PreFIQs).

    A row of norm zero normalises to zeros, so a pruned embedding that vanished gives the distance 1. NaN passes on.

    Args:
        pair: ``[2N, d]``, float32 or bfloat16, on CUDA also float16.

    Returns:
        The distance, both embeddings and the norm; sums are float64, results float32.

    Raises:
        RuntimeError: An argument does not fit; says what was expected and what came.

    Example:
        >>> import torch.nn.functional as F
        >>> from prefiqs_ext import ops
        >>> dense, pruned = torch.randn(2, 3, 16)
        >>> result = ops.embedding_distance(torch.cat([dense, pruned]))
        >>> torch.allclose(result.distance, (F.normalize(dense) - F.normalize(pruned)).norm(dim=1), atol=1e-5)
        True
        >>> torch.allclose(result.embedding_norm, dense.norm(dim=1))
        True
    """
    return EmbeddingDistance(*torch.ops.prefiqs_ext.embedding_distance(pair))


def dense_norm(src: Tensor, *, paired: bool = False) -> Tensor:
    """Take the L2 norm of each row of the dense branch, over all other dimensions; the pruned rows are not read.

    Numbers are read in the order in which they lie in memory, whatever the layout; a tensor with gaps is copied first.
    NaN passes on. On the CPU squares are float32: a number beyond 1.8e19 gives infinity, and numbers below 2e-23 count
    as 0.

    Args:
        src: ``[N, ...]`` shared by both branches or, with ``paired``, a pair ``[2N, ...]``, dense rows first. float32
            or bfloat16, on CUDA also float16.
        paired: Whether ``src`` is a pair.

    Returns:
        ``[N]``, float32.

    Raises:
        RuntimeError: An argument does not fit; says what was expected and what came.

    Example:
        >>> from prefiqs_ext import ops
        >>> dense, pruned = torch.randn(2, 3, 16, 5, 5)
        >>> norm = ops.dense_norm(torch.cat([dense, pruned]), paired=True)
        >>> torch.allclose(norm, dense.flatten(1).norm(dim=1))
        True
    """
    return torch.ops.prefiqs_ext.dense_norm(src, paired)  # type: ignore[no-any-return]


def _refuse_grad_now(op: str) -> NoReturn:
    raise RuntimeError(
        f"prefiqs_ext::{op}: expected inputs that do not require grad (inference only), got one that does; "
        "call under torch.inference_mode() or detach() it"
    )


def _refuse_grad(op: str) -> None:
    """Refuse inputs that require grad: autograd calls `setup_context` for just those, before it computes anything."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        _refuse_grad_now(op)

    torch.library.register_autograd(f"prefiqs_ext::{op}", refuse, setup_context=refuse)


for _op in ("dual_conv2d", "dual_linear", "embedding_distance", "dense_norm"):
    _refuse_grad(_op)


def _refuse_cuda(op: str, why: str) -> None:
    """Refuse CUDA tensors with the reason, where torch's dispatcher would list its backends."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            f"prefiqs_ext::{op.partition('.')[0]}: expected tensors on the CPU, got some on CUDA, but {why}; "
            "move them with .cpu(), or install prefiqs_ext again beside a torch with CUDA (`prefiqs info` tells more)"
        )

    torch.library.impl(f"prefiqs_ext::{op}", "cuda", refuse)


if cuda_missing is not None:
    for _op in ("dual_conv2d", "dual_conv2d.out", "dual_linear", "embedding_distance", "dense_norm"):
        _refuse_cuda(_op, cuda_missing)
