"""The paper's eight benchmarks, in the layouts in which they are published.

Sources: InsightFace's training sets hold LFW, AgeDB-30, CFP-FP, CALFW and CPLFW as .bin files; XQLFW's site has
xqlfw_aligned_112.zip and xqlfw_pairs.txt; InsightFace's release of IJB-C is the folder IJBC; CR-FIQA's scripts make
quality_data (see crfiqa.py), and aligned images of Adience are published in no other way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from prefiqs_ext.evaluation.datasets import Data
from prefiqs_ext.evaluation.datasets.crfiqa import read_quality_data
from prefiqs_ext.evaluation.datasets.ijbc import read_ijbc
from prefiqs_ext.evaluation.datasets.insightface_bin import read_bin
from prefiqs_ext.evaluation.datasets.readers import read_lfw_pairs
from prefiqs_ext.exceptions import InputError


class _Layout(NamedTuple):
    """One way in which a benchmark may lie in the data folder.

    Attributes:
        paths: What must be there, relative to the data folder.
        read: Reads these paths.
    """

    paths: tuple[str, ...]
    read: Callable[[Sequence[Path]], Data]


class Benchmark(NamedTuple):
    """One of the eight benchmarks.

    Attributes:
        name: What the paper calls it.
        target: The paper's pAUC x 1000 with ArcFace as scorer and verifier, LOWER is better; None if we do not know it.
        layouts: In order of preference.
        dataset: What CR-FIQA's scripts call it, in names of folders and of score files.
    """

    name: str
    target: float | None
    layouts: tuple[_Layout, ...]
    dataset: str


class FoundBenchmark(NamedTuple):
    """A benchmark that is there.

    Attributes:
        benchmark: Which one.
        load: Reads its lists, not its images. Raises FileFormatError or FileAccessError for files that are wrong.
    """

    benchmark: Benchmark
    load: Callable[[], Data]


class AbsentBenchmark(NamedTuple):
    """A benchmark that is not there.

    Attributes:
        benchmark: Which one.
        looked: One entry per layout; paths that belong together are joined by " + ".
    """

    benchmark: Benchmark
    looked: tuple[str, ...]


def _read_bin(paths: Sequence[Path]) -> Data:
    return read_bin(paths[0])


def _read_quality_data(paths: Sequence[Path]) -> Data:
    return read_quality_data(paths[0])


def _read_lfw_pairs(paths: Sequence[Path]) -> Data:
    return read_lfw_pairs(paths[0], paths[1])


def _read_ijbc(paths: Sequence[Path]) -> Data:
    return read_ijbc(paths[0], paths[1])


def _list_bin_layouts(name: str) -> tuple[_Layout, ...]:
    bins = tuple(_Layout((path,), _read_bin) for path in (f"{name}.bin", f"faces_emore/{name}.bin"))
    return (*bins, _Layout((f"quality_data/{name}",), _read_quality_data))


BENCHMARKS = (
    Benchmark("LFW", None, _list_bin_layouts("lfw"), "lfw"),
    Benchmark("AgeDB-30", 6.876, _list_bin_layouts("agedb_30"), "agedb_30"),
    Benchmark("CFP-FP", 3.755, _list_bin_layouts("cfp_fp"), "cfp_fp"),
    Benchmark("CALFW", None, _list_bin_layouts("calfw"), "calfw"),
    Benchmark("CPLFW", 21.180, _list_bin_layouts("cplfw"), "cplfw"),
    Benchmark("Adience", 10.009, (_Layout(("quality_data/adience",), _read_quality_data),), "adience"),
    Benchmark(
        "XQLFW",
        None,
        (
            _Layout(("XQLFW/xqlfw_pairs.txt", "XQLFW/xqlfw_aligned_112"), _read_lfw_pairs),
            _Layout(("xqlfw_pairs.txt", "xqlfw_aligned_112"), _read_lfw_pairs),
            _Layout(("quality_data/XQLFW",), _read_quality_data),
        ),
        "XQLFW",
    ),
    Benchmark(
        "IJB-C",
        6.770,
        tuple(
            _Layout((f"{folder}/meta", f"{folder}/loose_crop"), _read_ijbc)
            for folder in ("IJBC", "IJB_release/IJBC", "ijb/IJBC")
        ),
        "IJBC",
    ),
)
LEFT_OUT = "XQLFW"
"""The benchmark that the paper's mean leaves out."""
AVERAGE_TARGET = 10.070
"""The paper's mean pAUC x 1000 over the seven without LEFT_OUT. We do not know whether this and the targets are at FMR
1e-3, at 1e-4, or the mean of both."""


def find_benchmarks(root: str | os.PathLike[str]) -> tuple[list[FoundBenchmark], list[AbsentBenchmark]]:
    """Find which of BENCHMARKS lie in a folder, each by the first of its layouts that is there.

    Raises:
        InputError: root is no folder.
    """
    if not os.path.isdir(root):
        raise InputError(f"{root}: expected a folder with benchmarks in it")
    found, absent = [], []
    for benchmark in BENCHMARKS:
        for layout in benchmark.layouts:
            paths = tuple(Path(root) / path for path in layout.paths)
            if all(map(os.path.exists, paths)):
                found.append(FoundBenchmark(benchmark, partial(layout.read, paths)))
                break
        else:
            absent.append(AbsentBenchmark(benchmark, tuple(" + ".join(layout.paths) for layout in benchmark.layouts)))
    return found, absent
