"""How sure is a pAUC? Persons, not pairs, are drawn again: pairs that share a person are not independent.

A draw gives each person a weight w, how often they were drawn, as if each time were another person: a mated pair of
person i counts w_i times, a non-mated one of i and j w_i * w_j times. Curves follow the rules of `edc` ("fraunhofer"),
where a pair goes, with all its weight, if the weight before it in discard order is below int(r * total).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .edc import RATIOS, allowed, check_fmr, check_kept, just_above, ranks

_ROWS = 256  # of the similarity matrix at a time


class Resampled(NamedTuple):
    """The same draws for all methods, so that differences between its arrays are paired."""

    pauc: dict[str, NDArray[np.float64]]
    """[B] of each method, times 1000, up to the limit; lower is better."""
    useless: NDArray[np.float64]
    """[B] what a quality that does not help has: limit * 1000 * FNMR without discard."""

    def interval(self, method: str, other: str | None = None, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of pAUC(method) - pAUC(other), or - useless; wholly below 0: method is better."""
        tail = 50 * (1 - level)
        difference = self.pauc[method] - (self.useless if other is None else self.pauc[other])
        low, high = np.percentile(difference, [tail, 100 - tail])
        return float(low), float(high)


class _Pairs(NamedTuple):
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    scores: NDArray[np.float64]


class _TailTooShort(Exception):
    pass


def bootstrap(
    embeddings: NDArray[np.floating],
    identities: NDArray[np.integer],
    qualities: Mapping[str, NDArray[np.floating]],
    *,
    fmr: float = 1e-3,
    limit: float = 0.3,
    resamples: int = 500,
    seed: int = 0,
) -> Resampled:
    """pAUC over all pairs, for draws of persons with replacement.

    Keeps 4 * fmr of the non-mated pairs or more (24 bytes each): 2.5 MB for 2,284 images at 1e-2, 5 GB for 100,000.

    Args:
        embeddings: [N, d] L2-normalised.
        identities: [N] a number a person.
        qualities: [N] of each method, higher = better.
        fmr: false match rate, in (0, 1).
        limit: highest discard ratio.

    Raises:
        ValueError: shapes that do not fit; qualities that are not finite; a draw that keeps no mated pair.
    """
    check_fmr(fmr)
    embeddings = np.asarray(embeddings, np.float32)
    persons, who = np.unique(identities, return_inverse=True)
    places = {name: ranks(quality) for name, quality in qualities.items()}
    if not places or any(len(place) != len(who) for place in places.values()) or len(embeddings) != len(who):
        raise ValueError("expected as many embeddings as identities, and as many qualities of at least one method")
    ratios = RATIOS[limit + 1e-9 >= RATIOS]
    weights = np.random.default_rng(seed).multinomial(len(persons), np.full(len(persons), 1 / len(persons)), resamples)
    share = 4 * fmr
    while True:
        mated, tail = _pairs(embeddings, who, share)
        try:
            curves = {
                name: np.array([_curve(drawn, who, place, mated, tail, ratios, fmr) for drawn in weights])
                for name, place in places.items()
            }
            break
        except _TailTooShort:
            share *= 4
    steps = np.diff(ratios)
    pauc = {name: 1000 * ((fnmr[:, 1:] + fnmr[:, :-1]) / 2) @ steps for name, fnmr in curves.items()}
    return Resampled(pauc, 1000 * ratios[-1] * next(iter(curves.values()))[:, 0])


def _pairs(embeddings: NDArray[np.float32], who: NDArray[np.integer], share: float) -> tuple[_Pairs, _Pairs]:
    """All mated pairs, and the given share of non-mated ones or more, those of the highest scores, falling."""
    n = len(who)
    floor = -np.inf
    if share < 1:
        some = np.random.default_rng(0).integers(0, n, (2, 200_000))
        floor = float(np.quantile(np.einsum("nd,nd->n", embeddings[some[0]], embeddings[some[1]]), 1 - share))
    kinds: tuple[list[_Pairs], list[_Pairs]] = ([], [])
    for row in range(0, n, _ROWS):
        scores = embeddings[row : row + _ROWS] @ embeddings[row:].T
        upper = np.arange(row, n) > np.arange(row, row + len(scores))[:, None]
        same = who[row : row + _ROWS, None] == who[row:]
        for found, kind in zip((upper & same, upper & ~same & (scores >= floor)), kinds, strict=True):
            first, second = np.nonzero(found)
            kind.append(_Pairs(first + row, second + row, scores[found].astype(np.float64)))
    mated, tail = (
        _Pairs(*(np.concatenate([getattr(part, name) for part in kind]) for name in _Pairs._fields)) for kind in kinds
    )
    falling = np.argsort(-tail.scores, kind="stable")
    return mated, _Pairs(tail.first[falling], tail.second[falling], tail.scores[falling])


def _curve(
    drawn: NDArray[np.integer],
    who: NDArray[np.integer],
    place: NDArray[np.int64],
    mated: _Pairs,
    tail: _Pairs,
    ratios: NDArray[np.float64],
    fmr: float,
) -> list[float]:
    """FNMR at each ratio, for persons drawn so many times."""
    mated_weight, tail_weight = drawn[who[mated.first]], drawn[who[tail.first]] * drawn[who[tail.second]]
    mated_key, tail_key = _key(mated, place), _key(tail, place)
    fnmr = []
    for r, (cut, kept) in zip(ratios, _cuts(drawn, who[np.argsort(place)], ratios), strict=True):
        present = mated_weight * (mated_key >= cut)
        check_kept(int(present.sum()), kept, float(r))
        k = allowed(fmr, kept)
        above = np.cumsum(tail_weight * (tail_key >= cut))
        if not len(above) or above[-1] <= k:
            raise _TailTooShort
        t = just_above(float(tail.scores[np.searchsorted(above, k, side="right")]))
        fnmr.append(float(present[mated.scores < t].sum() / present.sum()))
    return fnmr


def _key(pairs: _Pairs, place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rises in discard order: by the worse image, then the other."""
    first, second = place[pairs.first], place[pairs.second]
    keys: NDArray[np.int64] = np.minimum(first, second) * len(place) + np.maximum(first, second)
    return keys


def _cuts(drawn: NDArray[np.integer], who: NDArray[np.integer], ratios: NDArray[np.float64]) -> list[tuple[int, int]]:
    """For each ratio the lowest key kept and the weight of kept non-mated pairs; who: [N] persons by rising quality.

    Row i is the pairs of image i with the better ones; its weight follows from sums over images.
    """
    n = len(who)
    weight = drawn[who].astype(np.int64)
    later = weight.sum() - np.cumsum(weight)
    by_person = np.argsort(who, kind="stable")
    ends = np.searchsorted(who[by_person], who, side="right")
    same = ends - 1 - np.argsort(by_person)  # better images of the same person
    non_mated = weight * (later - same * weight)
    rows = np.cumsum(non_mated + weight * same)
    before = np.cumsum(non_mated) - non_mated
    cuts = []
    for r in ratios:
        target = allowed(float(r), int(rows[-1]))
        row = int(np.searchsorted(rows, target, side="right"))
        mate = who[row + 1 :] == who[row]
        pair = weight[row] * np.where(mate, 1, weight[row + 1 :])
        start = int(rows[row - 1]) if row else 0
        gone = int(np.sum(start + np.cumsum(pair) - pair < target))
        discarded = int(before[row]) + int(pair[:gone][~mate[:gone]].sum())
        cuts.append((row * n + row + 1 + gone, int(non_mated.sum()) - discarded))
    return cuts
