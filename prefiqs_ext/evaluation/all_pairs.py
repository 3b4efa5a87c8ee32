"""Curves over all pairs of many images, in memory that does not grow with the number of pairs.

What is counted. Sort the N images by quality, the worst first, and give the pair of images i < j the key i * N + j. In
the upper triangle of the similarities, read row by row, the keys rise, and so does the quality of the worse image. So
the pairs arrive in discard order (mode "crfiqa": nearly), in blocks of rows, and are never sorted. At each discard
ratio a cut divides the order: pairs before it are discarded, pairs from it on are kept.

Invariants, at every ratio:

* discarded + kept mated + kept non-mated = N (N - 1) / 2, the number of all pairs. `count_discarded` gives the first,
  counting the mated pairs from the cut on gives the second, and the third follows.
* The cuts rise with the ratio. So a pair's last ratio, the highest at which it is kept, says at which ratios it counts:
  at all from 0 up to that one.
* The threshold depends on a few non-mated scores only, see `ThresholdWindow`. They lie in a few neighbouring bins of a
  histogram of the scores.

Two passes over the blocks. The first counts the high non-mated scores in a histogram per ratio, which locates those
bins. The second collects the scores in them, which makes the thresholds exact. Mated scores are kept, all of them.

Complexity: two products of [N, d] by [d, N], that is 2 N^2 d multiplications, and for each pair above the floor a
binary search among the cuts. Memory: one block, the mated pairs, and R * 65,536 counters for R ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.array_types import Floats, Integers
from prefiqs_ext.evaluation.edc import (
    FMRS,
    RATIOS,
    Curve,
    Mode,
    ThresholdWindow,
    build_step_curve,
    check_fmr,
    check_kept,
    compute_fnmr,
    count_discarded,
    find_threshold,
    find_turning_place,
    rank_images,
)
from prefiqs_ext.evaluation.pair_blocks import (
    check_normalised,
    estimate_floor,
    find_keys,
    iterate_blocks,
    list_mated_keys,
)
from prefiqs_ext.exceptions import InputError

_Number = TypeVar("_Number", int, "NDArray[np.int64]")

# Bins over scores of -1 to 1, 3e-5 wide: of 10^8 pairs a few thousand scores lie in the bins around a threshold, and
# the counters of 20 ratios take 10 MB.
_BINS = 1 << 16
# How many more of the highest non-mated scores are looked at than the highest FMR needs. Discarding changes the share
# that is needed; where 4 times is too little, it is raised by the same factor.
_MARGIN = 4


def compute_all_pairs_curves(
    embeddings: Floats,
    identities: Integers,
    quality: Floats,
    *,
    fmrs: tuple[float, ...] = FMRS,
    mode: Mode = "rethresholded",
    ratios: NDArray[np.float64] = RATIOS,
) -> list[Curve]:
    """Compute the curves over all N (N - 1) / 2 pairs: the same as `error_versus_discard` over their list.

    A score is a dot product in float32. It is off by about 1e-7, and by a different amount for blocks of another shape.
    A mated score that is this near to a non-mated one may count on the other side of it than in float64.

    Args:
        embeddings: [N, d] L2-normalised.
        identities: [N] one number per person.
        quality: [N], HIGHER is better.
        fmrs: False match rates, in (0, 1).
        mode: See `edc`.
        ratios: [R] discard ratios, rising from 0 and below 1; mode "fixed-threshold" ignores them.

    Returns:
        One curve per FMR.

    Raises:
        InputError: As error_versus_discard; or embeddings that are not of length 1.
    """
    for fmr in fmrs:
        check_fmr(fmr)
    if mode == "fixed-threshold":  # its threshold is that of no discard
        ratios = ratios[:1]
    images = np.argsort(rank_images(quality))
    unit, identities = np.asarray(embeddings, np.float32), np.asarray(identities)
    if unit.ndim != 2 or not len(unit) == len(identities) == len(images):
        raise InputError(f"expected one embedding, identity and quality per image; got {unit.shape}, "
                         f"{identities.shape}, {np.shape(quality)}")  # fmt: skip
    check_normalised(unit)
    unit, identities, quality = unit[images], identities[images], np.asarray(quality)[images]
    n = len(images)
    pairs = n * (n - 1) // 2
    mated = list_mated_keys(identities)
    discarded = count_discarded(ratios, pairs, mode)
    order = _order_by_worse(discarded, quality, images) if mode == "crfiqa" else _order_by_both(discarded, n)
    positions = order.get_positions(mated)
    kept_mated = [positions >= cut for cut in order.cuts]  # per ratio, [mated pairs]
    kept_non_mated = [pairs - gone - int(kept.sum()) for gone, kept in zip(discarded, kept_mated, strict=True)]
    for r, kept, others in zip(ratios, kept_mated, kept_non_mated, strict=True):
        check_kept(int(kept.sum()), others, float(r))
    share = _MARGIN * max(fmrs)
    while True:
        floor = estimate_floor(unit, identities, share)
        scores, histograms = _count_scores(unit, mated, floor, order)
        if floor == -np.inf or all(
            _shows_next_lower(histogram, find_turning_place(max(fmrs), others))
            for histogram, others in zip(histograms, kept_non_mated, strict=True)
        ):
            break
        share *= _MARGIN
    ranges = [
        [
            _BinRange.find(histogram, find_turning_place(fmr, others))
            for histogram, others in zip(histograms, kept_non_mated, strict=True)
        ]
        for fmr in fmrs
    ]
    collected = _CollectedScores.collect(unit, mated, floor, order, ranges)
    curves = []
    for fmr, ranges_of_fmr in zip(fmrs, ranges, strict=True):
        windows = [
            ThresholdWindow(collected.select(bins, ratio), bins.above, kept_non_mated[ratio])
            for ratio, bins in enumerate(ranges_of_fmr)
        ]
        t = [find_threshold(mode, window, scores[kept], fmr) for window, kept in zip(windows, kept_mated, strict=True)]
        if mode == "fixed-threshold":
            curves.append(build_step_curve(scores, quality[mated // n], t[0], fmr, kept_non_mated[0]))
            continue
        fnmr = [compute_fnmr(mode, scores[kept], at) for kept, at in zip(kept_mated, t, strict=True)]
        curves.append(Curve(mode, fmr, ratios, np.array(fnmr), np.array(t), len(mated), kept_non_mated[0]))
    return curves


class _DiscardOrder(NamedTuple):
    """The order in which the pairs are discarded. Their images are sorted by quality.

    Attributes:
        get_positions: Keys of pairs -> numbers that rise in this order.
        cuts: [ratios] the position of the first pair that is kept.
    """

    get_positions: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    cuts: NDArray[np.int64]

    def find_last_ratio(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The index of the last ratio at which each pair is kept."""
        return np.searchsorted(self.cuts, self.get_positions(keys), side="right") - 1


def _order_by_both(discarded: list[int], n: int) -> _DiscardOrder:
    """By the worse image, then by the other one. This is the order of the keys."""
    return _DiscardOrder(lambda keys: keys, find_keys(discarded, n))


def _order_by_worse(discarded: list[int], quality: Floats, images: NDArray[np.int64]) -> _DiscardOrder:
    """By the quality of the worse image, then as numpy.triu_indices lists the pairs of the input.

    To find a cut, two sums are inverted: how many pairs have a worse image of lower quality; and, among the pairs of
    one quality, how many the input lists before each image's own.

    Args:
        discarded: How many pairs go at each ratio.
        quality: [N] rising.
        images: [N] the place in the input of each.
    """
    n = len(images)
    level = np.unique(quality, return_inverse=True)[1]

    def combine(level: _Number, first: _Number, second: _Number) -> _Number:
        return (level * n + first) * n + second  # below n^3: int64 is enough for 2 million images

    def get_positions(keys: NDArray[np.int64]) -> NDArray[np.int64]:
        worse, other = np.divmod(keys, n)
        one, two = images[worse], images[other]
        return combine(level[worse], np.minimum(one, two), np.maximum(one, two))

    before = np.append(0, np.cumsum(n - 1 - np.arange(n)))  # pairs whose worse image is worse than each
    level_in_input = np.empty_like(level)
    level_in_input[images] = level
    cuts = []
    for pairs in discarded:
        worst = level[np.searchsorted(before, pairs, side="right") - 1]
        remaining = pairs - before[np.searchsorted(level, worst)]  # of the pairs of this level, how many go
        own, better = level_in_input == worst, level_in_input > worst
        partners = np.where(own, _count_later(own | better), better * _count_later(own))
        ends = np.cumsum(partners)
        first = int(np.searchsorted(ends, remaining, side="right"))
        fitting = own | better if own[first] else own
        second = np.flatnonzero(fitting[first + 1 :])[remaining - ends[first] + partners[first]] + first + 1
        cuts.append(combine(worst, first, second))
    return _DiscardOrder(get_positions, np.array(cuts))


def _count_later(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N] how many flags are set after each place."""
    later: NDArray[np.int64] = flags.sum() - np.cumsum(flags)
    return later


def _count_scores(
    embeddings: NDArray[np.float32], mated: NDArray[np.int64], floor: float, order: _DiscardOrder
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pass 1: the mated scores, and [ratios, bins] how many kept non-mated scores above the floor each bin has."""
    scores, counts = [], np.zeros((len(order.cuts), _BINS), np.int64)
    for block in iterate_blocks(embeddings, mated, floor):
        scores.append(block.mated)
        if len(block.keys):
            last = order.find_last_ratio(block.keys)
            lowest, highest = int(last.min()), int(last.max())
            size = highest + 1 - lowest
            number = np.bincount((last - lowest) * _BINS + _find_bins(block.scores), minlength=size * _BINS)
            counts[lowest : highest + 1] += number.reshape(size, _BINS)
    # A pair counts at its last ratio and at all lower ones.
    return np.concatenate(scores).astype(np.float64), counts[::-1].cumsum(0)[::-1]


def _find_bins(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bin of each score; it never falls when the score rises."""
    bins: NDArray[np.int64] = np.clip((scores + 1) * (_BINS / 2), 0, _BINS - 1).astype(np.int64)
    return bins


def _shows_next_lower(histogram: NDArray[np.int64], place: int) -> bool:
    """Whether a bin that is not empty lies below that of the score at this place, 0 the highest."""
    return bool(histogram[histogram > 0][1:].sum() > place)


class _BinRange(NamedTuple):
    """The bins that hold a `ThresholdWindow`.

    These are the bin of the score at the turning place, the next lower and the next higher bin that are not empty, and
    all between them.

    Attributes:
        first: The lowest bin.
        last: The highest bin.
        above: How many scores lie in higher bins.
    """

    first: int
    last: int
    above: int

    @staticmethod
    def find(histogram: NDArray[np.int64], place: int) -> _BinRange:
        """Find the bins around the score at this place, 0 the highest."""
        bins = np.flatnonzero(histogram)[::-1]
        ends = histogram[bins].cumsum()
        own = int(np.searchsorted(ends, place, side="right"))
        first, last = min(own + 1, len(bins) - 1), max(own - 1, 0)
        return _BinRange(int(bins[first]), int(bins[last]), int(ends[last] - histogram[bins[last]]))


class _CollectedScores(NamedTuple):
    """The non-mated scores in some bins.

    Attributes:
        scores: Rising.
        bins: The bin of each.
        last: The last ratio at which each is kept.
    """

    scores: NDArray[np.float64]
    bins: NDArray[np.int64]
    last: NDArray[np.int64]

    @staticmethod
    def collect(
        embeddings: NDArray[np.float32],
        mated: NDArray[np.int64],
        floor: float,
        order: _DiscardOrder,
        ranges: list[list[_BinRange]],
    ) -> _CollectedScores:
        """Pass 2: collect the scores in the ranges of all FMRs and ratios."""
        wanted = np.zeros(_BINS, dtype=bool)
        for bins in (bins for ranges_of_fmr in ranges for bins in ranges_of_fmr):
            wanted[bins.first : bins.last + 1] = True
        scores, last = [], []
        for block in iterate_blocks(embeddings, mated, floor):
            inside = wanted[_find_bins(block.scores)]
            scores.append(block.scores[inside])
            last.append(order.find_last_ratio(block.keys[inside]))
        rising = np.argsort(found := np.concatenate(scores), kind="stable")
        found = found[rising]
        return _CollectedScores(found.astype(np.float64), _find_bins(found), np.concatenate(last)[rising])

    def select(self, bins: _BinRange, ratio: int) -> NDArray[np.float64]:
        """The scores in a range of bins that are kept at a ratio."""
        return self.scores[(self.last >= ratio) & (self.bins >= bins.first) & (self.bins <= bins.last)]
