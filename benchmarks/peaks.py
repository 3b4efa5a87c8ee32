"""Measures how many operations a second this CPU's multiply-add instructions reach, by C sources beside this file."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.timing import read_cpuinfo

_WARNINGS = ("-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Instruction:
    """A multiply-add instruction: the source that measures its peak, the compiler's flags, and Linux's names for it."""

    source: str
    flags: tuple[str, ...]
    needs: frozenset[str]


_TILES = Instruction("tile_peak.c", ("-mamx-tile", "-mamx-bf16"), frozenset({"amx_tile", "amx_bf16"}))
INSTRUCTIONS = {
    "fma 256": Instruction("fma_peak.c", ("-mavx2", "-mfma"), frozenset({"avx2", "fma"})),
    "fma 512": Instruction("fma_peak.c", ("-mavx512f",), frozenset({"avx512f"})),
    "dot": Instruction("fma_peak.c", ("-mavx512f", "-mavx512bf16"), frozenset({"avx512f", "avx512_bf16"})),
    "tiles": _TILES,
    "tiles, cache": Instruction(_TILES.source, (*_TILES.flags, "-DFROM_CACHE"), _TILES.needs),
}
"""float32 multiply-adds, VDPBF16PS, and TDPBF16PS with tiles that stay or come from the second-level cache."""


class Peaks:
    """The peaks of the instructions that this CPU has; those that it lacks are left out.

    Raises:
        subprocess.CalledProcessError: The C compiler fails.
    """

    def __init__(self) -> None:
        flags = set(read_cpuinfo("flags").split())
        self._functions = {
            name: compile_peak(instruction) for name, instruction in INSTRUCTIONS.items() if instruction.needs <= flags
        }

    def measure(self, threads: int, seconds: float = 0.1) -> dict[str, float]:
        """Return the operations a second of all threads together, by instruction; it takes `seconds` for each."""
        with ThreadPoolExecutor(threads) as pool:
            rates = {
                name: float(sum(pool.map(function, [seconds] * threads))) for name, function in self._functions.items()
            }
        # Linux may refuse tiles although the CPU has them.
        return {name: rate for name, rate in rates.items() if rate > 0}


@cache
def compile_peak(instruction: Instruction) -> Callable[[float], float]:
    """Compile the function that measures an instruction's peak in one thread: from about how many seconds to a rate."""
    source = Path(__file__).with_name(instruction.source)
    with tempfile.TemporaryDirectory() as temporary:
        library = Path(temporary) / "peak.so"
        command = ["cc", "-O2", *_WARNINGS, *instruction.flags, "-shared", "-fPIC", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        function = ctypes.CDLL(str(library)).measure_peak
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
    measure: Callable[[float], float] = function
    return measure
