"""Several contenders timed by turns, so that none gets the quiet moments of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

_Name = TypeVar("_Name", bound=Hashable)
_SETTLE_SECONDS = 0.05


def time_interleaved(
    contenders: Mapping[_Name, Callable[[], object]], *, rounds: int, warmup: int = 2, settle: float = _SETTLE_SECONDS
) -> dict[_Name, list[float]]:
    """Seconds of each contender in each round.

    Each round times every contender once, and each round begins with another one, so that drift of the machine and
    what a contender leaves in the caches fall on all alike. `settle` seconds of sleep before each timing let the idle
    threads of the one before stop spinning.
    """
    names = list(contenders)
    for _ in range(warmup):
        for name in names:
            contenders[name]()
    seconds: dict[_Name, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(settle)
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds
