"""The order in which a quality discards all pairs of many images, without a list of the pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.array_types import Floats
from prefiqs_ext.evaluation.edc import Mode, rank_images
from prefiqs_ext.evaluation.pair_blocks import find_keys

_Number = TypeVar("_Number", int, "NDArray[np.int64]")


class DiscardOrder(NamedTuple):
    """The order in which one quality discards the pairs of N images.

    Attributes:
        images: N.
        get_positions: first < second of pairs -> numbers that rise in this order.
        cuts: [ratios] the position of the first pair that is kept.
    """

    images: int
    get_positions: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]
    cuts: NDArray[np.int64]

    @staticmethod
    def make(quality: Floats, discarded: list[int], mode: Mode) -> DiscardOrder:
        """Make it of the quality [N], and of how many pairs go at each ratio."""
        return (_order_by_worse if mode == "crfiqa" else _order_by_both)(quality, discarded)

    def find_last_ratio(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The index of the last ratio at which each pair is kept."""
        positions = self.get_positions(*np.divmod(keys, self.images))
        return np.searchsorted(self.cuts, positions, side="right") - 1


def _order_by_both(quality: Floats, discarded: list[int]) -> DiscardOrder:
    """By the rank of the worse image, then by that of the other one."""
    ranks, n = rank_images(quality), len(quality)

    def get_positions(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
        one, two = ranks[first], ranks[second]
        positions: NDArray[np.int64] = np.minimum(one, two) * n + np.maximum(one, two)
        return positions

    return DiscardOrder(n, get_positions, find_keys(discarded, n))


def _order_by_worse(quality: Floats, discarded: list[int]) -> DiscardOrder:
    """By the quality of the worse image, then as numpy.triu_indices lists the pairs.

    To find a cut, two sums are inverted: how many pairs have a worse image of lower quality; and, among the pairs of
    one quality, how many the input lists before each image's own.
    """
    n = len(quality)
    level = np.unique(quality, return_inverse=True)[1]

    def combine(level: _Number, first: _Number, second: _Number) -> _Number:
        return (level * n + first) * n + second  # below n^3: int64 is enough for 2 million images

    def get_positions(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
        return combine(np.minimum(level[first], level[second]), first, second)

    before = np.append(0, np.cumsum(n - 1 - np.arange(n)))  # pairs whose worse image is worse than each, by quality
    rising = np.sort(level)
    cuts = []
    for pairs in discarded:
        worst = rising[np.searchsorted(before, pairs, side="right") - 1]
        remaining = pairs - before[np.searchsorted(rising, worst)]  # of the pairs of this level, how many go
        own, better = level == worst, level > worst
        partners = np.where(own, _count_later(own | better), better * _count_later(own))
        ends = np.cumsum(partners)
        first = int(np.searchsorted(ends, remaining, side="right"))
        fitting = own | better if own[first] else own
        second = np.flatnonzero(fitting[first + 1 :])[remaining - ends[first] + partners[first]] + first + 1
        cuts.append(combine(worst, first, second))
    return DiscardOrder(n, get_positions, np.array(cuts))


def _count_later(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N] how many flags are set after each place."""
    later: NDArray[np.int64] = flags.sum() - np.cumsum(flags)
    return later
