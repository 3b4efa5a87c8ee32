"""Curves over all pairs of many images, in memory that does not grow with the number of pairs.

What is counted. Every quality puts the pairs of N images in an order in which they are discarded. A pair's position in
that order is a number that follows from the two images alone, so the pairs are never sorted. At each discard ratio a
cut divides the order: pairs before it are discarded, pairs from it on are kept.

Invariants, of every quality and at every ratio:

* discarded + kept mated + kept non-mated = N (N - 1) / 2, the number of all pairs. `count_discarded` gives the first,
  counting the mated pairs from the cut on gives the second, and the third follows.
* The cuts rise with the ratio. So a pair's last ratio, the highest at which it is kept, says at which ratios it counts:
  at all from 0 up to that one.
* The threshold depends on a few non-mated scores only, see `ThresholdWindow`. They lie in a few neighbouring bins of a
  histogram of the scores.

Two passes over the pairs, a block of scores at a time, whatever the number of qualities and FMRs. The first counts the
high non-mated scores in a histogram per quality and ratio, which locates those bins. The second collects the scores in
them, which makes the thresholds exact. Mated scores are kept, all of them.

Complexity: two products of [N, d] by [d, N], that is 2 N^2 d multiplications, and for each quality and each pair above
the floor a binary search among the cuts. Memory: one block, the mated pairs, the pairs in those bins, and R * 65,536
counters for each quality with R ratios.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.array_types import Floats, Integers
from prefiqs_ext.evaluation.discard_order import DiscardOrder
from prefiqs_ext.evaluation.edc import (
    FMRS,
    RATIOS,
    Curve,
    Mode,
    ThresholdWindow,
    build_step_curve,
    check_fmr,
    check_kept,
    check_quality,
    compute_fnmr,
    count_discarded,
    find_threshold,
    find_turning_place,
)
from prefiqs_ext.evaluation.pair_blocks import (
    check_normalised,
    estimate_floor,
    iterate_blocks,
    list_mated_keys,
)
from prefiqs_ext.exceptions import InputError

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
    curves = compute_curves_of_qualities(
        embeddings, identities, {"quality": quality}, fmrs=fmrs, mode=mode, ratios=ratios
    )
    return curves["quality"]


def compute_curves_of_qualities(
    embeddings: Floats,
    identities: Integers,
    qualities: Mapping[str, Floats],
    *,
    fmrs: tuple[float, ...] = FMRS,
    mode: Mode = "rethresholded",
    ratios: NDArray[np.float64] = RATIOS,
) -> dict[str, list[Curve]]:
    """Compute the curves of several qualities. The images are compared once for all of them.

    Args:
        embeddings: [N, d] L2-normalised.
        identities: [N] one number per person.
        qualities: [N] of each method, HIGHER is better.
        fmrs: False match rates, in (0, 1).
        mode: See `edc`.
        ratios: [R] discard ratios, as for `compute_all_pairs_curves`.

    Returns:
        Of each method, one curve per FMR.

    Raises:
        InputError: As compute_all_pairs_curves.
    """
    for fmr in fmrs:
        check_fmr(fmr)
    if mode == "fixed-threshold":  # its threshold is that of no discard
        ratios = ratios[:1]
    unit, identities = np.asarray(embeddings, np.float32), np.asarray(identities)
    for quality in map(check_quality, qualities.values()):
        if unit.ndim != 2 or not len(unit) == len(identities) == len(quality):
            raise InputError(f"expected one embedding, identity and quality per image; got {unit.shape}, "
                             f"{identities.shape}, {quality.shape}")  # fmt: skip
    check_normalised(unit)
    mated = list_mated_keys(identities)
    kept = {name: _Kept.measure(np.asarray(quality), mated, ratios, mode) for name, quality in qualities.items()}
    high = _HighScores.measure(unit, identities, mated, kept, max(fmrs))
    ranges = {
        (name, fmr, ratio): _BinRange.find(high.histograms[name][ratio], find_turning_place(fmr, others))
        for name, of_quality in kept.items()
        for fmr in fmrs
        for ratio, others in enumerate(of_quality.non_mated)
    }
    collected = _CollectedScores.collect(unit, mated, high.floor, ranges.values())
    curves: dict[str, list[Curve]] = {name: [] for name in qualities}
    for name, of_quality in kept.items():
        last = of_quality.order.find_last_ratio(collected.keys)
        for fmr in fmrs:
            t, fnmr = [], []
            for ratio, others in enumerate(of_quality.non_mated):
                bins = ranges[name, fmr, ratio]
                window = ThresholdWindow(collected.select(bins, ratio, last), bins.above, others)
                scores = high.mated[of_quality.last_of_mated >= ratio]
                t.append(find_threshold(mode, window, scores, fmr))
                fnmr.append(compute_fnmr(mode, scores, t[-1]))
            of_all = of_quality.non_mated[0]
            if mode == "fixed-threshold":
                curve = _build_step_curve(high.mated, mated, np.asarray(qualities[name]), t[0], fmr, of_all)
            else:
                curve = Curve(mode, fmr, ratios, np.array(fnmr), np.array(t), len(mated), of_all)
            curves[name].append(curve)
    return curves


def _build_step_curve(
    scores: NDArray[np.float64], mated: NDArray[np.int64], quality: Floats, t: float, fmr: float, non_mated: int
) -> Curve:
    """The curve of mode "fixed-threshold", of mated pairs in any order."""
    worse = quality[np.stack(np.divmod(mated, len(quality)))].min(0)
    order = np.argsort(worse, kind="stable")
    return build_step_curve(scores[order], worse[order], t, fmr, non_mated)


class _Kept(NamedTuple):
    """What one quality keeps at each ratio.

    Attributes:
        order: The order in which it discards.
        last_of_mated: The last ratio at which each mated pair is kept, as an index.
        non_mated: [ratios] how many non-mated pairs are kept.
    """

    order: DiscardOrder
    last_of_mated: NDArray[np.int16]
    non_mated: list[int]

    @staticmethod
    def measure(quality: Floats, mated: NDArray[np.int64], ratios: NDArray[np.float64], mode: Mode) -> _Kept:
        """Measure it, for all pairs of images of this quality [N], of which these keys are the mated ones.

        Raises:
            InputError: No mated or no non-mated pair is left at a ratio.
        """
        pairs = len(quality) * (len(quality) - 1) // 2
        discarded = count_discarded(ratios, pairs, mode)
        order = DiscardOrder.make(quality, discarded, mode)
        last = order.find_last_ratio(mated).astype(np.int16)
        non_mated = []
        for ratio, gone in enumerate(discarded):
            kept = int(np.count_nonzero(last >= ratio))
            non_mated.append(pairs - gone - kept)
            check_kept(kept, non_mated[-1], float(ratios[ratio]))
        return _Kept(order, last, non_mated)


class _HighScores(NamedTuple):
    """What pass 1 found.

    Attributes:
        floor: Non-mated scores above it were counted.
        mated: The mated scores, by rising key.
        histograms: Of each quality, [ratios, bins] how many kept non-mated scores above the floor each bin has.
    """

    floor: float
    mated: NDArray[np.float64]
    histograms: dict[str, NDArray[np.int64]]

    @staticmethod
    def measure(
        embeddings: NDArray[np.float32],
        identities: Integers,
        mated: NDArray[np.int64],
        kept: Mapping[str, _Kept],
        fmr: float,
    ) -> _HighScores:
        """Measure those that decide the thresholds up to this FMR, however often the floor must be lowered for it."""
        share = _MARGIN * fmr
        while True:
            floor = estimate_floor(embeddings, identities, share)
            scores, histograms = _count_scores(embeddings, mated, floor, kept)
            if floor == -np.inf or all(
                _shows_next_lower(histogram, find_turning_place(fmr, others))
                for name, of_quality in kept.items()
                for histogram, others in zip(histograms[name], of_quality.non_mated, strict=True)
            ):
                return _HighScores(floor, scores, histograms)
            share *= _MARGIN


def _count_scores(
    embeddings: NDArray[np.float32], mated: NDArray[np.int64], floor: float, kept: Mapping[str, _Kept]
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
    """Pass 1: the mated scores, and the histograms of each quality."""
    scores = []
    counts = {name: np.zeros(len(of_quality.non_mated) * _BINS, np.int64) for name, of_quality in kept.items()}
    for block in iterate_blocks(embeddings, mated, floor):
        scores.append(block.mated)
        bins = _find_bins(block.scores)
        for name, of_quality in kept.items():
            found = np.bincount(of_quality.order.find_last_ratio(block.keys) * _BINS + bins)
            counts[name][: len(found)] += found
    histograms = {}
    for name, flat in counts.items():
        falling = flat.reshape(-1, _BINS)[::-1]
        np.cumsum(falling, axis=0, out=falling)  # a pair counts at its last ratio and at all lower ones
        histograms[name] = falling[::-1]
    return np.concatenate(scores).astype(np.float64), histograms


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
        keys: The key of each pair.
    """

    scores: NDArray[np.float32]
    bins: NDArray[np.int64]
    keys: NDArray[np.int64]

    @staticmethod
    def collect(
        embeddings: NDArray[np.float32], mated: NDArray[np.int64], floor: float, ranges: Iterable[_BinRange]
    ) -> _CollectedScores:
        """Pass 2: collect the scores in these ranges."""
        wanted = np.zeros(_BINS, dtype=bool)
        for bins in ranges:
            wanted[bins.first : bins.last + 1] = True
        scores, keys = [], []
        for block in iterate_blocks(embeddings, mated, floor):
            inside = wanted[_find_bins(block.scores)]
            scores.append(block.scores[inside])
            keys.append(block.keys[inside])
        rising = np.argsort(found := np.concatenate(scores), kind="stable")
        found = found[rising]
        return _CollectedScores(found, _find_bins(found), np.concatenate(keys)[rising])

    def select(self, bins: _BinRange, ratio: int, last: NDArray[np.int64]) -> NDArray[np.float64]:
        """The scores in a range of bins that are kept at a ratio, by the last ratio of each pair."""
        inside = slice(*np.searchsorted(self.bins, [bins.first, bins.last + 1]))
        return self.scores[inside][last[inside] >= ratio].astype(np.float64)
