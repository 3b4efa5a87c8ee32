"""Seconds and peak memory of the evaluation's curves over all pairs of many synthetic images, and of their intervals.

Example: `python -m benchmarks.all_pairs --images 100000`
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.memory import read_high_water_mark
from benchmarks.timing import describe_machine
from prefiqs_ext.evaluation.all_pairs import compute_curves_of_qualities
from prefiqs_ext.evaluation.bootstrap import resample_persons
from prefiqs_ext.evaluation.edc import FMRS, LIMIT

_DIMENSIONS = 128


def make_faces(
    images: int, persons: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Make embeddings around one centre for each person, the persons, and qualities that explain part of the noise."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((persons, _DIMENSIONS), np.float32)
    who = rng.integers(persons, size=images)
    noise = rng.lognormal(0, 0.4, images).astype(np.float32)
    embeddings = noise[:, None] * rng.standard_normal((images, _DIMENSIONS), np.float32)
    embeddings += centres[who]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, who, -np.log(noise) + rng.normal(0, 0.4, images).astype(np.float32)


@click.command()
@click.option("--images", default=100_000, show_default=True)
@click.option("--persons", default=None, type=int, help="Default: one for every ten images.")
@click.option("--methods", default=1, show_default=True, help="How many qualities to compare.")
@click.option("--resamples", default=500, show_default=True, help="0: no intervals.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path))
def main(images: int, persons: int | None, methods: int, resamples: int, seed: int, file: Path | None) -> None:
    """Measure and print the curves and their intervals."""
    persons = persons or max(1, images // 10)
    embeddings, who, quality = make_faces(images, persons, seed)
    results: list[dict[str, Any]] = []
    noise = np.random.default_rng(seed + 1).normal(0, 0.4, (methods, images)).astype(np.float32)
    qualities = {str(index): quality + index * noise[index] for index in range(methods)}
    compute = partial(compute_curves_of_qualities, embeddings, who, qualities, fmrs=FMRS)
    for curve in _measure(results, "all_pairs", compute)["0"]:
        print(f"  FMR {curve.fmr:g}: FNMR {curve.fnmr[0]:.4f}, pAUC {curve.area(LIMIT):.4f}, {curve.mated} mated pairs")
    if resamples:
        draw = partial(resample_persons, embeddings, who, qualities, fmrs=FMRS, resamples=resamples, seed=seed)
        for fmr, draws in _measure(results, "bootstrap", draw).items():
            low, high = draws.interval("0")
            print(f"  FMR {fmr:g}: pAUC minus that of no discard, 95 %: {low:.4f} to {high:.4f}")
    if file is not None:
        settings = {"images": images, "persons": persons, "methods": methods, "resamples": resamples, "seed": seed}
        file.write_text(json.dumps({"machine": describe_machine(), "settings": settings, "results": results}, indent=1))


def _measure(results: list[dict[str, Any]], name: str, run: Callable[[], Any]) -> Any:
    start, cpu_start = time.perf_counter(), time.process_time()
    result = run()
    seconds, cpu, peak = time.perf_counter() - start, time.process_time() - cpu_start, read_high_water_mark()
    results.append({"name": name, "seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak})
    print(f"{name}: {seconds:.1f} s ({cpu:.1f} s of a core), peak so far {peak / 1e6:.0f} MB", flush=True)
    return result


if __name__ == "__main__":
    main()
