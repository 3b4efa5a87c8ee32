"""How scores are spread, counted in bins: the memory does not grow with their number."""

from __future__ import annotations

import math
from collections import Counter

_MOST_BINS = 20_000


class Distribution:
    """Counts numbers of 0 or more in equal bins; each bin holds its upper end.

    Bins are a thousandth wide. When there are too many of them, they become ten times as wide: the norm of an embedding
    has no range that is known before.

    Attributes:
        counts: how many numbers lie in each bin that is not empty. Bin i is from i / per_unit to (i + 1) / per_unit.
        per_unit: how many bins there are from 0 to 1.
    """

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.per_unit = 1000.0

    def add(self, number: float) -> None:
        """Count one more number."""
        self.counts[max(math.ceil(number * self.per_unit) - 1, 0)] += 1
        while len(self.counts) > _MOST_BINS:
            self._widen()

    def quantile(self, share: float) -> float:
        """Return the number below which this share lies, to the width of a bin; NaN without any numbers."""
        seen, wanted = 0, share * self.counts.total()
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen >= wanted:
                return (index + 0.5) / self.per_unit
        return math.nan

    def _widen(self) -> None:
        wider: Counter[int] = Counter()
        for index, count in self.counts.items():
            wider[index // 10] += count
        self.counts, self.per_unit = wider, self.per_unit / 10
