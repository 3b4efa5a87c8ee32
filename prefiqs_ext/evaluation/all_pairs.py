"""Every image against every other, in memory that does not grow with the number of pairs.

With the images sorted by quality, the upper triangle of their similarities, read row by row, is in discard order. So
the pairs come in blocks of rows and are never sorted. Twice: the first time non-mated scores are counted in a
histogram, the second time those in the bins where a threshold lies are collected, which makes thresholds exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .edc import RATIOS, Curve, Mode, allowed, check_fmr, check_kept, dasec, discarded_pairs, just_above, ranks

_BINS = 1 << 16  # over -1 to 1
_BLOCK = 4_000_000  # scores at a time


class _Block(NamedTuple):
    start: int
    """Place of its first pair in discard order."""
    scores: NDArray[np.float32]
    mated: NDArray[np.bool_]
    row: NDArray[np.int64]
    """[mated pairs] the worse image of each, as its place by quality."""


def all_pairs(
    embeddings: NDArray[np.floating],
    identities: NDArray[np.integer],
    quality: NDArray[np.floating],
    *,
    fmrs: tuple[float, ...] = (1e-2, 1e-3, 1e-4),
    modes: tuple[Mode, ...] = ("fraunhofer",),
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
    order = np.argsort(ranks(quality))
    embeddings, identities = np.asarray(embeddings, np.float32), np.asarray(identities)
    if embeddings.ndim != 2 or not len(embeddings) == len(identities) == len(order):
        raise ValueError(f"expected one embedding, identity and quality an image; got {embeddings.shape}, "
                         f"{identities.shape}, {np.shape(quality)}")  # fmt: skip
    if not np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3):
        raise ValueError("expected L2-normalised embeddings")
    embeddings, identities, quality = embeddings[order], identities[order], np.asarray(quality)[order]
    n = len(order)
    cuts = discarded_pairs(ratios, n * (n - 1) // 2)
    counts = np.zeros((len(cuts), _BINS), np.int64)
    scores, places, rows = [], [], []
    for block in _blocks(embeddings, identities):
        for segment, part in _segments(block, cuts):
            counts[segment] += np.bincount(_bins(block.scores[part][~block.mated[part]]), minlength=_BINS)
        scores.append(block.scores[block.mated])
        places.append(block.start + np.flatnonzero(block.mated))
        rows.append(block.row)
    mated_scores, mated_places = np.concatenate([[], *scores]), np.concatenate([[], *places])
    kept = counts[::-1].cumsum(0)[::-1]  # the histogram at each ratio
    first = np.searchsorted(mated_places, cuts)
    for r, index, histogram in zip(ratios, first, kept, strict=True):
        check_kept(len(mated_scores) - int(index), int(histogram.sum()), float(r))
    thresholds = _thresholds(kept, fmrs, embeddings, identities, cuts)
    non_mated = int(kept[0].sum())
    curves = []
    for mode in modes:
        for fmr, at in zip(fmrs, thresholds, strict=True):
            if mode == "dasec":
                worst = np.asarray(quality)[np.concatenate(rows)]
                curves.append(dasec(mated_scores, worst, float(at[0]), fmr, non_mated))
                continue
            fnmr = [float(np.mean(mated_scores[i:] < t)) for i, t in zip(first, at, strict=True)]
            curves.append(Curve(mode, fmr, ratios, np.array(fnmr), at, len(mated_scores), non_mated))
    return curves


def _blocks(embeddings: NDArray[np.float32], identities: NDArray[np.integer]) -> Iterator[_Block]:
    n, row, start = len(embeddings), 0, 0
    while row < n - 1:
        end = min(n - 1, row + max(1, _BLOCK // (n - row)))
        similar = embeddings[row:end] @ embeddings[row:].T
        upper = np.arange(row, n) > np.arange(row, end)[:, None]
        same = identities[row:end, None] == identities[row:]
        yield _Block(start, similar[upper], same[upper], row + np.nonzero(same & upper)[0])
        start += int(upper.sum())
        row = end


def _segments(block: _Block, cuts: list[int]) -> Iterator[tuple[int, slice]]:
    """The parts of a block between one cut and the next."""
    for segment, (begin, end) in enumerate(zip(cuts, [*cuts[1:], None], strict=True)):
        part = slice(max(0, begin - block.start), None if end is None else max(0, end - block.start))
        if len(block.scores[part]):
            yield segment, part


def _bins(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Never falls as a score rises."""
    bins: NDArray[np.int64] = np.clip((scores + 1) * (_BINS / 2), 0, _BINS - 1).astype(np.int64)
    return bins


def _thresholds(
    kept: NDArray[np.int64],
    fmrs: tuple[float, ...],
    embeddings: NDArray[np.float32],
    identities: NDArray[np.integer],
    cuts: list[int],
) -> NDArray[np.float64]:
    """[fmrs, ratios]: the score in question is the (k+1)-th largest; its bin is known, and how many lie above."""
    wanted = np.zeros(_BINS, dtype=bool)
    targets = {}
    for i, fmr in enumerate(fmrs):
        for j, histogram in enumerate(kept):
            total = int(histogram.sum())
            k = allowed(fmr, total)
            above = np.append(histogram[::-1].cumsum()[::-1], 0)  # at and above each bin
            bin_ = int(np.flatnonzero(above > k)[-1])
            wanted[bin_] = True
            targets[i, j] = bin_, k - int(above[bin_ + 1])
    found, places = [], []
    for block in _blocks(embeddings, identities):
        inside = wanted[_bins(block.scores)] & ~block.mated
        found.append(block.scores[inside])
        places.append(block.start + np.flatnonzero(inside))
    scores, where = np.concatenate(found), np.concatenate(places)
    bins = _bins(scores)
    result = np.empty((len(fmrs), len(cuts)))
    for (i, j), (bin_, k) in targets.items():
        candidates = np.sort(scores[(bins == bin_) & (where >= cuts[j])])
        result[i, j] = just_above(float(candidates[-1 - k]))
    return result
