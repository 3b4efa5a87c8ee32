"""Times our Scorer beside what people would run in its place: two models and one distance.

Example: `python -m benchmarks.score --model iresnet50 --batch 16`

All contenders have the same weights and images and run in one process: each round times each of them once, in rotating
order, and ratios are taken round by round. Peak memory is that of a new process for each contender, which opens it and
scores one batch. Distances are compared with the float64 reference.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from benchmarks import peers
from benchmarks.memory import BATCH_FILE, measure_peak_bytes
from benchmarks.runtimes import RUNTIMES
from benchmarks.timing import Spread, compare_rounds, describe_machine
from prefiqs_ext import models, reference
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.utils.timing import time_interleaved
from tests.networks import calibrated, pictures

IRESNETS = ("iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200")
PEERS = tuple(name for name in peers.CONTENDERS if name != peers.OURS)
_ACCURACY_BATCHES = 3


@dataclass(frozen=True)
class Result:
    """What was measured of one contender.

    Attributes:
        name: Of the contender.
        seconds: Of each round.
        time: Their spread.
        speedup: Its time over ours, round by round; above 1 means that ours is faster.
        weight_bytes: How many bytes of weights it keeps between calls.
        peak_bytes: Peak memory of a new process that scores one batch.
        max_error: Largest difference of a distance from the float64 reference.
        spearman: Rank correlation with the reference.
    """

    name: str
    seconds: list[float]
    time: Spread
    speedup: Spread
    weight_bytes: int
    peak_bytes: int
    max_error: float
    spearman: float


def load_network(name: str) -> tuple[nn.Module, Preset]:
    """Load an IResNet with calibrated random weights, or a built-in model with its real ones."""
    if name in IRESNETS:
        return calibrated(name), Preset.resolve("arcface")
    network, preset = models.load(name)
    assert preset is not None  # a built-in network's own
    return network, preset


def compare(name: str, *, batch: int, rounds: int, threads: int, chosen: Sequence[str]) -> list[Result]:
    """Measure ours and the chosen peers; ours is the first result."""
    torch.set_num_threads(threads)
    model, preset = load_network(name)
    batches = [pictures(batch, preset.size, seed=seed).numpy() for seed in range(_ACCURACY_BATCHES)]
    names = [peers.OURS, *chosen]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / BATCH_FILE, batches[0])
        _report_progress("writing the networks")
        peers.prepare(folder, model, preset, batches[0], export=any(name in RUNTIMES for name in names))
        _report_progress("measuring memory")
        peaks = {name: measure_peak_bytes(folder, name, threads) for name in names}
        contenders = {name: peers.CONTENDERS[name](folder, threads) for name in names}
    _report_progress("comparing with float64")
    exact = np.concatenate([_compute_reference(model, preset, images) for images in batches])
    found = {name: np.concatenate([score(images) for images in batches]) for name, score in contenders.items()}
    calls = {name: (lambda score=score: score(batches[0])) for name, score in contenders.items()}
    _report_progress(f"timing {rounds} rounds")
    seconds = time_interleaved(calls, rounds=rounds)
    return [
        Result(
            name=name,
            seconds=seconds[name],
            time=Spread.of(seconds[name]),
            speedup=compare_rounds(seconds[name], seconds[peers.OURS]),
            weight_bytes=contenders[name].weight_bytes,
            peak_bytes=peaks[name],
            max_error=float(np.abs(found[name] - exact).max()),
            spearman=float(spearmanr(found[name], exact).statistic),
        )
        for name in names
    ]


def _report_progress(doing: str) -> None:
    print(f"{doing} ...", file=sys.stderr, flush=True)


def _compute_reference(model: nn.Module, preset: Preset, images: np.ndarray) -> np.ndarray:
    batch = torch.from_numpy(images)
    distances: np.ndarray = reference.score(
        model, batch, Pruning(), preset=preset, dtype=torch.float64
    ).distance.numpy()
    return distances


def format_table(results: Sequence[Result], batch: int) -> list[str]:
    """Format the lines of a table: float32 first, reduced precision below."""
    head = f"{'':<14}{'ms a batch (range)':>26}{'images/s':>10}{'time / ours (range)':>24}"
    head += f"{'weights MB':>12}{'peak MB':>9}{'max |dD|':>10}{'Spearman':>10}"
    rows = {
        result.name: f"{result.name:<14}{_format_range(result.time, 1e3, 1):>26}{batch / result.time.median:>10.1f}"
        f"{_format_range(result.speedup, 1, 2):>24}{result.weight_bytes / 1e6:>12.1f}{result.peak_bytes / 1e6:>9.0f}"
        f"{result.max_error:>10.1e}{result.spearman:>10.5f}"
        for result in results
    }
    reduced = [rows.pop(name) for name in peers.REDUCED_PRECISION if name in rows]
    return [head, *rows.values(), *(["reduced precision:", *reduced] if reduced else [])]


def _format_range(spread: Spread, scale: float, digits: int) -> str:
    median, least, most = (f"{value * scale:.{digits}f}" for value in (spread.median, spread.least, spread.most))
    return f"{median} ({least} .. {most})"


def build_parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Build the parser of the options that every benchmark of a network takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="iresnet50", choices=(*IRESNETS, *models.BUILT_IN))
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
    parser.add_argument("--peers", type=_parse_peers, help=f"of {','.join(PEERS)} (default: all that are installed)")
    arguments = parser.parse_args()

    chosen = arguments.peers if arguments.peers is not None else [name for name in PEERS if peers.is_installed(name)]
    settings = {name: getattr(arguments, name) for name in ("model", "batch", "rounds", "threads")}
    host = describe_machine()
    results = compare(
        arguments.model, batch=arguments.batch, rounds=arguments.rounds, threads=arguments.threads, chosen=chosen
    )
    for key, value in {**host, **settings}.items():
        print(f"{key + ':':<14}{value}")
    print(*format_table(results, arguments.batch), sep="\n")
    missing = [name for name in PEERS if not peers.is_installed(name)]
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


def _parse_peers(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(PEERS)}, got {name!r}")
        if not peers.is_installed(name):
            raise argparse.ArgumentTypeError(f"{name} is not installed: pip install 'prefiqs_ext[bench]'")
    return names


if __name__ == "__main__":
    main()
