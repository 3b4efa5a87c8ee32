"""Small cases of every operator, to be run under a sanitizer.

Example: `compute-sanitizer --tool racecheck python -m benchmarks.gpu_cases`

The shapes are those of tests/test_ops.py, with scale, bias, tap shift, slope and residual, compared with the oracle.
Under a sanitizer a case may take seconds: after --seconds no further case is begun, and those left out are named.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

# Before torch is imported: each tensor is an allocation of its own, with bounds that a sanitizer can see.
os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")

import torch
from torch import Tensor

from benchmarks.gpu_steps import LIMIT, record
from prefiqs_ext import ops
from prefiqs_ext.pruning_masks import pack_mask
from tests import oracle
from tests.test_ops import SHAPES

# Half-precision results of float32 sums, and their sums in another order: a few units of rounding of the largest.
_TOLERANCE = 4 * torch.finfo(torch.float16).eps


def check_convolution(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Compare one convolution with the oracle."""
    channels, filters, kernel, stride, padding, dilation, groups, size = SHAPES[name]
    first = channels == 3  # as the first layer of a network: levels, read by both branches
    src = (
        torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8)
        if first
        else _make_values(dtype, 4, channels, *size)
    )
    weight = _make_values(dtype, filters, channels // groups, *kernel)
    mask = pack_mask(torch.rand(weight.shape) < 0.6)
    given: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "paired": not first,
    }
    shape = oracle.expected_dual_conv2d(src, weight.float(), mask, **given).shape
    inputs: list[Tensor] = [
        src,
        weight,
        mask,
        torch.rand(filters) + 0.5,
        torch.randn(2, filters),
        torch.randn(2, filters, *kernel),
        torch.rand(filters),
    ]
    inputs.append(_make_values(dtype, *shape))
    expected = oracle.expected_dual_conv2d(*(t.float() if t.dtype == dtype else t for t in inputs), **given)
    _compare(ops.dual_conv2d(*(t.to(device) for t in inputs), **given), expected)


def check_linear(device: torch.device, dtype: torch.dtype) -> None:
    """Compare a linear layer with the oracle, for sources of either dtype."""
    src, weight = _make_values(dtype, 6, 1031), _make_values(dtype, 65, 1031)
    mask = pack_mask(torch.rand(weight.shape) < 0.6)
    scale, bias = torch.rand(65) + 0.5, torch.randn(2, 65)
    expected = oracle.expected_dual_linear(src.float(), weight.float(), mask, scale, bias, paired=True)
    for given in (src, src.float()):
        inputs = (t.to(device) for t in (given, weight, mask, scale, bias))
        _compare(ops.dual_linear(*inputs, paired=True), expected)


def check_distance(device: torch.device) -> None:
    """Compare the distances of embeddings with the oracle."""
    pair = torch.randn(10, 131)
    for got, expected in zip(
        ops.embedding_distance(pair.to(device)), oracle.expected_embedding_distance(pair), strict=True
    ):
        _compare(got, expected)


def _make_values(dtype: torch.dtype, *shape: int) -> Tensor:
    values = torch.randn(*shape).to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def _compare(got: Tensor, expected: Tensor) -> None:
    error = float((got.cpu().float() - expected).abs().max() / expected.abs().max())
    if not error < _TOLERANCE:
        raise SystemExit(f"expected results within {_TOLERANCE:.1g} of the largest, got {error:.2g}")


def main() -> None:
    """Run the cases until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # A sanitizer reports at the end, and must come to it before its step is ended.
    seconds = 0.6 * float(os.environ.get(LIMIT, 150))
    parser.add_argument("--seconds", type=float, default=seconds, help="default: 0.6 of what the step has")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    cases: dict[str, Callable[[], None]] = {
        "distance": partial(check_distance, device),
        "linear": partial(check_linear, device, dtype),
        **{name: partial(check_convolution, name, device, dtype) for name in SHAPES},
    }
    end = time.monotonic() + arguments.seconds
    done = []
    for name, case in cases.items():
        if time.monotonic() > end:
            break
        print(name, flush=True)
        case()
        done.append(name)
    left_out = [name for name in cases if name not in done]
    text = f"small cases: {len(done)} computed" + (f"; left out: {', '.join(left_out)}" if left_out else "")
    record("cases", done=done, left_out=left_out, text=text)


if __name__ == "__main__":
    main()
