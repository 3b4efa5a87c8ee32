"""Our Scorer beside two models and one distance: `python -m benchmarks.score --model iresnet50 --batch 16`.

Same weights, same images, all in one run: each round times each contender once, in rotating order. Ratios are taken
round by round. Peak memory is that of a fresh process per contender, which opens it and scores one batch. Distances are
compared with the float64 reference.
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
from benchmarks.memory import BATCH_FILE, peak_bytes
from benchmarks.runtimes import RUNTIMES
from benchmarks.timing import Spread, machine, ratios
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
    """One contender. speedup: its time over ours, round by round, so above 1 means that ours is faster."""

    name: str
    seconds: list[float]
    time: Spread
    speedup: Spread
    weight_bytes: int
    peak_bytes: int
    max_error: float
    spearman: float


def network(name: str) -> tuple[nn.Module, Preset]:
    """An IResNet with calibrated random weights, or a built-in model with its real ones."""
    preset = Preset.resolve("arcface" if name in IRESNETS else name)
    return calibrated(name) if name in IRESNETS else models.load(name)[0], preset


def compare(name: str, *, batch: int, rounds: int, threads: int, chosen: Sequence[str]) -> list[Result]:
    """Runs ours and the chosen peers, ours first."""
    torch.set_num_threads(threads)
    model, preset = network(name)
    batches = [pictures(batch, preset.size, seed=seed).numpy() for seed in range(_ACCURACY_BATCHES)]
    names = [peers.OURS, *chosen]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / BATCH_FILE, batches[0])
        _progress("writing the networks")
        peers.prepare(folder, model, preset, batches[0], export=any(name in RUNTIMES for name in names))
        _progress("measuring memory")
        peaks = {name: peak_bytes(folder, name, threads) for name in names}
        contenders = {name: peers.CONTENDERS[name](folder, threads) for name in names}
    _progress("comparing with float64")
    exact = np.concatenate([_reference_distances(model, preset, images) for images in batches])
    found = {name: np.concatenate([score(images) for images in batches]) for name, score in contenders.items()}
    calls = {name: (lambda score=score: score(batches[0])) for name, score in contenders.items()}
    _progress(f"timing {rounds} rounds")
    seconds = time_interleaved(calls, rounds=rounds)
    return [
        Result(
            name=name,
            seconds=seconds[name],
            time=Spread.of(seconds[name]),
            speedup=ratios(seconds[name], seconds[peers.OURS]),
            weight_bytes=contenders[name].weight_bytes,
            peak_bytes=peaks[name],
            max_error=float(np.abs(found[name] - exact).max()),
            spearman=float(spearmanr(found[name], exact).statistic),
        )
        for name in names
    ]


def _progress(doing: str) -> None:
    print(f"{doing} ...", file=sys.stderr, flush=True)


def _reference_distances(model: nn.Module, preset: Preset, images: np.ndarray) -> np.ndarray:
    batch = torch.from_numpy(images)
    distances: np.ndarray = reference.score(
        model, batch, Pruning(), preset=preset, dtype=torch.float64
    ).distance.numpy()
    return distances


def table(results: Sequence[Result], batch: int) -> list[str]:
    """Lines for a reader: float32 first, reduced precision apart below."""
    head = f"{'':<14}{'ms a batch (range)':>26}{'images/s':>10}{'time / ours (range)':>24}"
    head += f"{'weights MB':>12}{'peak MB':>9}{'max |dD|':>10}{'Spearman':>10}"
    rows = {
        result.name: f"{result.name:<14}{_ranged(result.time, 1e3, 1):>26}{batch / result.time.median:>10.1f}"
        f"{_ranged(result.speedup, 1, 2):>24}{result.weight_bytes / 1e6:>12.1f}{result.peak_bytes / 1e6:>9.0f}"
        f"{result.max_error:>10.1e}{result.spearman:>10.5f}"
        for result in results
    }
    reduced = [rows.pop(name) for name in peers.REDUCED_PRECISION if name in rows]
    return [head, *rows.values(), *(["reduced precision:", *reduced] if reduced else [])]


def _ranged(spread: Spread, scale: float, digits: int) -> str:
    median, least, most = (f"{value * scale:.{digits}f}" for value in (spread.median, spread.least, spread.most))
    return f"{median} ({least} .. {most})"


def argument_parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """What every benchmark of a network takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="iresnet50", choices=(*IRESNETS, *models.BUILT_IN))
    parser.add_argument("--batch", type=_positive, default=16, help="images a call (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=_positive, default=rounds, help="timings of each contender (default: %(default)s)"
    )
    parser.add_argument("--threads", type=_positive, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured here too")
    return parser


def main() -> None:
    parser = argument_parser(__doc__, rounds=10)
    parser.add_argument("--peers", type=_peers, help=f"of {','.join(PEERS)} (default: all that are installed)")
    arguments = parser.parse_args()

    chosen = arguments.peers if arguments.peers is not None else [name for name in PEERS if peers.installed(name)]
    settings = {name: getattr(arguments, name) for name in ("model", "batch", "rounds", "threads")}
    host = machine()
    results = compare(
        arguments.model, batch=arguments.batch, rounds=arguments.rounds, threads=arguments.threads, chosen=chosen
    )
    for key, value in {**host, **settings}.items():
        print(f"{key + ':':<14}{value}")
    print(*table(results, arguments.batch), sep="\n")
    missing = [name for name in PEERS if not peers.installed(name)]
    if missing:
        print(f"not installed: {', '.join(missing)}")
    if arguments.json is not None:
        record = {"machine": host, "settings": settings, "results": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _peers(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(PEERS)}, got {name!r}")
        if not peers.installed(name):
            raise argparse.ArgumentTypeError(f"{name} is not installed: pip install 'prefiqs_ext[bench]'")
    return names


if __name__ == "__main__":
    main()
