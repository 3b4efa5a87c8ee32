"""The native operators, typed; and their fake kernels, which give shapes and errors without computing.

A *pair* is an ordinary tensor ``[2N, ...]``: N dense rows first, then the same N inputs seen by the pruned network.
Only convolutions and linear layers treat the halves apart. Inference only: an input that requires grad is an error.
"""

from __future__ import annotations

import ctypes
import math
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


def _load_cuda() -> str | None:
    """Register the CUDA kernels; or tell why they cannot be used. The CPU's work either way."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    library = Path(_C.__file__).with_name("libprefiqs_cuda.so")
    if not library.is_file():
        return f"this build of prefiqs_ext has no CUDA kernels ({_C.cuda_left_out})"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"{library.name} does not load ({error})"
    return None


cuda_missing = _load_cuda()
"""Why CUDA tensors cannot be computed with, None where they can."""


class EmbeddingDistance(NamedTuple):
    """What :func:`embedding_distance` returns; all float32."""

    distance: Tensor
    embedding: Tensor
    pruned_embedding: Tensor
    embedding_norm: Tensor


def dual_conv2d(
    src: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
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

    ``dst = act(conv(src) + bias + shift + residual)``, where ``shift`` is the sum of ``tap_shift`` over the kernel's
    taps that fall inside the image.

    On the CPU everything is float32. On CUDA products are of float16 or bfloat16, whichever ``weight`` is, and sums of
    float32; float32 weights are rounded to float16 in every call, so keep them in float16.

    Args:
        src: ``[N, C, H, W]`` shared by both branches or, with ``paired``, a pair ``[2N, C, H, W]``. float32, on CUDA
            also the dtype of ``weight``; or uint8 when not paired. channels_last is read in place, any other layout is
            copied first.
        weight: ``[Co, C/groups, kh, kw]`` float32, on CUDA also float16 or bfloat16; unmasked; channels_last is read in
            place.
        mask: int32 ``[Co, ceil(K/32)]`` with ``K = kh*kw*C/groups``: bit ``k = (r*kw + s)*(C/groups) + c`` of a row,
            least significant first, is 1 where the pruned branch keeps the weight. None: no branch is pruned.
        bias: float32 ``[Co]``.
        tap_shift: float32 ``[2, Co, kh, kw]`` (dense, pruned), ``[1, Co, kh, kw]`` without a mask.
        slope: float32 ``[1]`` or ``[Co]``: PReLU slopes, 0 for ReLU. None: no activation.
        residual: ``[N, Co, H', W']``, added to both branches, or a pair ``[2N, Co, H', W']``; of the result's dtype.
        stride, padding, dilation: two numbers each, of rows and columns, as in torch's conv2d. The padded image, like
            any tensor here, has at most 2**48 numbers.
        groups: as in torch's conv2d.
        paired: whether ``src`` is a pair.
        out: where to write the result: of its shape and dtype, channels_last, apart from all inputs.

    Returns:
        channels_last, of ``src``'s dtype (of ``weight``'s for a uint8 ``src``): as many rows as ``src`` when ``mask``
        is None, else ``2N``. ``out`` if that is given.

    Raises:
        RuntimeError: naming what was expected and what came.
    """
    inputs = (src, weight, mask, bias, tap_shift, slope, residual)
    settings = (stride, padding, dilation, groups, paired)
    if out is None:
        return torch.ops.prefiqs_ext.dual_conv2d(*inputs, *settings)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*inputs, out)):
        _refuse_grad_now("dual_conv2d")
    torch.ops.prefiqs_ext.dual_conv2d.out(*inputs, *settings, out=out)
    return out


def dual_linear(
    src: Tensor, weight: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, *, paired: bool = False
) -> Tensor:
    """``src @ weight.T + bias`` with the dense and the masked weights in one pass over the weights.

    Args:
        src: ``[N, ..., I]`` shared by both branches or, with ``paired``, a pair ``[2N, ..., I]``; dtypes, here and of
            ``weight``, as in :func:`dual_conv2d`. A float32 ``src`` gives float32 results from float16 weights.
        weight: ``[O, I]``, unmasked.
        mask: int32 ``[O, ceil(I/32)]``, bit ``i`` of a row as in :func:`dual_conv2d`. None: no branch is pruned.
        bias: float32 ``[O]``.

    Returns:
        ``[..., O]`` of ``src``'s dtype: as many rows as ``src`` when ``mask`` is None, else ``2N``.

    Raises:
        RuntimeError: naming what was expected and what came.
    """
    return torch.ops.prefiqs_ext.dual_linear(src, weight, mask, bias, paired)  # type: ignore[no-any-return]


def embedding_distance(pair: Tensor) -> EmbeddingDistance:
    """L2-normalise both halves of a pair of embeddings and take the norm of their difference (PreFIQs, D).

    A row of norm zero normalises to zeros, so a pruned embedding that vanished gives the distance 1. NaN passes on.

    Args:
        pair: float32 ``[2N, d]``, on CUDA also float16 or bfloat16.

    Returns:
        float32: distance ``[N]`` in [0, 2], lower is a better image; embedding and pruned_embedding ``[N, d]``,
        normalised; embedding_norm ``[N]``, of the dense rows before normalisation.

    Raises:
        RuntimeError: naming what was expected and what came.
    """
    return EmbeddingDistance(*torch.ops.prefiqs_ext.embedding_distance(pair))


def _expect(condition: bool, op: str, message: str) -> None:
    if not condition:
        raise RuntimeError(f"prefiqs_ext::{op}: {message}")


def _expect_dtype(op: str, name: str, t: Tensor, dtype: torch.dtype) -> None:
    wanted = str(dtype).removeprefix("torch.")
    _expect(t.dtype == dtype, op, f"expected {name} of dtype {wanted}, got {_dtype_text(t)}")


def _float_dtypes(src: Tensor) -> tuple[torch.dtype, ...]:
    """What the kernels of ``src``'s device compute with."""
    return (torch.float32, torch.float16, torch.bfloat16) if src.device.type == "cuda" else (torch.float32,)


def _float_names(src: Tensor) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in _float_dtypes(src))


def _expect_float(op: str, name: str, t: Tensor, src: Tensor) -> None:
    known = t.dtype in _float_dtypes(src)
    _expect(known, op, f"expected {name} of dtype {_float_names(src)}, got {_dtype_text(t)}")


def _expect_one_format(op: str, src: Tensor, weight: Tensor) -> None:
    fits = src.dtype in (torch.uint8, torch.float32, weight.dtype)
    wanted = f"float32 or of weight's, {str(weight.dtype).removeprefix('torch.')}"
    _expect(fits, op, f"expected src of dtype {wanted}, got {_dtype_text(src)}")


def _result_dtype(src: Tensor, weight: Tensor) -> torch.dtype:
    return weight.dtype if src.dtype == torch.uint8 else src.dtype


def _dtype_text(t: Tensor) -> str:
    """The dtype as the native operators write it."""
    names = {torch.float32: "Float", torch.float64: "Double", torch.float16: "Half", torch.bfloat16: "BFloat16"}
    names |= {torch.uint8: "Byte", torch.int8: "Char", torch.int16: "Short", torch.int32: "Int", torch.int64: "Long"}
    return names.get(t.dtype, str(t.dtype).removeprefix("torch.").capitalize())


def _list_text(sizes: Sequence[Any]) -> str:
    return "[" + ", ".join(str(n) for n in sizes) + "]"


def _expect_shape(op: str, name: str, t: Tensor, shape: Sequence[Any]) -> None:
    same = t.dim() == len(shape) and all(have == want for have, want in zip(t.shape, shape, strict=True))
    _expect(same, op, f"expected {name} of shape {_list_text(shape)}, got {_list_text(t.shape)}")


def _expect_device(op: str, name: str, t: Tensor, src: Tensor) -> None:
    _expect(t.device == src.device, op, f"expected {name} on the device of src")


# What checks.h says of sizes. A symbolic size is left to the native check: no guard on it is worth a recompilation.
_MOST_NUMBERS = 2**48


def _countable(sizes: Sequence[Any]) -> bool:
    return math.prod(n for n in sizes if isinstance(n, int) and n > 0) <= _MOST_NUMBERS


def _expect_countable(op: str, name: str, sizes: Sequence[Any]) -> None:
    wanted = f"expected {name} of at most {_MOST_NUMBERS} numbers, got shape {_list_text(sizes)}"
    _expect(_countable(sizes), op, wanted)


def _check_window(op: str, stride: list[int], padding: list[int], dilation: list[int]) -> None:
    for name, values in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        wanted = "to be a single integer value or a list of 2 values to match the convolution dimensions"
        _expect(len(values) == 2, op, f"expected {name} {wanted}, but got {name}={_list_text(values)}")
    for axis, (step, pad, tap_step) in enumerate(zip(stride, padding, dilation, strict=True)):
        _expect(step >= 1, op, f"non-positive stride is not supported: expected 1 or more, got {step}")
        _expect(pad >= 0, op, f"negative padding is not supported: expected 0 or more, got {pad}")
        most = f"expected padding to be at most {_MOST_NUMBERS}"
        _expect(pad <= _MOST_NUMBERS, op, f"Given padding={pad} at dimension {axis}, {most}")
        _expect(tap_step >= 1, op, f"non-positive dilation is not supported: expected 1 or more, got {tap_step}")


def _check_weight_companions(
    op: str, src: Tensor, weight: Tensor, depth: int, mask: Tensor | None, bias: Tensor | None
) -> None:
    _expect_device(op, "weight", weight, src)
    if mask is not None:
        _expect_dtype(op, "mask", mask, torch.int32)
        _expect_shape(op, "mask", mask, [weight.shape[0], (depth + 31) // 32])
        _expect_device(op, "mask", mask, src)
    if bias is not None:
        _expect_dtype(op, "bias", bias, torch.float32)
        _expect_shape(op, "bias", bias, [weight.shape[0]])
        _expect_device(op, "bias", bias, src)


@torch.library.register_fake("prefiqs_ext::dual_conv2d")  # type: ignore[untyped-decorator]
def _fake_dual_conv2d(
    src: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    tap_shift: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    paired: bool,
) -> Tensor:
    op = "dual_conv2d"
    _expect(src.dim() == 4, op, f"expected src of shape [N, C, H, W], got {_list_text(src.shape)}")
    known = src.dtype in (*_float_dtypes(src), torch.uint8)
    _expect(known, op, f"expected src of dtype {_float_names(src)} or uint8, got {_dtype_text(src)}")
    wanted = f"expected a paired src of dtype {_float_names(src)}, got uint8"
    _expect(src.dtype != torch.uint8 or not paired, op, wanted)
    even = not paired or src.shape[0] % 2 == 0
    _expect(even, op, f"expected an even number of rows in a paired src, got {src.shape[0]}")
    weight_shape = _list_text(weight.shape)
    _expect(weight.dim() == 4, op, f"expected weight of shape [Co, C/groups, kh, kw], got {weight_shape}")
    _expect_float(op, "weight", weight, src)
    _expect_one_format(op, src, weight)
    _expect(all(n > 0 for n in weight.shape), op, f"expected weight without empty dimensions, got {weight_shape}")
    channels, group_channels, *kernel = weight.shape
    _expect_countable(op, "src", src.shape)
    _expect_countable(op, "weight", weight.shape)
    _check_window(op, stride, padding, dilation)
    _expect(groups >= 1, op, f"non-positive groups is not supported: expected 1 or more, got {groups}")
    wanted = f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0"
    _expect(channels % groups == 0, op, f"{wanted}, but got weight of size {weight_shape} instead")
    image_shape, in_channels = _list_text(src.shape), group_channels * groups
    wanted = f"Given groups={groups}, weight of size {weight_shape}, expected src{image_shape} to have {in_channels}"
    wanted = f"{wanted} channels, but got {src.shape[1]} channels instead"
    _expect(src.shape[1] == in_channels, op, wanted)
    pixels = (src.shape[2] > 0 and src.shape[3] > 0) or src.shape[0] == 0
    _expect(pixels, op, f"Only zero batch inputs are supported, but got input shape: {image_shape}")
    _check_weight_companions(op, src, weight, group_channels * kernel[0] * kernel[1], mask, bias)
    if tap_shift is not None:
        _expect_dtype(op, "tap_shift", tap_shift, torch.float32)
        _expect_shape(op, "tap_shift", tap_shift, [1 if mask is None else 2, channels, *kernel])
        _expect_device(op, "tap_shift", tap_shift, src)
    if slope is not None:
        _expect_dtype(op, "slope", slope, torch.float32)
        fits = slope.dim() == 1 and slope.shape[0] in (1, channels)
        _expect(fits, op, f"expected slope of shape [1] or [{channels}], got {_list_text(slope.shape)}")
        _expect_device(op, "slope", slope, src)
    padded = [src.shape[a + 2] + 2 * padding[a] for a in range(2)]
    wanted = f"expected a padded image of at most {_MOST_NUMBERS} numbers, got image {image_shape}"
    _expect(_countable([src.shape[1], *padded]), op, f"{wanted} and padding {_list_text(padding)}")
    spans = [padded[a] - dilation[a] * (kernel[a] - 1) - 1 for a in range(2)]
    sizes = [f"({' x '.join(map(str, values))})" for values in (padded, kernel, dilation)]
    wanted = "Calculated padded input size per channel: {}. Kernel size: {}, dilation: {}".format(*sizes)
    _expect(all(span >= 0 for span in spans), op, f"{wanted}. Kernel size can't be greater than actual input size")
    base_rows = src.shape[0] // 2 if paired else src.shape[0]
    out_rows = src.shape[0] if mask is None else 2 * base_rows
    out_shape = [channels, *(span // stride[a] + 1 for a, span in enumerate(spans))]
    _expect_countable(op, "a result", [out_rows, *out_shape])
    if residual is not None:
        _expect_dtype(op, "residual", residual, _result_dtype(src, weight))
        shared = residual.dim() == 4 and residual.shape[0] == base_rows
        _expect_shape(op, "residual", residual, [base_rows if shared else out_rows, *out_shape])
        _expect_device(op, "residual", residual, src)
    dst = src.new_empty([out_rows, *out_shape], dtype=_result_dtype(src, weight))
    return dst.to(memory_format=torch.channels_last)


@torch.library.register_fake("prefiqs_ext::dual_conv2d.out")  # type: ignore[untyped-decorator]
def _fake_dual_conv2d_out(*inputs: Any, out: Tensor) -> None:
    dst = _fake_dual_conv2d(*inputs)
    op = "dual_conv2d"
    _expect_dtype(op, "out", out, dst.dtype)
    _expect_shape(op, "out", out, dst.shape)
    _expect_device(op, "out", out, inputs[0])
    dense = out.is_contiguous(memory_format=torch.channels_last)
    _expect(dense, op, "expected out in channels_last layout without gaps")


@torch.library.register_fake("prefiqs_ext::dual_linear")  # type: ignore[untyped-decorator]
def _fake_dual_linear(src: Tensor, weight: Tensor, mask: Tensor | None, bias: Tensor | None, paired: bool) -> Tensor:
    op = "dual_linear"
    _expect(src.dim() >= 2, op, f"expected src of shape [N, ..., I], got {_list_text(src.shape)}")
    _expect_float(op, "src", src, src)
    even = not paired or src.shape[0] % 2 == 0
    _expect(even, op, f"expected an even number of rows in a paired src, got {src.shape[0]}")
    weight_shape = _list_text(weight.shape)
    _expect(weight.dim() == 2, op, f"expected weight of shape [O, I], got {weight_shape}")
    _expect_float(op, "weight", weight, src)
    _expect_one_format(op, src, weight)
    _expect(all(n > 0 for n in weight.shape), op, f"expected weight without empty dimensions, got {weight_shape}")
    outputs, features = weight.shape
    wanted = f"expected src with {features} features in its last dimension, got {src.shape[-1]}"
    _expect(src.shape[-1] == features, op, wanted)
    _expect_countable(op, "src", src.shape)
    _expect_countable(op, "weight", weight.shape)
    _check_weight_companions(op, src, weight, features, mask, bias)
    rows = src.shape[0] if mask is None or paired else 2 * src.shape[0]
    _expect_countable(op, "a result", [rows, *src.shape[1:-1], outputs])
    return src.new_empty([rows, *src.shape[1:-1], outputs])


@torch.library.register_fake("prefiqs_ext::embedding_distance")  # type: ignore[untyped-decorator]
def _fake_embedding_distance(pair: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = "embedding_distance"
    _expect(pair.dim() == 2, op, f"expected pair of shape [2N, d], got {_list_text(pair.shape)}")
    _expect_float(op, "pair", pair, pair)
    _expect(pair.shape[0] % 2 == 0, op, f"expected an even number of rows in pair, got {pair.shape[0]}")
    _expect(pair.shape[1] > 0, op, f"expected pair with at least one feature, got {_list_text(pair.shape)}")
    _expect_countable(op, "pair", pair.shape)
    rows, features = pair.shape[0] // 2, pair.shape[1]
    distance, norm = (pair.new_empty([rows], dtype=torch.float32) for _ in range(2))
    embedding, pruned_embedding = (pair.new_empty([rows, features], dtype=torch.float32) for _ in range(2))
    return distance, embedding, pruned_embedding, norm


def _refuse_grad_now(op: str) -> NoReturn:
    raise RuntimeError(
        f"prefiqs_ext::{op}: expected inputs that do not require grad (inference only), got one that does; "
        "call under torch.inference_mode() or detach() it"
    )


def _refuse_grad(op: str) -> None:
    """Autograd calls `setup_context` exactly when an input requires grad, before anything is computed for the tape."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        _refuse_grad_now(op)

    torch.library.register_autograd(f"prefiqs_ext::{op}", refuse, setup_context=refuse)


for _op in ("dual_conv2d", "dual_linear", "embedding_distance"):
    _refuse_grad(_op)


def _refuse_cuda(op: str, why: str) -> None:
    """CUDA tensors get the reason, not the dispatcher's list of backends."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            f"prefiqs_ext::{op.partition('.')[0]}: expected tensors on the CPU, got some on CUDA, but {why}; "
            "move them with .cpu(), or install prefiqs_ext again beside a torch with CUDA (`prefiqs info` tells more)"
        )

    torch.library.impl(f"prefiqs_ext::{op}", "cuda", refuse)


if cuda_missing is not None:
    for _op in ("dual_conv2d", "dual_conv2d.out", "dual_linear", "embedding_distance"):
        _refuse_cuda(_op, cuda_missing)
