"""Times every distinct layer of a network by every algorithm that fits, beside two torch layers in the same dtype.

Example: `python -m benchmarks.conv --dtype bfloat16 --model iresnet50 --batch 16`

A pair of N images through one of our layers is compared with N images through each of two torch layers (channels_last).
Ours writes into kept memory, as in the engine; torch allocates its results, as it always does. GFLOP/s counts the
multiplications of the direct convolution, whatever an algorithm saves, so Winograd may exceed the peak. The peak is
that of the instruction that the algorithm multiplies by (benchmarks/peaks.py), on registers with as many threads. It is
measured before each layer, because shared machines move between layers. For torch, it is the fastest instruction for
the dtype.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from benchmarks.peaks import INSTRUCTIONS, Peaks
from benchmarks.score import build_parser, load_network
from benchmarks.timing import Spread, describe_machine
from prefiqs_ext import _C, ops
from prefiqs_ext.dual import DualConv2d, DualLinear
from prefiqs_ext.pruning_masks import pack_mask
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.utils.timing import time_interleaved

ALGORITHMS = {
    "amx_linear": "tiles",
    "amx": "tiles",
    "depthwise": "fma",
    "winograd": "fma",
    "linear": "fma",
    "dot": "dot",
    "gemm": "fma",
}
"""Each with the instruction that it multiplies by, in the order of csrc/cpu/dispatch.cpp: of those that fit a layer,
the first is the one that is chosen."""
TORCH = "two torch layers"


@dataclass(frozen=True)
class Layer:
    """A convolution [C, H, W] -> [Co, H', W'], or a linear layer, which has the kernel (0, 0)."""

    channels: int
    size: tuple[int, int]
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    paired: bool
    operations: float  # of one image in one branch

    def __str__(self) -> str:
        if self.kernel == (0, 0):
            return f"{self.channels} -> {self.filters} linear"
        kernel = "x".join(map(str, self.kernel)) + (" depthwise" if self.groups == self.channels else "")
        stride = "" if self.stride == (1, 1) else f" /{self.stride[0]}"
        return f"{self.channels} -> {self.filters}, {kernel}{stride}, {self.size[0]}x{self.size[1]}"


class _LayerCounter(fx.Interpreter):
    """An interpreter that runs a converted graph on one image and counts its layers."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.counts: Counter[Layer] = Counter()

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_module(target, args, kwargs)
        module, src = self.fetch_attr(target), args[0]
        paired = bool(kwargs.get("paired"))
        if isinstance(module, DualConv2d):
            height, width = module.weight.shape[2:]
            operations = 2.0 * module.weight[0].numel() * result[0].numel()
            kernel = (height, width)
            filters, channels = module.weight.shape[0], src.shape[1]
            settings: Any = (module.stride, module.padding, module.groups, paired, operations)
            self.counts[Layer(channels, tuple(src.shape[2:]), filters, kernel, *settings)] += 1
        elif isinstance(module, DualLinear):
            filters, channels = module.weight.shape
            operations = 2.0 * module.weight.numel()
            self.counts[Layer(channels, (1, 1), filters, (0, 0), (1, 1), (0, 0), 1, paired, operations)] += 1
        return result


def find_layers(model: nn.Module, preset: Any) -> Counter[Layer]:
    """Convert a network and count how often it has each distinct layer."""
    return count_layers(Scorer(model, preset=preset))


def count_layers(scorer: Scorer) -> Counter[Layer]:
    """Count how often a converted network has each distinct layer; it must have a preset."""
    assert scorer.preset is not None
    found = _LayerCounter(scorer._dual)
    with torch.inference_mode():
        found.run(torch.zeros(1, 3, *scorer.preset.size, dtype=torch.uint8, device=scorer.device))
    return found.counts


def name_instruction(algorithm: str, dtype: torch.dtype, peaks: Mapping[str, float]) -> str | None:
    """Name the instruction that an algorithm multiplies by, of those whose peak is known; None if there is none."""
    fma = ("fma 256",) if _C.cpu_isa() == "avx2" and algorithm != TORCH else ("fma 512", "fma 256")
    if algorithm == TORCH:
        candidates = ("tiles", "dot", *fma) if dtype == torch.bfloat16 else fma
    else:
        candidates = fma if ALGORITHMS[algorithm] == "fma" else (ALGORITHMS[algorithm],)
    return next((name for name in candidates if name in peaks), None)


@contextmanager
def force_algorithm(algorithm: str) -> Iterator[None]:
    """Make the operators use one algorithm inside a `with` block."""
    before = os.environ.get("PREFIQS_CPU_ALGORITHM")
    os.environ["PREFIQS_CPU_ALGORITHM"] = algorithm
    try:
        yield
    finally:
        del os.environ["PREFIQS_CPU_ALGORITHM"]
        if before is not None:
            os.environ["PREFIQS_CPU_ALGORITHM"] = before


def build_contenders(layer: Layer, images: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Build the calls to time: our algorithms that fit, the one that is chosen first, then torch."""
    linear = layer.kernel == (0, 0)
    shape = (layer.channels,) if linear else (layer.channels, *layer.size)
    src = torch.randn((2 if layer.paired else 1) * images, *shape).to(dtype)
    weight = torch.randn(layer.filters, layer.channels // layer.groups, *(() if linear else layer.kernel)).to(dtype)
    if not linear:
        src, weight = (t.contiguous(memory_format=torch.channels_last) for t in (src, weight))
    mask = pack_mask(torch.rand(weight.shape) > 0.4)
    halves = src.chunk(2) if layer.paired else (src, src)
    settings: Any = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    kept: Tensor | None = None if linear else ops.dual_conv2d(src, weight, mask, **settings, paired=layer.paired)

    def ours() -> Tensor:
        if linear:
            return ops.dual_linear(src, weight, mask, paired=layer.paired)
        return ops.dual_conv2d(src, weight, mask, **settings, paired=layer.paired, out=kept)

    def with_algorithm(algorithm: str) -> Callable[[], object]:
        def call() -> object:
            with force_algorithm(algorithm):
                return ours()

        return call

    def torch_layers() -> object:
        return [F.linear(x, weight) if linear else F.conv2d(x, weight, **settings) for x in halves]

    found: dict[str, Callable[[], object]] = {}
    for algorithm in ALGORITHMS:
        call = with_algorithm(algorithm)
        try:
            call()
        except RuntimeError:  # it does not fit, or this build has none of that name
            continue
        found[algorithm] = call
    return found | {TORCH: torch_layers}


def format_layer(
    layer: Layer, count: int, images: int, times: Mapping[str, Spread], shares: Mapping[str, tuple[str, float]]
) -> list[str]:
    """Format the lines of a layer, one for each contender; `shares` are of the peaks of the named instructions."""
    lines = []
    for place, (name, time) in enumerate(times.items()):
        head = f"{layer!s:<40}{count:>6}" if place == 0 else " " * 46
        rate = 2 * images * layer.operations / time.median
        share = "{1:.0%} of {0}".format(*shares[name]) if name in shares else "unknown"
        ratio = f"{times[TORCH].median / time.median:>14.2f}" if name != TORCH else ""
        lines.append(f"{head}  {name:<17}{time.median * 1e3:>9.2f}{rate / 1e9:>9.1f}{share:>16}{ratio}")
    return lines


def format_peaks(found: Sequence[Mapping[str, float]]) -> list[str]:
    """Format one line for each instruction: the range of the peaks that were measured, or that there is none here."""
    lines = []
    for name in INSTRUCTIONS:
        rates = [peaks[name] / 1e9 for peaks in found if name in peaks]
        text = f"{min(rates):.1f} .. {max(rates):.1f} GFLOP/s" if rates else "not available here"
        lines.append(f"peak of {name + ':':<14}{text}")
    return lines


@torch.inference_mode()
def main() -> None:
    """Time and print all layers."""
    arguments = build_parser(__doc__, rounds=9).parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    peaks = Peaks()
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    settings = {name: getattr(arguments, name) for name in ("model", "dtype", "batch", "rounds", "threads")}
    host = describe_machine()
    for key, value in {**host, **settings}.items():
        print(f"{key + ':':<14}{value}")
    print(f"{'layer':<40}{'times':>6}  {'algorithm':<17}{'ms':>9}{'GFLOP/s':>9}{'of peak':>16}{'torch / ours':>14}")
    totals: Counter[str] = Counter()
    record = []
    for layer, count in find_layers(*load_network(arguments.model)).items():
        calls = build_contenders(layer, arguments.batch, dtype)
        rates = peaks.measure(arguments.threads)
        times = {
            name: Spread.of(times) for name, times in time_interleaved(calls, rounds=arguments.rounds, settle=0).items()
        }
        operations = 2 * arguments.batch * layer.operations
        shares = {
            name: (instruction, operations / time.median / rates[instruction])
            for name, time in times.items()
            if (instruction := name_instruction(name, dtype, rates)) is not None
        }
        print(*format_layer(layer, count, arguments.batch, times, shares), sep="\n", flush=True)
        totals["ours"] += count * next(iter(times.values())).median  # type: ignore[assignment]  # the one that is chosen
        totals[TORCH] += count * times[TORCH].median  # type: ignore[assignment]
        spreads = {name: asdict(time) for name, time in times.items()}
        record.append({**asdict(layer), "count": count, "times": spreads, "peaks": rates, "shares": shares})
    print(*format_peaks([layer["peaks"] for layer in record]), sep="\n")
    print(f"all layers: ours {totals['ours'] * 1e3:.1f} ms, {TORCH} {totals[TORCH] * 1e3:.1f} ms", end=", ")
    print(f"torch / ours {totals[TORCH] / totals['ours']:.2f}")
    if arguments.json is not None:
        everything = {"machine": host, "settings": settings, "layers": record}
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    main()
