"""Which rows a page shows, and what it counts. The memory that this takes does not grow with the folder."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from prefiqs_ext.files.records import STATUSES, Record, Status

_STATUS_NAMES = ("scored", "no face found", "not readable", "not assessable")
STATUS_NAMES: dict[Status, str] = dict(zip(STATUSES, _STATUS_NAMES, strict=True))
"""What the page calls each status."""

# Quality is counted in bins of a thousandth. The coarser bars and the median are taken from these.
FINE_BINS = 1000


class Shown(NamedTuple):
    """The rows that the page shows, each with a card.

    Attributes:
        best: the faces of highest quality, best first.
        middle: how many scored faces between `best` and `worst` are not shown.
        worst: the faces of lowest quality, best first.
        others: the first rows of every other status.
    """

    best: list[Record]
    middle: int
    worst: list[Record]
    others: list[Record]


class Selection:
    """Takes rows one by one and keeps the best, the worst, and the first of every other status.

    Attributes:
        counts: how many rows there were of each status.
        quality_counts: how many faces have a quality in each of FINE_BINS equal bins of [0, 1].
    """

    def __init__(self, most: int = 200) -> None:
        """Keep `most` rows of each kind."""
        self.counts: Counter[Status] = Counter()
        self.quality_counts = [0] * FINE_BINS
        self._most = most
        # Heaps of (key, -order, row). The order is unique, so rows are never compared; of equals the earlier one stays.
        self._best: list[tuple[float, int, Record]] = []
        self._worst: list[tuple[float, int, Record]] = []
        self._others: dict[Status, list[Record]] = {status: [] for status in STATUS_NAMES}

    def add(self, rows: Iterable[Record]) -> Selection:
        """Take more rows, and return the selection itself."""
        for row in rows:
            self.counts[row.status] += 1
            if row.quality is not None:
                self._add_scored(row, row.quality)
            elif len(kept := self._others[row.status]) < self._most:
                kept.append(row)
        return self

    def _add_scored(self, row: Record, quality: float) -> None:
        self.quality_counts[min(int(quality * FINE_BINS), FINE_BINS - 1)] += 1
        order = -self.counts["ok"]
        for heap, key in ((self._best, quality), (self._worst, -quality)):
            push = heapq.heappush if len(heap) < self._most else heapq.heappushpop
            push(heap, (key, order, row))

    def pick(self) -> Shown:
        """Return the rows to show, from best to worst; rows of equal quality are in the order in which they came."""
        # A row may be in both heaps. It has the same order in both.
        kept = {order: (-quality, -order, row) for quality, order, row in self._best}
        kept |= {order: (minus_quality, -order, row) for minus_quality, order, row in self._worst}
        ranked = [row for *_, row in sorted(kept.values(), key=lambda entry: entry[:2])]
        middle = self.counts["ok"] - len(ranked)
        cut = len(self._best) if middle else len(ranked)
        others = [row for rows in self._others.values() for row in rows]
        return Shown(ranked[:cut], middle, ranked[cut:], others)

    def quantile(self, share: float) -> float:
        """Return the quality below which this share of the scored faces lies, to 0.001; NaN without any."""
        seen, wanted = 0, share * self.counts["ok"]
        for index, count in enumerate(self.quality_counts):
            seen += count
            if count and seen >= wanted:
                return (index + 0.5) / FINE_BINS
        return float("nan")
