"""Measures the peak memory of one contender in a process of its own; used by `benchmarks.score`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.runtimes import RUNTIMES

BATCH_FILE = "batch.npy"


def measure_peak_bytes(folder: Path, name: str, threads: int, dtype: str) -> int:
    """Return the peak resident bytes, with libraries, of a new process that opens a contender and scores one batch."""
    command = [sys.executable, "-m", "benchmarks.memory", str(folder), name, str(threads), dtype]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def main() -> None:
    """Open a contender, score a batch twice and print the peak."""
    folder, name, threads, dtype = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    if name in RUNTIMES:  # these must not pay for torch, which the other contenders import
        contender = RUNTIMES[name](folder, threads, dtype)
    else:
        from benchmarks.peers import CONTENDERS

        contender = CONTENDERS[name](folder, threads, dtype)
    batch = np.load(folder / BATCH_FILE)
    for _ in range(2):
        contender(batch)
    print(read_high_water_mark())


def read_high_water_mark() -> int:
    """Return the peak resident bytes of this process so far."""
    # getrusage will not do: across exec, ru_maxrss keeps the peak of the process that forked this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status tells no VmHWM: peak memory is measured on Linux only")


if __name__ == "__main__":
    main()
