"""The fake kernels of the operators: shapes and errors without computing, for tracing, export and torch.compile.

They refuse what csrc/checks.h refuses, in the same order and words; one table of bad calls, tests/bad_calls.py, is run
through both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefiqs_ext.utils.text import name_dtype


def _expect(condition: bool, op: str, message: str) -> None:
    if not condition:
        raise RuntimeError(f"prefiqs_ext::{op}: {message}")


def _expect_dtype(op: str, name: str, t: Tensor, dtype: torch.dtype) -> None:
    _expect(t.dtype == dtype, op, f"expected {name} of dtype {name_dtype(dtype)}, got {name_dtype(t.dtype)}")


def _get_float_dtypes(src: Tensor) -> tuple[torch.dtype, ...]:
    """Return the dtypes that the kernels of src's device compute with."""
    half = (torch.float16, torch.bfloat16) if src.device.type == "cuda" else (torch.bfloat16,)
    return (torch.float32, *half)


def _name_float_dtypes(src: Tensor) -> str:
    return " or ".join(map(name_dtype, _get_float_dtypes(src)))


def _expect_float(op: str, name: str, t: Tensor, src: Tensor) -> None:
    known = t.dtype in _get_float_dtypes(src)
    _expect(known, op, f"expected {name} of dtype {_name_float_dtypes(src)}, got {name_dtype(t.dtype)}")


def _expect_one_format(op: str, src: Tensor, weight: Tensor) -> None:
    fits = src.dtype in (torch.uint8, torch.float32, weight.dtype)
    wanted = f"float32 or of weight's, {name_dtype(weight.dtype)}"
    _expect(fits, op, f"expected src of dtype {wanted}, got {name_dtype(src.dtype)}")


def _get_result_dtype(src: Tensor, weight: Tensor) -> torch.dtype:
    return weight.dtype if src.dtype == torch.uint8 else src.dtype


def _format_sizes(sizes: Sequence[Any]) -> str:
    return "[" + ", ".join(str(n) for n in sizes) + "]"


def _expect_shape(op: str, name: str, t: Tensor, shape: Sequence[Any]) -> None:
    same = t.dim() == len(shape) and all(have == want for have, want in zip(t.shape, shape, strict=True))
    _expect(same, op, f"expected {name} of shape {_format_sizes(shape)}, got {_format_sizes(t.shape)}")


def _expect_device(op: str, name: str, t: Tensor, src: Tensor) -> None:
    _expect(t.device == src.device, op, f"expected {name} on the device of src")


# As in checks.h. A symbolic size is left to the native check, because a guard on it could cause a recompilation.
_MOST_NUMBERS = 2**48


def _is_countable(sizes: Sequence[Any]) -> bool:
    return math.prod(n for n in sizes if isinstance(n, int) and n > 0) <= _MOST_NUMBERS


def _expect_countable(op: str, name: str, sizes: Sequence[Any]) -> None:
    wanted = f"expected {name} of at most {_MOST_NUMBERS} numbers, got shape {_format_sizes(sizes)}"
    _expect(_is_countable(sizes), op, wanted)


def _check_window(op: str, stride: list[int], padding: list[int], dilation: list[int]) -> None:
    for name, values in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        wanted = "to be a single integer value or a list of 2 values to match the convolution dimensions"
        _expect(len(values) == 2, op, f"expected {name} {wanted}, but got {name}={_format_sizes(values)}")
    for axis, (step, pad, tap_step) in enumerate(zip(stride, padding, dilation, strict=True)):
        _expect(step >= 1, op, f"non-positive stride is not supported: expected 1 or more, got {step}")
        _expect(pad >= 0, op, f"negative padding is not supported: expected 0 or more, got {pad}")
        most = f"expected padding to be at most {_MOST_NUMBERS}"
        _expect(pad <= _MOST_NUMBERS, op, f"Given padding={pad} at dimension {axis}, {most}")
        _expect(tap_step >= 1, op, f"non-positive dilation is not supported: expected 1 or more, got {tap_step}")


def _check_weight_companions(
    op: str,
    src: Tensor,
    weight: Tensor,
    depth: int,
    mask: Tensor | None,
    pruned_scale: Tensor | None,
    bias: Tensor | None,
) -> None:
    _expect_device(op, "weight", weight, src)
    if mask is not None:
        _expect_dtype(op, "mask", mask, torch.int32)
        _expect_shape(op, "mask", mask, [weight.shape[0], (depth + 31) // 32])
        _expect_device(op, "mask", mask, src)
    if pruned_scale is not None:
        _expect(mask is not None, op, "expected a mask beside pruned_scale, got none")
        _expect_dtype(op, "pruned_scale", pruned_scale, torch.float32)
        _expect_shape(op, "pruned_scale", pruned_scale, [weight.shape[0]])
        _expect_device(op, "pruned_scale", pruned_scale, src)
    if bias is not None:
        _expect_dtype(op, "bias", bias, torch.float32)
        branches = [2] if mask is not None and bias.dim() == 2 else []
        _expect_shape(op, "bias", bias, [*branches, weight.shape[0]])
        _expect_device(op, "bias", bias, src)


@torch.library.register_fake("prefiqs_ext::dual_conv2d")  # type: ignore[untyped-decorator]
def _fake_dual_conv2d(
    src: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    pruned_scale: Tensor | None,
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
    _expect(src.dim() == 4, op, f"expected src of shape [N, C, H, W], got {_format_sizes(src.shape)}")
    known = src.dtype in (*_get_float_dtypes(src), torch.uint8)
    _expect(known, op, f"expected src of dtype {_name_float_dtypes(src)} or uint8, got {name_dtype(src.dtype)}")
    wanted = f"expected a paired src of dtype {_name_float_dtypes(src)}, got uint8"
    _expect(src.dtype != torch.uint8 or not paired, op, wanted)
    even = not paired or src.shape[0] % 2 == 0
    _expect(even, op, f"expected an even number of rows in a paired src, got {src.shape[0]}")
    weight_shape = _format_sizes(weight.shape)
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
    image_shape, in_channels = _format_sizes(src.shape), group_channels * groups
    wanted = f"Given groups={groups}, weight of size {weight_shape}, expected src{image_shape} to have {in_channels}"
    wanted = f"{wanted} channels, but got {src.shape[1]} channels instead"
    _expect(src.shape[1] == in_channels, op, wanted)
    pixels = (src.shape[2] > 0 and src.shape[3] > 0) or src.shape[0] == 0
    _expect(pixels, op, f"Only zero batch inputs are supported, but got input shape: {image_shape}")
    _check_weight_companions(op, src, weight, group_channels * kernel[0] * kernel[1], mask, pruned_scale, bias)
    if tap_shift is not None:
        _expect_dtype(op, "tap_shift", tap_shift, torch.float32)
        _expect_shape(op, "tap_shift", tap_shift, [1 if mask is None else 2, channels, *kernel])
        _expect_device(op, "tap_shift", tap_shift, src)
    if slope is not None:
        _expect_dtype(op, "slope", slope, torch.float32)
        fits = slope.dim() == 1 and slope.shape[0] in (1, channels)
        _expect(fits, op, f"expected slope of shape [1] or [{channels}], got {_format_sizes(slope.shape)}")
        _expect_device(op, "slope", slope, src)
    padded = [src.shape[a + 2] + 2 * padding[a] for a in range(2)]
    wanted = f"expected a padded image of at most {_MOST_NUMBERS} numbers, got image {image_shape}"
    _expect(_is_countable([src.shape[1], *padded]), op, f"{wanted} and padding {_format_sizes(padding)}")
    spans = [padded[a] - dilation[a] * (kernel[a] - 1) - 1 for a in range(2)]
    sizes = [f"({' x '.join(map(str, values))})" for values in (padded, kernel, dilation)]
    wanted = "Calculated padded input size per channel: {}. Kernel size: {}, dilation: {}".format(*sizes)
    _expect(all(span >= 0 for span in spans), op, f"{wanted}. Kernel size can't be greater than actual input size")
    base_rows = src.shape[0] // 2 if paired else src.shape[0]
    out_rows = src.shape[0] if mask is None else 2 * base_rows
    out_shape = [channels, *(span // stride[a] + 1 for a, span in enumerate(spans))]
    _expect_countable(op, "a result", [out_rows, *out_shape])
    if residual is not None:
        _expect_dtype(op, "residual", residual, _get_result_dtype(src, weight))
        shared = residual.dim() == 4 and residual.shape[0] == base_rows
        _expect_shape(op, "residual", residual, [base_rows if shared else out_rows, *out_shape])
        _expect_device(op, "residual", residual, src)
    dst = src.new_empty([out_rows, *out_shape], dtype=_get_result_dtype(src, weight))
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
def _fake_dual_linear(
    src: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    pruned_scale: Tensor | None,
    bias: Tensor | None,
    paired: bool,
) -> Tensor:
    op = "dual_linear"
    _expect(src.dim() >= 2, op, f"expected src of shape [N, ..., I], got {_format_sizes(src.shape)}")
    _expect_float(op, "src", src, src)
    even = not paired or src.shape[0] % 2 == 0
    _expect(even, op, f"expected an even number of rows in a paired src, got {src.shape[0]}")
    weight_shape = _format_sizes(weight.shape)
    _expect(weight.dim() == 2, op, f"expected weight of shape [O, I], got {weight_shape}")
    _expect_float(op, "weight", weight, src)
    _expect_one_format(op, src, weight)
    _expect(all(n > 0 for n in weight.shape), op, f"expected weight without empty dimensions, got {weight_shape}")
    outputs, features = weight.shape
    wanted = f"expected src with {features} features in its last dimension, got {src.shape[-1]}"
    _expect(src.shape[-1] == features, op, wanted)
    _expect_countable(op, "src", src.shape)
    _expect_countable(op, "weight", weight.shape)
    _check_weight_companions(op, src, weight, features, mask, pruned_scale, bias)
    rows = src.shape[0] if mask is None or paired else 2 * src.shape[0]
    _expect_countable(op, "a result", [rows, *src.shape[1:-1], outputs])
    return src.new_empty([rows, *src.shape[1:-1], outputs])


@torch.library.register_fake("prefiqs_ext::embedding_distance")  # type: ignore[untyped-decorator]
def _fake_embedding_distance(pair: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = "embedding_distance"
    _expect(pair.dim() == 2, op, f"expected pair of shape [2N, d], got {_format_sizes(pair.shape)}")
    _expect_float(op, "pair", pair, pair)
    _expect(pair.shape[0] % 2 == 0, op, f"expected an even number of rows in pair, got {pair.shape[0]}")
    _expect(pair.shape[1] > 0, op, f"expected pair with at least one feature, got {_format_sizes(pair.shape)}")
    _expect_countable(op, "pair", pair.shape)
    rows, features = pair.shape[0] // 2, pair.shape[1]
    distance, norm = (pair.new_empty([rows], dtype=torch.float32) for _ in range(2))
    embedding, pruned_embedding = (pair.new_empty([rows, features], dtype=torch.float32) for _ in range(2))
    return distance, embedding, pruned_embedding, norm


@torch.library.register_fake("prefiqs_ext::dense_norm")  # type: ignore[untyped-decorator]
def _fake_dense_norm(src: Tensor, paired: bool) -> Tensor:
    op = "dense_norm"
    _expect(src.dim() >= 1, op, f"expected src of shape [N, ...], got {_format_sizes(src.shape)}")
    _expect_float(op, "src", src, src)
    even = not paired or src.shape[0] % 2 == 0
    _expect(even, op, f"expected an even number of rows in a paired src, got {src.shape[0]}")
    _expect_countable(op, "src", src.shape)
    return src.new_empty([src.shape[0] // 2 if paired else src.shape[0]], dtype=torch.float32)
