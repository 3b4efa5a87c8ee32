"""Times several contenders by turns, so that none of them gets all the quiet moments of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

_Name = TypeVar("_Name", bound=Hashable)
_SETTLE_SECONDS = 0.05


def time_interleaved(
    contenders: Mapping[_Name, Callable[[], object]], *, rounds: int, warmup: int = 2, settle: float = _SETTLE_SECONDS
) -> dict[_Name, list[float]]:
    """Times functions by turns.

    Each round times every contender once and begins with another one. So the drift of the machine, and what a contender
    leaves in the caches, fall on all of them alike.

    Args:
        contenders: The functions to time, by name.
        rounds: How often each one is timed.
        warmup: How often each one runs before the first round, untimed.
        settle: Seconds of sleep before each run, which let the idle threads of the previous one stop spinning.

    Returns:
        For each contender its seconds in each round.
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
