"""Times our Scorer beside what people would run in its place: two models and one distance, in the same precision.

Example: `python -m benchmarks.score --dtype bfloat16 --model iresnet50 --batch 16`

All contenders have the same weights and images and run in one process: each round times each of them once, in rotating
order, and ratios are taken round by round. Peak memory is that of a new process for each contender, which opens it and
scores one batch. Distances and embeddings are compared with the float64 reference. The column `precision` says what a
contender really computed in: OpenVINO takes float32 where it has no bfloat16 kernels. In bfloat16, ours in float32 runs
along.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import peers
from benchmarks.fidelity import Fidelity, compute_reference, make_batches, measure_fidelity, score_batches
from benchmarks.memory import BATCH_FILE, measure_peak_bytes
from benchmarks.runtimes import RUNTIMES
from benchmarks.timing import Spread, compare_rounds, describe_machine
from prefiqs_ext import models
from prefiqs_ext.exceptions import PrefiqsError
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.timing import time_interleaved
from tests.networks import calibrated

IRESNETS = ("iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200")


@dataclass(frozen=True)
class Result:
    """What was measured of one contender.

    Attributes:
        name: Of the contender.
        precision: The dtype that it computed in.
        seconds: Of each round.
        time: Their spread.
        speedup: Its time over ours, round by round; above 1 means that ours is faster.
        weight_bytes: How many bytes of weights it keeps between calls.
        peak_bytes: Peak memory of a new process that scores one batch.
        fidelity: How near its results come to the float64 reference.
    """

    name: str
    precision: str
    seconds: list[float]
    time: Spread
    speedup: Spread
    weight_bytes: int
    peak_bytes: int
    fidelity: Fidelity


def load_network(name: str) -> tuple[nn.Module, Preset]:
    """Load an IResNet with calibrated random weights, or a built-in model with its real ones."""
    if name in IRESNETS:
        return calibrated(name), Preset.resolve("arcface")
    network, preset = models.load(name)
    assert preset is not None  # a built-in network's own
    return network, preset


def compare(
    model: nn.Module,
    preset: Preset,
    batches: Sequence[np.ndarray],
    *,
    dtype: str,
    rounds: int,
    threads: int,
    chosen: Sequence[str],
) -> list[Result]:
    """Measure ours and the chosen peers; ours is the first result.

    Args:
        model: The network.
        preset: Its input.
        batches: Of one size. All tell the fidelity; the first is timed.
        dtype: What to compute in, as torch names it.
        rounds: How often each contender is timed.
        threads: Of each contender.
        chosen: The names of peers.
    """
    torch.set_num_threads(threads)
    names = [peers.OURS, *chosen]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / BATCH_FILE, batches[0])
        _report_progress("writing the networks")
        peers.prepare(folder, model, preset, batches[0], export=any(name in RUNTIMES for name in names))
        _report_progress("measuring memory")
        peaks = {name: measure_peak_bytes(folder, name, threads, dtype) for name in names}
        contenders = {name: peers.CONTENDERS[name](folder, threads, dtype) for name in names}
    _report_progress(f"comparing {sum(map(len, batches))} images with float64")
    exact = score_batches(partial(compute_reference, model, preset), batches)
    fidelity = {name: measure_fidelity(score_batches(score, batches), exact) for name, score in contenders.items()}
    calls = {name: partial(score, batches[0]) for name, score in contenders.items()}
    _report_progress(f"timing {rounds} rounds")
    seconds = time_interleaved(calls, rounds=rounds)
    return [
        Result(
            name=name,
            precision=contenders[name].precision,
            seconds=seconds[name],
            time=Spread.of(seconds[name]),
            speedup=compare_rounds(seconds[name], seconds[peers.OURS]),
            weight_bytes=contenders[name].weight_bytes,
            peak_bytes=peaks[name],
            fidelity=fidelity[name],
        )
        for name in names
    ]


def _report_progress(doing: str) -> None:
    print(f"{doing} ...", file=sys.stderr, flush=True)


def format_table(results: Sequence[Result], batch: int) -> list[str]:
    """Format the lines of a table."""
    head = f"{'':<14}{'precision':<10}{'ms a batch (range)':>26}{'images/s':>10}{'time / ours (range)':>24}"
    head += f"{'weights MB':>12}{'peak MB':>9}{'max |dD|':>10}{'Spearman':>10}{'cosine (least)':>19}"
    return [head, *(_format_row(result, batch) for result in results)]


def _format_row(result: Result, batch: int) -> str:
    time, speedup = _format_range(result.time, 1e3, 1), _format_range(result.speedup, 1, 2)
    row = f"{result.name:<14}{result.precision:<10}{time:>26}{batch / result.time.median:>10.1f}{speedup:>24}"
    row += f"{result.weight_bytes / 1e6:>12.1f}{result.peak_bytes / 1e6:>9.0f}"
    near = result.fidelity
    cosine = f"{near.mean_cosine:.5f} ({near.least_cosine:.5f})"
    return f"{row}{near.max_error:>10.1e}{near.spearman:>10.5f}{cosine:>19}"


def _format_range(spread: Spread, scale: float, digits: int) -> str:
    median, least, most = (f"{value * scale:.{digits}f}" for value in (spread.median, spread.least, spread.most))
    return f"{median} ({least} .. {most})"


def build_parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Build the parser of the options that every benchmark of a network takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="iresnet50", choices=(*IRESNETS, *models.BUILT_IN))
    parser.add_argument("--dtype", default="float32", choices=tuple(peers.PEERS), help="default: %(default)s")
    parser.add_argument("--batch", type=_parse_positive, default=16, help="images a call (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=_parse_positive, default=rounds, help="timings of each contender (default: %(default)s)"
    )
    parser.add_argument("--threads", type=_parse_positive, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured here too")
    return parser


def main() -> None:
    """Measure, print the table and write the JSON file."""
    parser = build_parser(__doc__, rounds=10)
    every = "; ".join(f"in {dtype} of {','.join(names)}" for dtype, names in peers.PEERS.items())
    parser.add_argument("--peers", help=f"{every} (default: all that are installed)")
    parser.add_argument(
        "--faces",
        type=Path,
        metavar="FOLDER",
        default=os.environ.get("PREFIQS_TEST_FACES") or None,
        help="folders of aligned faces, one a person, to compare with float64 on (default: what the environment "
        "variable PREFIQS_TEST_FACES says; without either, pictures made by chance)",
    )
    parser.add_argument(
        "--images", type=_parse_positive, default=48, help="how many to compare with float64 (default: %(default)s)"
    )
    arguments = parser.parse_args()

    chosen = _choose_peers(parser, arguments.dtype, arguments.peers)
    model, preset = load_network(arguments.model)
    try:
        batches = make_batches(preset, batch=arguments.batch, images=arguments.images, faces=arguments.faces)
    except PrefiqsError as error:
        parser.error(f"argument --faces: {error}")
    settings = {name: getattr(arguments, name) for name in ("model", "dtype", "batch", "rounds", "threads")}
    settings["images"] = f"{sum(map(len, batches))} {'pictures made by chance' if arguments.faces is None else 'faces'}"
    host = describe_machine()
    results = compare(
        model,
        preset,
        batches,
        dtype=arguments.dtype,
        rounds=arguments.rounds,
        threads=arguments.threads,
        chosen=chosen,
    )
    for key, value in {**host, **settings}.items():
        print(f"{key + ':':<14}{value}")
    print(*format_table(results, arguments.batch), sep="\n")
    missing = [name for name in peers.PEERS[arguments.dtype] if not peers.is_installed(name)]
    if missing:
        print(f"not installed: {', '.join(missing)}")
    if arguments.json is not None:
        record = {"machine": host, "settings": settings, "results": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def _parse_positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _choose_peers(parser: argparse.ArgumentParser, dtype: str, text: str | None) -> list[str]:
    known = peers.PEERS[dtype]
    if text is None:
        return [name for name in known if peers.is_installed(name)]
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in known:
            parser.error(f"argument --peers: expected some of {', '.join(known)} in {dtype}, got {name!r}")
        if not peers.is_installed(name):
            parser.error(f"argument --peers: {name} is not installed: pip install 'prefiqs_ext[bench]'")
    return names


if __name__ == "__main__":
    main()
