"""Which rows a page shows, and what it counts, in memory that does not grow with the folder."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from prefiqs_ext.files.records import Record, Status

STATUSES: dict[Status, str] = {
    "ok": "scored",
    "no_face": "no face found",
    "unreadable": "not readable",
    "not_assessable": "not assessable",
}
"""Every status a row can have, and how the page calls it."""

# Quality is counted in bins of a thousandth; coarser bars and the median are read off them.
FINE_BINS = 1000


class Shown(NamedTuple):
    """The rows that get a card. middle: how many scored faces between `best` and `worst` get none."""

    best: list[Record]
    middle: int
    worst: list[Record]
    others: list[Record]


class Selection:
    """Takes rows one by one and keeps the best, the worst and the first of every other status, `most` of each."""

    def __init__(self, most: int = 200) -> None:
        self.counts: Counter[Status] = Counter()
        self.quality_counts = [0] * FINE_BINS
        self._most = most
        # Heaps of (key, -order, row): the order is unique, so that rows are never compared; the earlier row stays.
        self._best: list[tuple[float, int, Record]] = []
        self._worst: list[tuple[float, int, Record]] = []
        self._others: dict[Status, list[Record]] = {status: [] for status in STATUSES}

    def add(self, rows: Iterable[Record]) -> Selection:
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
        """Best to worst; in the order they came where qualities are equal."""
        # A row may be in both heaps; its order tells that it is the same.
        kept = {order: (-quality, -order, row) for quality, order, row in self._best}
        kept |= {order: (minus_quality, -order, row) for minus_quality, order, row in self._worst}
        ranked = [row for *_, row in sorted(kept.values(), key=lambda entry: entry[:2])]
        middle = self.counts["ok"] - len(ranked)
        cut = len(self._best) if middle else len(ranked)
        others = [row for rows in self._others.values() for row in rows]
        return Shown(ranked[:cut], middle, ranked[cut:], others)

    def quantile(self, share: float) -> float:
        """The quality below which this share of the scored faces lies, to a thousandth; NaN where there are none."""
        seen, wanted = 0, share * self.counts["ok"]
        for index, count in enumerate(self.quality_counts):
            seen += count
            if count and seen >= wanted:
                return (index + 0.5) / FINE_BINS
        return float("nan")
