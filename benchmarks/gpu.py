"""The measurements on a GPU, in one process: torch is imported once, and each network is converted once.

on_gpu.py starts it and asks for one measurement after the other. Alone: `echo "60 network iresnet100 256" | python -m
benchmarks.gpu`, where 60 are the seconds that it may take. An error ends the process. `--device cpu` is for trying the
code; its times say nothing about a GPU.

Each result is written at once as a line of JSON; the peers are finished before ours is begun. Times are medians of CUDA
events, with the contenders in rotating order.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import conv
from benchmarks.fidelity import read_faces
from benchmarks.gpu_bench import Bench, Calls, save
from benchmarks.gpu_cases import KERNEL, run_cases
from benchmarks.gpu_environment import FOLDER, digest_sources
from benchmarks.gpu_steps import LIMIT, record
from benchmarks.timing import Spread, compare_rounds, describe_machine
from prefiqs_ext import ops, reference
from prefiqs_ext.device import why_no_cuda
from prefiqs_ext.pruning_masks import pack_mask
from prefiqs_ext.scorer import Scorer
from tests.networks import pictures

OURS, ENGINE, EAGER, GRAPH = "prefiqs_ext", "prefiqs_ext, engine alone", "two models", "two models, CUDA graph"
COMPILED = "two models, torch.compile"
TWO_LAYERS = "two cuDNN layers"
_D_TOLERANCE, _SPEARMAN = 3e-3, 0.999
_LAYERS = 5  # the largest


def record_facts(bench: Bench) -> None:
    """Record what runs, on what, and from which source."""
    digest = digest_sources("csrc/**/*", "prefiqs_ext/**/*.py")
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


def check_cases(bench: Bench) -> None:
    """Compare small cases of every kernel with the oracle."""
    run_cases(bench.device)


def measure_ceilings(bench: Bench) -> None:
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


def measure_network(bench: Bench, name: str, batch: str) -> None:
    """Measure the eager peers, then ours beside them, and what both keep on the device."""
    count, pair = int(batch), bench.build_two_models(name)
    images = bench.make_images(count, bench.load_network(name)[1])
    channels_last = images.contiguous(memory_format=torch.channels_last)
    run_eager = torch.inference_mode()(lambda: pair(channels_last))
    calls: dict[str, Callable[[], object]] = {EAGER: run_eager}
    if bench.on_gpu:
        calls[GRAPH] = _capture(run_eager)
    _record_peers(bench, name, count, calls)
    scorer = bench.build_scorer(name)
    save(scorer(images).distance.cpu(), _get_distance_file(name, count))
    _record_comparison(bench, name, count, calls | _build_our_calls(scorer, images))
    half = 2 * sum(t.numel() for t in (*pair.dense.parameters(), *pair.dense.buffers()))
    text = f"{name}: weights on the device {scorer.resident_bytes / 1e6:.1f} MB, {scorer.resident_bytes / half:.3f} x"
    record("weights", model=name, bytes=scorer.resident_bytes, half_bytes=half, text=f"{text} one half-precision model")


def measure_ours(bench: Bench, name: str, batch: str) -> None:
    """Measure ours alone, with another kernel, and compare its D with that of the first."""
    count, scorer = int(batch), bench.build_scorer(name)
    images = bench.make_images(count, scorer.preset)
    file = _get_distance_file(name, count)
    if file.exists():
        error = float((scorer(images).distance.cpu() - torch.load(file)).abs().max())
        text = f"{name}, batch {count}, {KERNEL}: max |dD| {error:.1e} to the first kernel"
        record("kernels", model=name, batch=count, kernel=KERNEL, max_error=error, text=text)
        if not error < 2 * _D_TOLERANCE:  # each may be off by once that
            raise SystemExit(f"expected max |dD| below {2 * _D_TOLERANCE}, got {text}")
    _record_comparison(bench, name, count, _build_our_calls(scorer, images))


def measure_compiled(bench: Bench, name: str, batch: str) -> None:
    """Measure the peer by torch.compile, with batch norm folded (freezing), and ours beside it."""
    count, pair = int(batch), bench.build_two_models(name)
    images = bench.make_images(count, bench.load_network(name)[1])
    with torch.no_grad():
        run = torch.compile(pair, options={"freezing": True})
        channels_last = images.contiguous(memory_format=torch.channels_last)
        start = time.perf_counter()
        run(channels_last)
        took = time.perf_counter() - start
        calls: dict[str, Callable[[], object]] = {COMPILED: lambda: run(channels_last)}
        _record_peers(bench, name, count, calls, compile_seconds=took)
        _record_comparison(bench, name, count, calls | _build_our_calls(bench.build_scorer(name), images))


def _get_distance_file(name: str, count: int) -> Path:
    return FOLDER / f"{name}-{count}-distance.pt"


def _build_our_calls(scorer: Scorer, images: Tensor) -> dict[str, Callable[[], object]]:
    @torch.inference_mode()
    def run_engine() -> object:
        # Beside a peer, which checks nothing: without the checks of values, and without waiting for the result.
        return scorer._run(images)

    return {OURS: lambda: scorer(images), ENGINE: run_engine}


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


def _record_peers(bench: Bench, name: str, count: int, calls: Calls, **more: float) -> None:
    times = bench.time_rounds(calls)
    text = "; ".join(f"{peer} {Spread.of(found).median:.3f} ms" for peer, found in times.items())
    text = f"{name}, batch {count}, before ours is begun: {text}"
    record("peers", model=name, batch=count, card=bench.card, milliseconds=times, text=text, **more)


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
        kernel=KERNEL,
        milliseconds=times,
        time={contender: asdict(spread) for contender, spread in medians.items()},
        time_over_ours={contender: asdict(spread) for contender, spread in speedups.items()},
        text=f"{name}, batch {count}, {KERNEL}: {text}",
    )


@torch.inference_mode()
def measure_layers(bench: Bench, name: str, batch: str) -> None:
    """Measure the largest layers that either kernel takes, against two layers of cuDNN."""
    count = int(batch)
    found = [item for item in conv.count_layers(bench.build_scorer(name)).items() if fits_sm90(item[0])]
    largest = sorted(found, key=lambda item: -item[0].operations * item[1])[:_LAYERS]
    for layer, times in largest:
        calls = _build_layer_calls(bench, layer, count)
        spreads = {contender: Spread.of(took) for contender, took in bench.time_rounds(calls, seconds=0.5).items()}
        rates = {contender: 2 * count * layer.operations / spread.median / 1e9 for contender, spread in spreads.items()}
        text = ", ".join(f"{each} {spreads[each].median:.3f} ms {rates[each]:.0f} TFLOP/s" for each in calls)
        record(
            "layer",
            layer=asdict(layer),
            count=times,
            batch=count,
            model=name,
            kernel=KERNEL,
            time={contender: asdict(spread) for contender, spread in spreads.items()},
            teraflops=rates,
            text=f"{layer!s} ({times}), {KERNEL}: {text}",
        )


def fits_sm90(layer: conv.Layer) -> bool:
    """Tell whether the kernel for compute capability 9.0a takes a layer, as csrc/cuda/dual_conv_sm90.h has it."""
    if layer.kernel not in ((1, 1), (3, 3)) or layer.groups != 1 or layer.channels % 8 != 0 or layer.filters <= 64:
        return False
    height, width = (
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(layer.size, layer.padding, layer.kernel, layer.stride, strict=True)
    )
    # Sums are cut into segments where one image has few tiles and the sums are long (cut_segments in gemm_plan.h).
    tiles = -(-layer.filters // 64) * -(-height * width // 32)
    steps = -(-layer.kernel[0] * layer.kernel[1] * layer.channels // 32)
    return tiles >= 24 or min(128 // tiles, steps // 16) <= 1


def _build_layer_calls(bench: Bench, layer: conv.Layer, count: int) -> Calls:
    src = torch.randn((2 if layer.paired else 1) * count, layer.channels, *layer.size, device=bench.device)
    weight = torch.randn(layer.filters, layer.channels, *layer.kernel, device=bench.device)
    mask = pack_mask(torch.rand(weight.shape) > 0.4).to(bench.device)
    src, weight = (t.to(bench.dtype).contiguous(memory_format=torch.channels_last) for t in (src, weight))
    halves = src.chunk(2) if layer.paired else (src, src)
    settings: Any = {"stride": layer.stride, "padding": layer.padding}
    return {
        TWO_LAYERS: lambda: [F.conv2d(x, weight, **settings) for x in halves],
        OURS: lambda: ops.dual_conv2d(src, weight, mask, **settings, paired=layer.paired),
    }


def measure_accuracy(bench: Bench, name: str, most: str) -> None:
    """Compare D with two float64 models, on real faces if there are some; fail if the promised accuracy is missed."""
    from scipy.stats import spearmanr

    network, preset = bench.load_network(name)
    model = copy.deepcopy(network).to(bench.device)
    folder = os.environ.get("PREFIQS_TEST_FACES") if preset.size == (112, 112) else None
    count = int(most)
    batch = (read_faces(Path(folder), count) if folder else pictures(count, preset.size)).to(bench.device)
    what = f"{len(batch)} {'real faces' if folder else 'pictures'}"
    for recalibrate in (None, batch):
        scorer = Scorer(model, preset=preset, device=bench.device, recalibrate=recalibrate)
        parts = torch.split(batch, 20)  # float64 takes room
        constants = scorer.recalibration
        exact = [reference.score(model, part, preset=preset, recalibration=constants).distance for part in parts]
        distance, expected = scorer(batch).distance.cpu(), torch.cat(exact).cpu()
        error = float((distance.double() - expected).abs().max())
        rank = float(spearmanr(distance, expected).statistic)
        pruned = "plain" if recalibrate is None else "recalibrated"
        text = f"{name}, {pruned}, {scorer.dtype}, {what}: max |dD| {error:.1e}, Spearman {rank:.5f}"
        values = {"pruned": pruned, "dtype": str(scorer.dtype), "max_error": error, "spearman": rank}
        record("accuracy", model=name, kernel=KERNEL, **values, text=text)
        if not (error < _D_TOLERANCE and rank >= _SPEARMAN):
            raise SystemExit(f"expected max |dD| below {_D_TOLERANCE} and Spearman of {_SPEARMAN} or more, got {text}")


MEASUREMENTS: dict[str, Callable[..., None]] = {
    "facts": record_facts,
    "cases": check_cases,
    "accuracy": measure_accuracy,
    "ceilings": measure_ceilings,
    "network": measure_network,
    "ours": measure_ours,
    "layers": measure_layers,
    "compiled": measure_compiled,
}


def main() -> None:
    """Answer each line of the input, "SECONDS WHAT [MODEL BATCH]", by a line when that has been measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    arguments = parser.parse_args()
    # Answers alone go to the standard output; what anything else prints there goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    bench = Bench(arguments.device)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        os.environ[LIMIT], what, *words = line.split()
        torch.manual_seed(0)
        MEASUREMENTS[what](bench, *words)
        print("passed", what, *words, file=answers, flush=True)


if __name__ == "__main__":
    main()
