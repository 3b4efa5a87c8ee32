"""Summarises times, and describes the machine that they were measured on."""

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

from prefiqs_ext import _C

_PACKAGES = ("prefiqs_ext", "torch", "numpy", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Spread:
    """The median, quartiles and extremes of a few values."""

    median: float
    low_quartile: float
    high_quartile: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Compute the spread of one value or more."""
        ordered = sorted(values)
        low, median, high = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
        return Spread(median, low, high, ordered[0], ordered[-1])


def compare_rounds(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the spread of the ratios of each round, which cancels the drift that both share."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def describe_machine() -> dict[str, str]:
    """Describe what runs, on what, and when, for the head of every result."""
    processor = read_cpuinfo("model name") or "unknown CPU"
    versions = {name: version for name in _PACKAGES if (version := _find_version(name))}
    return {
        "kernels": _C.cpu_isa(),
        "processor": f"{processor}, {len(os.sched_getaffinity(0))} cores, {torch.backends.cpu.get_cpu_capability()}",
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def read_cpuinfo(key: str) -> str:
    """Return what Linux says of the first processor, for instance under "model name" or "flags"; empty if nothing."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.split(":")[0].strip() == key), "")


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
