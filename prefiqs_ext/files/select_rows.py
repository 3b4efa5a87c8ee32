"""Which rows of a finished table are kept."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prefiqs_ext.files.records import TableRow


class Pick(NamedTuple):
    """Keeps the best rows of a table, or the bad ones; rows without a score are never kept."""

    top: int | None = None
    """Keep so many rows of highest score, best first; equal scores stay in the order of the table."""
    below: float | None = None
    """Keep the rows whose score is below this, in the order of the table."""

    def choose(self, rows: Iterable[TableRow]) -> Iterator[tuple[int, TableRow]]:
        """Gives the rows to keep, each with its place in the table. Never holds more than `top` rows in memory."""
        assessed: Iterable[tuple[float, int, TableRow]]
        assessed = ((row.score, -place, row) for place, row in enumerate(rows) if row.score is not None)
        if self.top is not None:
            assessed = heapq.nlargest(self.top, assessed)
        for score, place, row in assessed:
            if self.below is None or score < self.below:
                yield -place, row
