"""Which rows a page shows, and what it counts. The memory that this takes does not grow with the folder."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from prefiqs_ext.files.records import STATUSES, Record, Status
from prefiqs_ext.report.distribution import Distribution

_STATUS_NAMES = ("scored", "no face found", "not readable", "not assessable")
STATUS_NAMES: dict[Status, str] = dict(zip(STATUSES, _STATUS_NAMES, strict=True))
"""What the page calls each status."""


class Shown(NamedTuple):
    """The rows that the page shows, each with a card.

    Attributes:
        best: the faces of highest score, best first.
        middle: how many scored faces between `best` and `worst` are not shown.
        worst: the faces of lowest score, best first.
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
        scores: how the scores of the faces are spread.
    """

    def __init__(self, most: int = 200) -> None:
        """Keep `most` rows of each kind."""
        self.counts: Counter[Status] = Counter()
        self.scores = Distribution()
        self._most = most
        # Heaps of (key, -order, row). The order is unique, so rows are never compared; of equals the earlier one stays.
        self._best: list[tuple[float, int, Record]] = []
        self._worst: list[tuple[float, int, Record]] = []
        self._others: dict[Status, list[Record]] = {status: [] for status in STATUS_NAMES}

    def add(self, rows: Iterable[Record]) -> Selection:
        """Take more rows, and return the selection itself."""
        for row in rows:
            self.counts[row.status] += 1
            if row.score is not None:
                self._add_scored(row, row.score)
            elif len(kept := self._others[row.status]) < self._most:
                kept.append(row)
        return self

    def _add_scored(self, row: Record, score: float) -> None:
        self.scores.add(score)
        order = -self.counts["ok"]
        for heap, key in ((self._best, score), (self._worst, -score)):
            push = heapq.heappush if len(heap) < self._most else heapq.heappushpop
            push(heap, (key, order, row))

    def pick(self) -> Shown:
        """Return the rows to show, from best to worst; rows of equal score are in the order in which they came."""
        # A row may be in both heaps. It has the same order in both.
        kept = {order: (-score, -order, row) for score, order, row in self._best}
        kept |= {order: (minus_score, -order, row) for minus_score, order, row in self._worst}
        ranked = [row for *_, row in sorted(kept.values(), key=lambda entry: entry[:2])]
        middle = self.counts["ok"] - len(ranked)
        cut = len(self._best) if middle else len(ranked)
        others = [row for rows in self._others.values() for row in rows]
        return Shown(ranked[:cut], middle, ranked[cut:], others)
