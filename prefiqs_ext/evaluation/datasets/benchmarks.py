"""The eight benchmarks of the paper, in the layouts in which they are published.

Sources: InsightFace's training sets hold LFW, AgeDB-30, CFP-FP, CALFW and CPLFW as .bin files; XQLFW's site has
xqlfw_aligned_112.zip and xqlfw_pairs.txt; InsightFace's release of IJB-C is the folder IJBC; CR-FIQA's scripts make
quality_data (see quality_data.py), Adience being published aligned in no other way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from prefiqs_ext.evaluation.datasets import Data
from prefiqs_ext.evaluation.datasets.bins import read_bin
from prefiqs_ext.evaluation.datasets.quality_data import read_quality_data
from prefiqs_ext.evaluation.datasets.readers import read_lfw_pairs
from prefiqs_ext.evaluation.datasets.templates import read_ijbc
from prefiqs_ext.exceptions import FileFormatError


class _Layout(NamedTuple):
    paths: tuple[str, ...]
    """What must be there, relative to the data folder."""
    read: Callable[..., Data]
    """Takes these paths."""


class Benchmark(NamedTuple):
    """One of the eight."""

    name: str
    target: float | None
    """The paper's pAUC x 1000 with ArcFace as scorer and verifier, lower is better; None: not known to us."""
    layouts: tuple[_Layout, ...]
    dataset: str
    """What CR-FIQA's scripts call it, in names of folders and of score files."""


class Found(NamedTuple):
    """A benchmark that is there."""

    benchmark: Benchmark
    load: Callable[[], Data]
    """Reads lists, not the images. ValueError or OSError for files that are wrong."""


class Absent(NamedTuple):
    """A benchmark that is not there."""

    benchmark: Benchmark
    looked: tuple[str, ...]
    """Where: one entry a layout, paths that belong together joined by " + "."""


def _bins(name: str) -> tuple[_Layout, ...]:
    bins = tuple(_Layout((path,), read_bin) for path in (f"{name}.bin", f"faces_emore/{name}.bin"))
    return (*bins, _Layout((f"quality_data/{name}",), read_quality_data))


BENCHMARKS = (
    Benchmark("LFW", None, _bins("lfw"), "lfw"),
    Benchmark("AgeDB-30", 6.876, _bins("agedb_30"), "agedb_30"),
    Benchmark("CFP-FP", 3.755, _bins("cfp_fp"), "cfp_fp"),
    Benchmark("CALFW", None, _bins("calfw"), "calfw"),
    Benchmark("CPLFW", 21.180, _bins("cplfw"), "cplfw"),
    Benchmark("Adience", 10.009, (_Layout(("quality_data/adience",), read_quality_data),), "adience"),
    Benchmark(
        "XQLFW",
        None,
        (
            _Layout(("XQLFW/xqlfw_pairs.txt", "XQLFW/xqlfw_aligned_112"), read_lfw_pairs),
            _Layout(("xqlfw_pairs.txt", "xqlfw_aligned_112"), read_lfw_pairs),
            _Layout(("quality_data/XQLFW",), read_quality_data),
        ),
        "XQLFW",
    ),
    Benchmark(
        "IJB-C",
        6.770,
        tuple(
            _Layout((f"{folder}/meta", f"{folder}/loose_crop"), read_ijbc)
            for folder in ("IJBC", "IJB_release/IJBC", "ijb/IJBC")
        ),
        "IJBC",
    ),
)
LEFT_OUT = "XQLFW"
AVERAGE_TARGET = 10.070
"""The paper's mean over the seven without LEFT_OUT. Whether this and the targets are at FMR 1e-3, at 1e-4 or the mean
of both is not known."""


def find(root: str | os.PathLike[str]) -> tuple[list[Found], list[Absent]]:
    """Those of BENCHMARKS that lie in a folder, by the first layout that is there, and those that do not.

    Raises:
        ValueError: root is no folder.
    """
    if not Path(root).is_dir():
        raise FileFormatError(f"{root}: expected a folder with benchmarks in it")
    found, absent = [], []
    for benchmark in BENCHMARKS:
        for layout in benchmark.layouts:
            paths = tuple(Path(root) / path for path in layout.paths)
            if all(path.exists() for path in paths):
                found.append(Found(benchmark, partial(layout.read, *paths)))
                break
        else:
            absent.append(Absent(benchmark, tuple(" + ".join(layout.paths) for layout in benchmark.layouts)))
    return found, absent
