"""Every image against every other, in memory that does not grow with the number of pairs.

With the images sorted by quality, the upper triangle of their similarities, read row by row, is in discard order, or
nearly so. So the pairs come in blocks of rows and are never sorted. Twice: the first time high non-mated scores are
counted in a histogram, the second time those in the bins around a threshold are collected, which makes thresholds
exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.edc import (
    FMRS,
    RATIOS,
    Around,
    Curve,
    Mode,
    check_fmr,
    check_kept,
    discarded_pairs,
    failing,
    ranks,
    steps,
    threshold,
    turning,
)
from prefiqs_ext.evaluation.pair_blocks import blocks, check_normalised, mated_keys, score_floor
from prefiqs_ext.exceptions import InputError

_BINS = 1 << 16  # over -1 to 1
_MARGIN = 4  # of the tail of non-mated scores that is looked at, over the share that the highest FMR needs


def all_pairs(
    embeddings: NDArray[np.floating],
    identities: NDArray[np.integer],
    quality: NDArray[np.floating],
    *,
    fmrs: tuple[float, ...] = FMRS,
    mode: Mode = "rethresholded",
    ratios: NDArray[np.float64] = RATIOS,
) -> list[Curve]:
    """The curves of all N (N - 1) / 2 pairs, one an FMR; the same as `error_versus_discard` over them.

    A score is the float32 dot product, which is off by about 1e-7, and not the same for every shape of block: where a
    mated score is that near to a non-mated one, it may count on the other side of it than in double precision.

    Args:
        embeddings: [N, d] L2-normalised.
        identities: [N] a number a person.
        quality: [N] higher = better.

    Raises:
        ValueError: as error_versus_discard; embeddings that are not of length 1.
    """
    for fmr in fmrs:
        check_fmr(fmr)
    if mode == "fixed-threshold":  # that of no discard
        ratios = ratios[:1]
    images = np.argsort(ranks(quality))
    embeddings, identities = np.asarray(embeddings, np.float32), np.asarray(identities)
    if embeddings.ndim != 2 or not len(embeddings) == len(identities) == len(images):
        raise InputError(f"expected one embedding, identity and quality an image; got {embeddings.shape}, "
                         f"{identities.shape}, {np.shape(quality)}")  # fmt: skip
    check_normalised(embeddings)
    embeddings, identities, quality = embeddings[images], identities[images], np.asarray(quality)[images]
    n = len(images)
    mated = mated_keys(identities)
    gone = discarded_pairs(ratios, n * (n - 1) // 2, mode)
    order = _by_worse(gone, quality, images) if mode == "crfiqa" else _by_both(gone, n)
    places = order.places(mated)
    own = [places >= cut for cut in order.cuts]
    others = [n * (n - 1) // 2 - g - int(kept.sum()) for g, kept in zip(gone, own, strict=True)]
    for r, kept, left in zip(ratios, own, others, strict=True):
        check_kept(int(kept.sum()), left, float(r))
    share = _MARGIN * max(fmrs)
    while True:
        floor = score_floor(embeddings, identities, share)
        scores, counts = _counted(embeddings, mated, floor, order)
        if floor == -np.inf or all(
            _reaches(c, turning(max(fmrs), left)) for c, left in zip(counts, others, strict=True)
        ):
            break
        share *= _MARGIN
    runs = [[_Run.of(c, turning(fmr, left)) for c, left in zip(counts, others, strict=True)] for fmr in fmrs]
    tails = _Tails.of(embeddings, mated, floor, order, runs)
    curves = []
    for fmr, of_fmr in zip(fmrs, runs, strict=True):
        arounds = [Around(tails.scores_of(run, j), run.above, others[j]) for j, run in enumerate(of_fmr)]
        t = [threshold(mode, around, scores[kept], fmr) for around, kept in zip(arounds, own, strict=True)]
        if mode == "fixed-threshold":
            curves.append(steps(scores, quality[mated // n], t[0], fmr, others[0]))
            continue
        fnmr = [failing(mode, scores[kept], at) for kept, at in zip(own, t, strict=True)]
        curves.append(Curve(mode, fmr, ratios, np.array(fnmr), np.array(t), len(mated), others[0]))
    return curves


class _Order(NamedTuple):
    """In what order the pairs of images that are sorted by quality are discarded."""

    places: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    """Of pairs by their keys: numbers that rise in that order."""
    cuts: NDArray[np.int64]
    """[ratios] the place of the first pair that is kept."""

    def last(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The last ratio, by index, at which each pair is kept."""
        return np.searchsorted(self.cuts, self.places(keys), side="right") - 1


def _by_both(gone: list[int], n: int) -> _Order:
    """By the worse image, then by the other one: that of the keys."""
    image = np.arange(n)
    starts = image * (2 * n - image - 1) // 2  # how many pairs lie before each image's first
    row = np.searchsorted(starts, gone, side="right") - 1
    return _Order(lambda keys: keys, row * n + row + 1 + gone - starts[row])


def _by_worse(gone: list[int], quality: NDArray[np.floating], images: NDArray[np.int64]) -> _Order:
    """By the quality of the worse image, then as numpy.triu_indices lists the pairs.

    Args:
        quality: [N] rising.
        images: [N] the place in the input of each.
    """
    n = len(images)
    level = np.unique(quality, return_inverse=True)[1]

    def place(level: Any, first: Any, second: Any) -> Any:
        return (level * n + first) * n + second  # below n^3: up to 2 million images

    def places(keys: NDArray[np.int64]) -> NDArray[np.int64]:
        worse, other = np.divmod(keys, n)
        one, two = images[worse], images[other]
        found: NDArray[np.int64] = place(level[worse], np.minimum(one, two), np.maximum(one, two))
        return found

    before = np.append(0, np.cumsum(n - 1 - np.arange(n)))  # pairs of worse images than each
    of_input = np.empty_like(level)
    of_input[images] = level
    cuts = []
    for pairs in gone:
        worst = level[np.searchsorted(before, pairs, side="right") - 1]
        left = pairs - before[np.searchsorted(level, worst)]  # that go of those whose worse image is of this level
        own, better = of_input == worst, of_input > worst
        partners = np.where(own, _later(own | better), better * _later(own))
        ends = np.cumsum(partners)
        first = int(np.searchsorted(ends, left, side="right"))
        fitting = own | better if own[first] else own
        second = np.flatnonzero(fitting[first + 1 :])[left - ends[first] + partners[first]] + first + 1
        cuts.append(place(worst, first, second))
    return _Order(places, np.array(cuts))


def _later(which: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N] how many of these come after each."""
    later: NDArray[np.int64] = which.sum() - np.cumsum(which)
    return later


def _counted(
    embeddings: NDArray[np.float32], mated: NDArray[np.int64], floor: float, order: _Order
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores of mated pairs, and [ratios, bins] how many kept non-mated scores above the floor there are."""
    scores, counts = [], np.zeros((len(order.cuts), _BINS), np.int64)
    for block in blocks(embeddings, mated, floor):
        scores.append(block.mated)
        if len(block.keys):
            last = order.last(block.keys)
            lowest, highest = int(last.min()), int(last.max())
            size = highest + 1 - lowest
            number = np.bincount((last - lowest) * _BINS + _bins(block.scores), minlength=size * _BINS)
            counts[lowest : highest + 1] += number.reshape(size, _BINS)
    return np.concatenate(scores).astype(np.float64), counts[::-1].cumsum(0)[::-1]


def _bins(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Never falls as a score rises."""
    bins: NDArray[np.int64] = np.clip((scores + 1) * (_BINS / 2), 0, _BINS - 1).astype(np.int64)
    return bins


def _reaches(histogram: NDArray[np.int64], place: int) -> bool:
    """Whether a bin that is not empty lies below that of the score at this place, 0 the highest."""
    return bool(histogram[histogram > 0][1:].sum() > place)


class _Run(NamedTuple):
    """The bin of a score, the next lower and the next higher one that are not empty, and those between."""

    first: int
    last: int
    above: int
    """How many scores lie in higher bins."""

    @staticmethod
    def of(histogram: NDArray[np.int64], place: int) -> _Run:
        """Of the score at this place, 0 the highest."""
        bins = np.flatnonzero(histogram)[::-1]
        ends = histogram[bins].cumsum()
        own = int(np.searchsorted(ends, place, side="right"))
        first, last = min(own + 1, len(bins) - 1), max(own - 1, 0)
        return _Run(int(bins[first]), int(bins[last]), int(ends[last] - histogram[bins[last]]))


class _Tails(NamedTuple):
    """The non-mated scores in some bins, rising."""

    scores: NDArray[np.float64]
    bins: NDArray[np.int64]
    last: NDArray[np.int64]
    """The last ratio at which each is kept."""

    @staticmethod
    def of(
        embeddings: NDArray[np.float32],
        mated: NDArray[np.int64],
        floor: float,
        order: _Order,
        runs: list[list[_Run]],
    ) -> _Tails:
        """Those of the runs."""
        wanted = np.zeros(_BINS, dtype=bool)
        for run in (run for of_fmr in runs for run in of_fmr):
            wanted[run.first : run.last + 1] = True
        scores, last = [], []
        for block in blocks(embeddings, mated, floor):
            inside = wanted[_bins(block.scores)]
            scores.append(block.scores[inside])
            last.append(order.last(block.keys[inside]))
        rising = np.argsort(found := np.concatenate(scores), kind="stable")
        found = found[rising]
        return _Tails(found.astype(np.float64), _bins(found), np.concatenate(last)[rising])

    def scores_of(self, run: _Run, ratio: int) -> NDArray[np.float64]:
        """Of a run, those kept at a ratio."""
        return self.scores[(self.last >= ratio) & (self.bins >= run.first) & (self.bins <= run.last)]
