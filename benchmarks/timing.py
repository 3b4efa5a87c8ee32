"""Summaries of what was timed, and what machine it was."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

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
