"""One measurement on a GPU, for example `python -m benchmarks.gpu network iresnet100 256`. on_gpu.py runs all of them.

Each result is written at once as a line of JSON; the peers are finished before ours is begun. Times are medians of CUDA
events, with the contenders in rotating order. `--device cpu` is for trying the code; its times say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import conv
from benchmarks.fidelity import read_faces
from benchmarks.gpu_environment import FOLDER
from benchmarks.gpu_steps import record
from benchmarks.peers import TwoModels
from benchmarks.score import load_network
from benchmarks.timing import Spread, compare_rounds, describe_machine
from prefiqs_ext import ops, reference
from prefiqs_ext.device import why_no_cuda
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning_masks import pack_mask
from prefiqs_ext.scorer import Scorer
from tests.networks import pictures

OURS, ENGINE, EAGER, GRAPH = "prefiqs_ext", "prefiqs_ext, engine alone", "two models", "two models, CUDA graph"
COMPILED = "two models, torch.compile max-autotune"
TWO_LAYERS = "two cuDNN layers"
_D_TOLERANCE, _SPEARMAN = 3e-3, 0.999
_SOURCES = {".h", ".cuh", ".cu", ".cpp", ".py"}
_TIMED_SECONDS = 6.0  # of one contender
_MOST_ROUNDS, _FEWEST_ROUNDS = 30, 5
Calls = Mapping[str, Callable[[], object]]


class Bench:
    """What all measurements share: where, in what type, and how a time is taken."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.dtype = torch.float16 if self.on_gpu else torch.float32
        torch.backends.cudnn.benchmark = True  # the fastest that cuDNN has, for the peers
        if self.on_gpu and not torch.cuda.is_available():
            raise SystemExit("expected a CUDA device, found none: --device cpu is for trying the code")
        self.card = torch.cuda.get_device_name() if self.on_gpu else "no GPU: for trying only"

    def time_call(self, call: Callable[[], object], repeats: int) -> float:
        """Return the milliseconds of one call, averaged over `repeats` calls in a row."""
        if not self.on_gpu:
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            return (time.perf_counter() - start) / repeats * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / repeats

    def time_rounds(self, calls: Calls, *, seconds: float = _TIMED_SECONDS) -> dict[str, list[float]]:
        """Return the milliseconds of each contender in each round; every round begins with another contender."""
        for call in calls.values():
            for _ in range(3):  # set up, recorded, replayed
                call()
        once = {name: self.time_call(call, 1) for name, call in calls.items()}
        # A timing is some 20 ms long, so that starting it does not count.
        repeats = {name: max(1, round(20 / took)) for name, took in once.items()}
        longest = max(once[name] * repeats[name] for name in calls) / 1e3
        count = max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, int(seconds / longest)))
        times: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        for turn in range(count):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(self.time_call(calls[name], repeats[name]))
        return times

    def load_network(self, name: str) -> tuple[nn.Module, Preset]:
        """Return a network and its preset; kept in a file from step to step, because calibration takes a while."""
        file = FOLDER / f"{name}.pt"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(load_network(name), file)
        model, preset = torch.load(file, weights_only=False)  # our own file
        return model, preset

    def build_two_models(self, name: str) -> TwoModels:
        """Build the peer: two copies of the network on the device, channels_last."""
        pair = TwoModels(*self.load_network(name), dtype=self.dtype).eval().requires_grad_(False)
        return pair.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def build_scorer(self, name: str) -> Scorer:
        """Build ours on the device."""
        model, preset = self.load_network(name)
        return Scorer(model, preset=preset, device=self.device)

    def make_images(self, name: str, count: int) -> Tensor:
        """Make synthetic images of the network's size on the device."""
        return pictures(count, self.load_network(name)[1].size).to(self.device)


def record_facts(bench: Bench, _: argparse.Namespace) -> None:
    """Record what runs, on what, and from which source."""
    files = sorted(file for folder in ("csrc", "prefiqs_ext") for file in Path(folder).rglob("*"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files if file.suffix in _SOURCES)).hexdigest()
    commit = _run_command("git", "rev-parse", "HEAD")
    driver = _run_command("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader")
    record(
        "facts",
        **describe_machine(),
        card=bench.card,
        cuda=str(torch.version.cuda),
        cudnn=torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        driver=driver,
        commit=commit,
        sources=digest,
        text=f"{bench.card}, torch {torch.__version__}, CUDA {torch.version.cuda}, commit {commit[:9] or 'unknown'}, "
        f"sources {digest[:12]}, {describe_machine()['date']}",
    )
    reason = why_no_cuda() if bench.on_gpu else None
    if reason is not None:
        raise SystemExit(f"expected prefiqs_ext to compute on CUDA, but {reason}")


def _run_command(*command: str) -> str:
    """Return what a command prints; "" if there is no such command."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def measure_ceilings(bench: Bench, _: argparse.Namespace) -> None:
    """Measure the speed of copies and of matrix products."""
    count = 2**30 if bench.on_gpu else 2**20
    source = torch.zeros(count, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    size = 8192 if bench.on_gpu else 256
    a, b = (torch.randn(size, size, device=bench.device).to(bench.dtype) for _ in range(2))
    times = bench.time_rounds({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, seconds=3)
    copied, multiplied = 2 * count / 1e9, 2 * size**3 / 1e9
    bandwidth, rate = (
        work / Spread.of(times[name]).median for name, work in (("copy", copied), ("product", multiplied))
    )
    text = f"ceilings: copies {bandwidth:.2f} TB/s, products of {size}x{size} {rate:.0f} TFLOP/s"
    record("ceilings", terabytes_a_second=bandwidth, teraflops=rate, milliseconds=times, text=text)


def measure_network(bench: Bench, arguments: argparse.Namespace) -> None:
    """Measure the eager peers, then ours beside them, and what both keep on the device."""
    name, count = arguments.model, arguments.batch
    images = bench.make_images(name, count)
    with torch.inference_mode():
        pair = bench.build_two_models(name)
        channels_last = images.contiguous(memory_format=torch.channels_last)
        calls: dict[str, Callable[[], object]] = {EAGER: lambda: pair(channels_last)}
        if bench.on_gpu:
            calls[GRAPH] = _capture(lambda: pair(channels_last))
        alone = bench.time_rounds(calls)
        record("peers", model=name, batch=count, card=bench.card, milliseconds=alone)
        scorer = bench.build_scorer(name)
        calls[OURS] = lambda: scorer(images)
        # Beside a peer, which checks nothing: without the checks of values, and without waiting for the result.
        calls[ENGINE] = lambda: scorer._run(images)
        _record_comparison(bench, name, count, calls)
    half = 2 * sum(t.numel() for t in (*pair.dense.parameters(), *pair.dense.buffers()))
    text = f"{name}: weights on the device {scorer.resident_bytes / 1e6:.1f} MB, {scorer.resident_bytes / half:.3f} x"
    record("weights", model=name, bytes=scorer.resident_bytes, half_bytes=half, text=f"{text} one half-precision model")


def measure_compiled(bench: Bench, arguments: argparse.Namespace) -> None:
    """Measure the fastest that torch has: max-autotune, which uses CUDA graphs, with batch norm folded (freezing)."""
    from torch._inductor import config as inductor

    name, count = arguments.model, arguments.batch
    images = bench.make_images(name, count)
    inductor.freezing = True
    with torch.no_grad():
        run = torch.compile(bench.build_two_models(name), mode="max-autotune")
        channels_last = images.contiguous(memory_format=torch.channels_last)
        start = time.perf_counter()
        calls: dict[str, Callable[[], object]] = {COMPILED: lambda: run(channels_last)}
        alone = bench.time_rounds(calls)
        took = time.perf_counter() - start
        record("peers", model=name, batch=count, card=bench.card, milliseconds=alone, compile_seconds=took)
        scorer = bench.build_scorer(name)
        calls[OURS] = lambda: scorer(images)
        _record_comparison(bench, name, count, calls)


def _capture(call: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


def _record_comparison(bench: Bench, name: str, count: int, calls: Calls) -> None:
    times = bench.time_rounds(calls)
    medians = {contender: Spread.of(found) for contender, found in times.items()}
    speedups = {contender: compare_rounds(found, times[OURS]) for contender, found in times.items()}
    text = "; ".join(
        f"{contender} {medians[contender].median:.3f} ms ({count / medians[contender].median * 1e3:.0f} images/s), "
        f"{speedups[contender].median:.2f} x ours"
        for contender in times
    )
    record(
        "network",
        model=name,
        batch=count,
        card=bench.card,
        milliseconds=times,
        time={contender: asdict(spread) for contender, spread in medians.items()},
        time_over_ours={contender: asdict(spread) for contender, spread in speedups.items()},
        text=f"{name}, batch {count}: {text}",
    )


@torch.inference_mode()
def measure_layers(bench: Bench, arguments: argparse.Namespace) -> None:
    """Measure every distinct layer against two layers of cuDNN, or of cuBLAS if it is linear."""
    totals = {OURS: 0.0, TWO_LAYERS: 0.0}
    found = conv.find_layers(*bench.load_network(arguments.model))
    # The layers that take longest first: the budget may end this.
    for layer, times in sorted(found.items(), key=lambda item: -item[0].operations * item[1]):
        calls = _build_layer_calls(bench, layer, arguments.batch)
        spreads = {name: Spread.of(took) for name, took in bench.time_rounds(calls, seconds=1).items()}
        work = 2 * arguments.batch * layer.operations
        rates = {name: work / spread.median / 1e9 for name, spread in spreads.items()}
        for name, spread in spreads.items():
            totals[name] += times * spread.median
        text = ", ".join(f"{name} {spreads[name].median:.3f} ms {rates[name]:.0f} TFLOP/s" for name in calls)
        record(
            "layer",
            **asdict(layer),
            count=times,
            batch=arguments.batch,
            model=arguments.model,
            time={name: asdict(spread) for name, spread in spreads.items()},
            teraflops=rates,
            line=f"{layer!s} ({times}): {text}",
        )
    text = ", ".join(f"{name} {total:.2f} ms" for name, total in totals.items())
    record("layers", totals=totals, text=f"{arguments.model}, batch {arguments.batch}, all layers one by one: {text}")


def _build_layer_calls(bench: Bench, layer: conv.Layer, count: int) -> Calls:
    linear = layer.kernel == (0, 0)
    shape = (layer.channels,) if linear else (layer.channels, *layer.size)
    src = torch.randn((2 if layer.paired else 1) * count, *shape, device=bench.device).to(bench.dtype)
    weight = torch.randn(layer.filters, layer.channels // layer.groups, *(() if linear else layer.kernel))
    mask = pack_mask(torch.rand_like(weight) > 0.4).to(bench.device)
    weight = weight.to(bench.device, bench.dtype)
    if not linear:
        src, weight = (t.contiguous(memory_format=torch.channels_last) for t in (src, weight))
    halves = src.chunk(2) if layer.paired else (src, src)
    if linear:
        return {
            TWO_LAYERS: lambda: [F.linear(x, weight) for x in halves],
            OURS: lambda: ops.dual_linear(src, weight, mask, paired=layer.paired),
        }
    return {
        TWO_LAYERS: lambda: [
            F.conv2d(x, weight, None, layer.stride, layer.padding, groups=layer.groups) for x in halves
        ],
        OURS: lambda: ops.dual_conv2d(
            src, weight, mask, stride=layer.stride, padding=layer.padding, groups=layer.groups, paired=layer.paired
        ),
    }


def measure_accuracy(bench: Bench, arguments: argparse.Namespace) -> None:
    """Compare D with two float64 models, on real faces if there are some; fail if the promised accuracy is missed."""
    from scipy.stats import spearmanr

    model, preset = bench.load_network(arguments.model)
    folder = os.environ.get("PREFIQS_TEST_FACES")
    batch = read_faces(Path(folder)) if folder else pictures(40, preset.size)
    batch = batch[: arguments.batch] if arguments.batch else batch
    on_device = batch.to(bench.device)
    parts = torch.split(on_device, 20)  # float64 takes room
    model = model.to(bench.device)
    recalibration = Scorer(model, preset=preset, device=bench.device, recalibrate=on_device).recalibration
    for constants, pruned in ((None, "plain"), (recalibration, "recalibrated")):
        exact = torch.cat(
            [reference.score(model, part, preset=preset, recalibration=constants).distance for part in parts]
        ).cpu()
        for dtype in (torch.float16, torch.bfloat16) if bench.on_gpu else (torch.float32,):
            scorer = Scorer(model, preset=preset, device=bench.device, dtype=dtype, recalibrate=constants)
            distance = scorer(on_device).distance.cpu()
            error = float((distance.double() - exact).abs().max())
            rank = float(spearmanr(distance, exact).statistic)
            what = f"{len(batch)} {'real faces' if folder else 'pictures'}"
            text = f"{arguments.model}, {pruned}, {dtype}, {what}: max |dD| {error:.1e}, Spearman {rank:.5f}"
            values = {"pruned": pruned, "dtype": str(dtype), "max_error": error, "spearman": rank}
            record("accuracy", model=arguments.model, **values, text=text)
            if dtype != torch.bfloat16 and not (error < _D_TOLERANCE and rank >= _SPEARMAN):
                raise SystemExit(
                    f"expected max |dD| below {_D_TOLERANCE} and Spearman of {_SPEARMAN} or more, got {text}"
                )


MEASUREMENTS: dict[str, Callable[[Bench, argparse.Namespace], None]] = {
    "facts": record_facts,
    "ceilings": measure_ceilings,
    "network": measure_network,
    "compiled": measure_compiled,
    "layers": measure_layers,
    "accuracy": measure_accuracy,
}


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=MEASUREMENTS)
    parser.add_argument("model", nargs="?", default="iresnet50")
    parser.add_argument("batch", nargs="?", type=int, default=0, help="images a call; accuracy: at most, 0 for all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    MEASUREMENTS[arguments.what](Bench(arguments.device), arguments)


if __name__ == "__main__":
    main()
