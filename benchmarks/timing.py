"""Timing several contenders fairly, summaries of what was timed, and what machine it was."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

_SETTLE_SECONDS = 0.05
_PACKAGES = ("prefiqs_ext", "torch", "numpy", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and extremes of a few values."""

    median: float
    low_quartile: float
    high_quartile: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        ordered = sorted(values)
        low, median, high = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
        return Spread(median, low, high, ordered[0], ordered[-1])


def interleaved(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2, settle: float = _SETTLE_SECONDS
) -> dict[str, list[float]]:
    """Seconds of each contender in each round.

    Each round times every contender once, and each round begins with another one, so that drift of the machine and
    what a contender leaves in the caches fall on all alike. `settle` seconds of sleep before each timing let the idle
    threads of the one before stop spinning.
    """
    names = list(contenders)
    for _ in range(warmup):
        for name in names:
            contenders[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(settle)
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The spread of the ratios taken round by round, which cancels the drift that both share."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def machine() -> dict[str, str]:
    """What ran, on what, and when: for the head of every result."""
    processor = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown CPU"
    )
    versions = {name: version for name in _PACKAGES if (version := _version(name))}
    return {
        "processor": f"{processor}, {len(os.sched_getaffinity(0))} cores, {torch.backends.cpu.get_cpu_capability()}",
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
