"""Small cases of every kernel, compared with the oracle: `python -m benchmarks.gpu_cases linear stem`.

The shapes are those of tests/test_ops.py and, for the kernel for compute capability 9.0a, those of
tests/test_emulated_sm90.py, which that kernel takes; with scale, bias, tap shift, slope and residual. Under a sanitizer
a case may take seconds: after most of the step's time no further case is begun, and those left out are named.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_steps import LIMIT, record
from prefiqs_ext import ops
from prefiqs_ext.pruning_masks import pack_mask
from tests import oracle
from tests.test_emulated_sm90 import SHAPES as SM90_SHAPES
from tests.test_ops import SHAPES

KERNEL = os.environ.get("PREFIQS_CUDA_KERNEL", "sm80")  # read once by the engine, too
CONVOLUTIONS = SM90_SHAPES if KERNEL == "sm90" else SHAPES
# Results in half precision of float32 sums, in another order: a few units of rounding of the largest.
_ROUNDINGS = 4


def check_convolution(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Compare one convolution with the oracle."""
    channels, filters, kernel, stride, padding, dilation, groups, size = CONVOLUTIONS[name]
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
    _compare(ops.dual_conv2d(*(t.to(device) for t in inputs), **given), expected, dtype)


def check_linear(device: torch.device, dtype: torch.dtype) -> None:
    """Compare a linear layer with the oracle, for sources of either dtype."""
    src, weight = _make_values(dtype, 6, 1031), _make_values(dtype, 65, 1031)
    mask = pack_mask(torch.rand(weight.shape) < 0.6)
    scale, bias = torch.rand(65) + 0.5, torch.randn(2, 65)
    expected = oracle.expected_dual_linear(src.float(), weight.float(), mask, scale, bias, paired=True)
    for given in (src, src.float()):
        inputs = (t.to(device) for t in (given, weight, mask, scale, bias))
        _compare(ops.dual_linear(*inputs, paired=True), expected, dtype)


def check_distance(device: torch.device) -> None:
    """Compare the distances of embeddings with the oracle."""
    pair = torch.randn(10, 131)
    for got, expected in zip(
        ops.embedding_distance(pair.to(device)), oracle.expected_embedding_distance(pair), strict=True
    ):
        _compare(got, expected, torch.float32)


def _make_values(dtype: torch.dtype, *shape: int) -> Tensor:
    values = torch.randn(*shape).to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def _compare(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = _ROUNDINGS * max(torch.finfo(dtype).eps, torch.finfo(torch.float16).eps)
    error = float((got.cpu().float() - expected).abs().max() / expected.abs().max())
    if not error < tolerance:
        raise SystemExit(f"expected results within {tolerance:.1g} of the largest, got {error:.2g}")


def run_cases(device: torch.device, names: Sequence[str] = ()) -> None:
    """Run all cases of the kernel in use, or those of some names, until most of the step's time is up."""
    torch.manual_seed(0)
    # The formats that the device multiplies.
    dtypes = (torch.float16 if device.type == "cuda" else torch.float32, torch.bfloat16)
    cases: dict[str, Callable[[], None]] = {"distance": partial(check_distance, device)}
    for dtype in dtypes:
        cases[f"linear {dtype}"] = partial(check_linear, device, dtype)
        cases |= {f"{name} {dtype}": partial(check_convolution, name, device, dtype) for name in CONVOLUTIONS}
    chosen = {f"{name} {dtypes[0]}" for name in names} | set(names)
    if names:
        cases = {name: case for name, case in cases.items() if name in chosen}
    # A sanitizer reports at the end, and must come to it before its step is ended.
    end = time.monotonic() + 0.6 * float(os.environ.get(LIMIT, "inf"))
    done = []
    for name, case in cases.items():
        if time.monotonic() > end:
            break
        print(name, flush=True)  # so that the log tells which one crashed or hung
        case()
        done.append(name)
    left_out = [name for name in cases if name not in done]
    text = f"small cases, {KERNEL}: {len(done)} right" + (f"; left out: {', '.join(left_out)}" if left_out else "")
    record("cases", kernel=KERNEL, done=done, left_out=left_out, text=text)


def main() -> None:
    """Run the cases that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CASE", help="default: all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    arguments = parser.parse_args()
    run_cases(torch.device(arguments.device), arguments.names)


if __name__ == "__main__":
    main()
