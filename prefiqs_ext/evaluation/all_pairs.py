"""Every image against every other, in memory that does not grow with the number of pairs.

With the images sorted by quality, the upper triangle of their similarities, read row by row, is in discard order. So
the pairs come in blocks of rows and are never sorted. Twice: the first time high non-mated scores are counted in a
histogram, the second time those in the bins where a threshold lies are collected, which makes thresholds exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .blocks import blocks, check_normalised, mated_keys, score_floor
from .edc import FMRS, RATIOS, Curve, Mode, allowed, check_fmr, check_kept, discarded_pairs, just_above, ranks, steps

_BINS = 1 << 16  # over -1 to 1
_MARGIN = 4  # of the tail of non-mated scores that is looked at, over the share that the highest FMR needs


def all_pairs(
    embeddings: NDArray[np.floating],
    identities: NDArray[np.integer],
    quality: NDArray[np.floating],
    *,
    fmrs: tuple[float, ...] = FMRS,
    modes: tuple[Mode, ...] = ("rethresholded",),
    ratios: NDArray[np.float64] = RATIOS,
) -> list[Curve]:
    """The curves of all N (N - 1) / 2 pairs, modes first, then FMRs; the same as `error_versus_discard` over them.

    Args:
        embeddings: [N, d] L2-normalised; a score is the float32 dot product.
        identities: [N] a number a person.
        quality: [N] higher = better.

    Raises:
        ValueError: as error_versus_discard; embeddings that are not of length 1.
    """
    for fmr in fmrs:
        check_fmr(fmr)
    if set(modes) == {"fixed-threshold"}:  # whose threshold is that of no discard
        ratios = ratios[:1]
    order = np.argsort(ranks(quality))
    embeddings, identities = np.asarray(embeddings, np.float32), np.asarray(identities)
    if embeddings.ndim != 2 or not len(embeddings) == len(identities) == len(order):
        raise ValueError(f"expected one embedding, identity and quality an image; got {embeddings.shape}, "
                         f"{identities.shape}, {np.shape(quality)}")  # fmt: skip
    check_normalised(embeddings)
    embeddings, identities, quality = embeddings[order], identities[order], np.asarray(quality)[order]
    n = len(order)
    mated = mated_keys(identities)
    gone = discarded_pairs(ratios, n * (n - 1) // 2)
    cuts = _keys(gone, n)
    first = np.searchsorted(mated, cuts)
    kept = [n * (n - 1) // 2 - g - (len(mated) - int(i)) for g, i in zip(gone, first, strict=True)]  # non-mated
    for r, i, others in zip(ratios, first, kept, strict=True):
        check_kept(len(mated) - int(i), others, float(r))
    share = _MARGIN * max(fmrs)
    while True:
        floor = score_floor(embeddings, identities, share)
        mated_scores, counts = _counted(embeddings, mated, floor, cuts)
        if all(tail > allowed(max(fmrs), others) for tail, others in zip(counts.sum(1), kept, strict=True)):
            break
        share *= _MARGIN
    thresholds = _thresholds(counts, kept, fmrs, embeddings, mated, floor, cuts)
    curves = []
    for mode in modes:
        for fmr, at in zip(fmrs, thresholds, strict=True):
            if mode == "fixed-threshold":
                curves.append(steps(mated_scores, quality[mated // n], float(at[0]), fmr, kept[0]))
                continue
            fnmr = [float(np.mean(mated_scores[i:] < t)) for i, t in zip(first, at, strict=True)]
            curves.append(Curve(mode, fmr, ratios, np.array(fnmr), at, len(mated), kept[0]))
    return curves


def _keys(places: list[int], n: int) -> NDArray[np.int64]:
    """Of the pairs at these places in discard order."""
    image = np.arange(n)
    starts = image * (2 * n - image - 1) // 2  # the place of each image's first pair
    row = np.searchsorted(starts, places, side="right") - 1
    keys: NDArray[np.int64] = row * n + row + 1 + places - starts[row]
    return keys


def _counted(
    embeddings: NDArray[np.float32], mated: NDArray[np.int64], floor: float, cuts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores of mated pairs, and [ratios, bins] how many kept non-mated scores above the floor there are."""
    scores, counts = [], np.zeros((len(cuts), _BINS), np.int64)
    for block in blocks(embeddings, mated, floor):
        scores.append(block.mated)
        for segment, part in enumerate(np.split(_bins(block.scores), np.searchsorted(block.keys, cuts[1:]))):
            if len(part):
                counts[segment] += np.bincount(part, minlength=_BINS)
    return np.concatenate(scores).astype(np.float64), counts[::-1].cumsum(0)[::-1]


def _bins(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Never falls as a score rises."""
    bins: NDArray[np.int64] = np.clip((scores + 1) * (_BINS / 2), 0, _BINS - 1).astype(np.int64)
    return bins


def _thresholds(
    counts: NDArray[np.int64],
    kept: list[int],
    fmrs: tuple[float, ...],
    embeddings: NDArray[np.float32],
    mated: NDArray[np.int64],
    floor: float,
    cuts: NDArray[np.int64],
) -> NDArray[np.float64]:
    """[fmrs, ratios]: the score in question is the (k+1)-th largest; its bin is known, and how many lie above."""
    wanted = np.zeros(_BINS, dtype=bool)
    targets = {}
    for j, (histogram, others) in enumerate(zip(counts, kept, strict=True)):
        above = np.append(histogram[::-1].cumsum()[::-1], 0)  # at and above each bin
        for i, fmr in enumerate(fmrs):
            k = allowed(fmr, others)
            bin_ = int(np.flatnonzero(above > k)[-1])
            wanted[bin_] = True
            targets[i, j] = bin_, k - int(above[bin_ + 1])
    found, keys = [], []
    for block in blocks(embeddings, mated, floor):
        inside = wanted[_bins(block.scores)]
        found.append(block.scores[inside])
        keys.append(block.keys[inside])
    scores, where = np.concatenate(found), np.concatenate(keys)
    bins = _bins(scores)
    result = np.empty((len(fmrs), len(cuts)))
    for (i, j), (bin_, k) in targets.items():
        candidates = np.sort(scores[(bins == bin_) & (where >= cuts[j])])
        result[i, j] = just_above(float(candidates[-1 - k]))
    return result
