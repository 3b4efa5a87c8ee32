"""Calls of the operators that are refused, each a change to a good call, and the message. The words on geometry are
those of torch's conv2d."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from prefiqs_ext import ops
from tests.test_ops import random_mask


def good_conv() -> dict[str, Any]:
    weight = torch.randn(6, 4, 3, 3)
    return {
        "src": torch.randn(2, 4, 5, 5),
        "weight": weight,
        "mask": random_mask(weight),
        "pruned_scale": torch.rand(6),
        "bias": torch.randn(2, 6),
        "tap_shift": torch.randn(2, 6, 3, 3),
        "slope": torch.rand(6),
        "residual": torch.randn(2, 6, 5, 5),
        "padding": (1, 1),
    }


def good_linear() -> dict[str, Any]:
    weight = torch.randn(6, 40)
    return {
        "src": torch.randn(2, 40),
        "weight": weight,
        "mask": random_mask(weight),
        "pruned_scale": torch.rand(6),
        "bias": torch.randn(2, 6),
    }


NO_MASK: dict[str, Any] = {"mask": None, "pruned_scale": None}
PLAIN = NO_MASK | {"bias": None}

BAD_CONV: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"src": torch.randn(4, 5, 5)}, "expected src of shape [N, C, H, W], got [4, 5, 5]"),
    "dtype": ({"src": torch.randn(2, 4, 5, 5).double()}, "expected src of dtype {floats} or uint8, got float64"),
    "uint8 pair": (
        {"src": torch.zeros(2, 4, 5, 5, dtype=torch.uint8), "paired": True},
        "expected a paired src of dtype {floats}, got uint8",
    ),
    "odd pair": (
        {"src": torch.randn(3, 4, 5, 5), "paired": True},
        "expected an even number of rows in a paired src, got 3",
    ),
    "channels": (
        {"src": torch.randn(2, 3, 5, 5)},
        "Given groups=1, weight of size [6, 4, 3, 3], expected src[2, 3, 5, 5] to have 4 channels, but got 3 channels "
        "instead",
    ),
    "no pixels": (
        {"src": torch.zeros(2, 4, 1, 0), "padding": (3, 11)},
        "Only zero batch inputs are supported, but got input shape: [2, 4, 1, 0]",
    ),
    "src size": (
        {"src": torch.zeros(1).expand(2**30, 4, 2**10, 2**10)},
        f"expected src of at most {2**48} numbers, got shape [{2**30}, 4, {2**10}, {2**10}]",
    ),
    "weight size": (
        {"weight": torch.zeros(1).expand(6, 4, 2**24, 2**24)},
        f"expected weight of at most {2**48} numbers, got shape [6, 4, {2**24}, {2**24}]",
    ),
    "result size": (
        {"src": torch.zeros(1).expand(2**20, 4, 2**13, 2**13)},
        f"expected a result of at most {2**48} numbers, got shape [{2**21}, 6, {2**13}, {2**13}]",
    ),
    "weight rank": ({"weight": torch.randn(6, 36)}, "expected weight of shape [Co, C/groups, kh, kw], got [6, 36]"),
    "weight dtype": ({"weight": torch.randn(6, 4, 3, 3).double()}, "expected weight of dtype {floats}, got float64"),
    "weight empty": (
        {"weight": torch.randn(6, 4, 0, 3)},
        "expected weight without empty dimensions, got [6, 4, 0, 3]",
    ),
    "stride": ({"stride": (1, 0)}, "non-positive stride is not supported: expected 1 or more, got 0"),
    "stride least": (
        {"stride": (-(2**63), 1)},
        f"non-positive stride is not supported: expected 1 or more, got {-(2**63)}",
    ),
    "padding": ({"padding": (-1, 0)}, "negative padding is not supported: expected 0 or more, got -1"),
    "padding most": (
        {"padding": (0, 2**63 - 1)},
        f"Given padding={2**63 - 1} at dimension 1, expected padding to be at most {2**48}",
    ),
    "padded image size": (
        {"padding": (2**23, 2**24)},
        f"expected a padded image of at most {2**48} numbers, got image [2, 4, 5, 5] and padding [{2**23}, {2**24}]",
    ),
    "dilation": ({"dilation": (0, 1)}, "non-positive dilation is not supported: expected 1 or more, got 0"),
    "dilation whose double is 2**63": (
        {"dilation": (2**62, 1)},
        f"Calculated padded input size per channel: (7 x 7). Kernel size: (3 x 3), dilation: ({2**62} x 1). "
        "Kernel size can't be greater than actual input size",
    ),
    "dilation whose triple is small": (
        {"weight": torch.randn(6, 4, 3, 4), "dilation": (1, (2**64 + 2) // 3), **PLAIN, "tap_shift": None},
        f"Calculated padded input size per channel: (7 x 7). Kernel size: (3 x 4), dilation: (1 x {(2**64 + 2) // 3}). "
        "Kernel size can't be greater than actual input size",
    ),
    **{
        f"{name} of {len(values)}": (
            {name: values},
            f"expected {name} to be a single integer value or a list of 2 values to match the convolution dimensions, "
            f"but got {name}={values}",
        )
        for name in ("stride", "padding", "dilation")
        for values in ([], [1], [1, 1, 1])
    },
    "groups": (
        {"groups": 4},
        "Given groups=4, expected weight to be divisible by 4 at dimension 0, but got weight of size [6, 4, 3, 3] "
        "instead",
    ),
    "groups most": (
        {"groups": 2**63 - 1},
        f"Given groups={2**63 - 1}, expected weight to be divisible by {2**63 - 1} at dimension 0, but got weight of "
        "size [6, 4, 3, 3] instead",
    ),
    "groups zero": ({"groups": 0}, "non-positive groups is not supported: expected 1 or more, got 0"),
    "mask dtype": ({"mask": torch.zeros(6, 2, dtype=torch.int64)}, "expected mask of dtype int32, got int64"),
    "mask of a rare dtype": (
        {"mask": torch.zeros(6, 2).to(torch.float8_e5m2)},
        "expected mask of dtype int32, got float8_e5m2",
    ),
    "mask words": (
        {"mask": torch.zeros(6, 3, dtype=torch.int32)},
        "expected mask of shape [6, 2], got [6, 3]",
    ),
    "pruned_scale": ({"pruned_scale": torch.rand(2, 6)}, "expected pruned_scale of shape [6], got [2, 6]"),
    "pruned_scale dtype": (
        {"pruned_scale": torch.rand(6).double()},
        "expected pruned_scale of dtype float32, got float64",
    ),
    "pruned_scale without mask": ({"mask": None}, "expected a mask beside pruned_scale, got none"),
    "bias": ({"bias": torch.randn(5)}, "expected bias of shape [6], got [5]"),
    "bias rows": ({"bias": torch.randn(1, 6)}, "expected bias of shape [2, 6], got [1, 6]"),
    "bias rows without mask": (NO_MASK, "expected bias of shape [6], got [2, 6]"),
    "bias dtype": ({"bias": torch.randn(6).double()}, "expected bias of dtype float32, got float64"),
    "tap_shift": (
        {"tap_shift": torch.randn(1, 6, 3, 3)},
        "expected tap_shift of shape [2, 6, 3, 3], got [1, 6, 3, 3]",
    ),
    "slope": ({"slope": torch.rand(2)}, "expected slope of shape [1] or [6], got [2]"),
    "residual": (
        {"residual": torch.randn(2, 6, 4, 5)},
        "expected residual of shape [2, 6, 5, 5], got [2, 6, 4, 5]",
    ),
    "residual rows": (
        {"residual": torch.randn(3, 6, 5, 5)},
        "expected residual of shape [4, 6, 5, 5], got [3, 6, 5, 5]",
    ),
    "residual dtype": (
        {"residual": torch.randn(2, 6, 5, 5).double()},
        "expected residual of dtype float32, got float64",
    ),
    "small image": (
        {"src": torch.randn(2, 4, 2, 5), "padding": (0, 0)},
        "Calculated padded input size per channel: (2 x 5). Kernel size: (3 x 3), dilation: (1 x 1). "
        "Kernel size can't be greater than actual input size",
    ),
}

BAD_LINEAR: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"src": torch.randn(40)}, "expected src of shape [N, ..., I], got [40]"),
    "dtype": ({"src": torch.randn(2, 40).double()}, "expected src of dtype {floats}, got float64"),
    "odd pair": (
        {"src": torch.randn(3, 40), "paired": True},
        "expected an even number of rows in a paired src, got 3",
    ),
    "features": ({"src": torch.randn(2, 39)}, "expected src with 40 features in its last dimension, got 39"),
    "weight dtype": ({"weight": torch.randn(6, 40).double()}, "expected weight of dtype {floats}, got float64"),
    "weight rank": ({"weight": torch.randn(6, 40, 1)}, "expected weight of shape [O, I], got [6, 40, 1]"),
    "weight empty": ({"weight": torch.randn(0, 40)}, "expected weight without empty dimensions, got [0, 40]"),
    "src size": (
        {"src": torch.zeros(1).expand(2**43, 40)},
        f"expected src of at most {2**48} numbers, got shape [{2**43}, 40]",
    ),
    "weight size": (
        {"weight": torch.zeros(1).expand(2**43, 40)},
        f"expected weight of at most {2**48} numbers, got shape [{2**43}, 40]",
    ),
    "result size": (
        {"src": torch.zeros(1).expand(2**40, 40), "weight": torch.randn(512, 40), **PLAIN},
        f"expected a result of at most {2**48} numbers, got shape [{2**40}, 512]",
    ),
    "mask": ({"mask": torch.zeros(6, 1, dtype=torch.int32)}, "expected mask of shape [6, 2], got [6, 1]"),
    "pruned_scale": ({"pruned_scale": torch.rand(5)}, "expected pruned_scale of shape [6], got [5]"),
    "pruned_scale without mask": ({"mask": None}, "expected a mask beside pruned_scale, got none"),
    "bias": ({"bias": torch.randn(7)}, "expected bias of shape [6], got [7]"),
    "bias rows": ({"bias": torch.randn(6, 1)}, "expected bias of shape [2, 6], got [6, 1]"),
    "bias without mask": (NO_MASK | {"bias": torch.randn(6, 1)}, "expected bias of shape [6], got [6, 1]"),
}

BAD_PAIR: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"pair": torch.randn(4)}, "expected pair of shape [2N, d], got [4]"),
    "dtype": ({"pair": torch.randn(4, 2).double()}, "expected pair of dtype {floats}, got float64"),
    "odd": ({"pair": torch.randn(3, 2)}, "expected an even number of rows in pair, got 3"),
    "size": (
        {"pair": torch.zeros(1).expand(2**30, 2**20)},
        f"expected pair of at most {2**48} numbers, got shape [{2**30}, {2**20}]",
    ),
    "no features": ({"pair": torch.randn(4, 0)}, "expected pair with at least one feature, got [4, 0]"),
}

BAD_NORM: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"src": torch.randn(())}, "expected src of shape [N, ...], got []"),
    "dtype": ({"src": torch.zeros(4, 2, dtype=torch.uint8)}, "expected src of dtype {floats}, got uint8"),
    "odd": ({"src": torch.randn(3, 2), "paired": True}, "expected an even number of rows in a paired src, got 3"),
    "size": (
        {"src": torch.zeros(1).expand(2**30, 2**20)},
        f"expected src of at most {2**48} numbers, got shape [{2**30}, {2**20}]",
    ),
}

# What the CPU refuses and CUDA takes, and what only CUDA can get wrong.
ONLY_CPU: dict[str, tuple[Any, dict[str, Any], str]] = {
    "half src": (
        ops.dual_conv2d,
        {"src": torch.randn(2, 4, 5, 5).half()},
        "expected src of dtype {floats} or uint8, got float16",
    ),
    "half weight": (
        ops.dual_linear,
        {"weight": torch.randn(6, 40).half()},
        "expected weight of dtype {floats}, got float16",
    ),
    "half pair": (
        ops.embedding_distance,
        {"pair": torch.randn(4, 2).half()},
        "expected pair of dtype {floats}, got float16",
    ),
    "half rows": (
        ops.dense_norm,
        {"src": torch.randn(4, 2).half()},
        "expected src of dtype {floats}, got float16",
    ),
}
ONLY_CUDA: dict[str, tuple[Any, dict[str, Any], str]] = {
    "two formats": (
        ops.dual_conv2d,
        {"src": torch.randn(2, 4, 5, 5).half(), "weight": torch.randn(6, 4, 3, 3).bfloat16()},
        "expected src of dtype float32 or of weight's, bfloat16, got float16",
    ),
}

# Of two formats in one call, on either device.
TWO_FORMATS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "bfloat16 src of a float32 weight": (
        ops.dual_linear,
        {"src": torch.randn(2, 40).bfloat16()},
        "expected src of dtype float32 or of weight's, float32, got bfloat16",
    ),
    "residual of another dtype than src": (
        ops.dual_conv2d,
        {"src": torch.randn(2, 4, 5, 5).bfloat16(), "weight": torch.randn(6, 4, 3, 3).bfloat16()},
        "expected residual of dtype bfloat16, got float32",
    ),
    "residual of another dtype than the weight of a uint8 src": (
        ops.dual_conv2d,
        {"src": torch.zeros(2, 4, 5, 5, dtype=torch.uint8), "weight": torch.randn(6, 4, 3, 3).bfloat16()},
        "expected residual of dtype bfloat16, got float32",
    ),
    "bfloat16 residual of a float32 src": (
        ops.dual_conv2d,
        {"weight": torch.randn(6, 4, 3, 3).bfloat16(), "residual": torch.randn(2, 6, 5, 5).bfloat16()},
        "expected residual of dtype float32, got bfloat16",
    ),
    "bfloat16 bias": (
        ops.dual_linear,
        {
            "src": torch.randn(2, 40).bfloat16(),
            "weight": torch.randn(6, 40).bfloat16(),
            "bias": torch.randn(6).bfloat16(),
        },
        "expected bias of dtype float32, got bfloat16",
    ),
}

GOOD: dict[Any, Callable[[], dict[str, Any]]] = {
    ops.dual_conv2d: good_conv,
    ops.dual_linear: good_linear,
    ops.embedding_distance: dict,
    ops.dense_norm: dict,
}
TABLES = (
    (ops.dual_conv2d, BAD_CONV),
    (ops.dual_linear, BAD_LINEAR),
    (ops.embedding_distance, BAD_PAIR),
    (ops.dense_norm, BAD_NORM),
)
BAD_CALLS = {f"{op.__name__}-{name}": (op, *bad) for op, table in TABLES for name, bad in table.items()} | TWO_FORMATS
