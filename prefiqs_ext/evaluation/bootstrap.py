"""How sure is a pAUC? Persons, not pairs, are drawn again: pairs that share a person are not independent.

A draw gives each person a weight w, how often they were drawn, as if each time were another person: a mated pair of
person i counts w_i times, a non-mated one of i and j w_i * w_j times. Curves follow the rules of `edc`
("rethresholded"), where a pair goes, with all its weight, if the weight before it in discard order is below
int(r * total).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.edc import LIMIT, allowed, check_fmr, check_kept, ranks, ratios_to
from prefiqs_ext.evaluation.pair_blocks import blocks, check_normalised, mated_keys, score_floor
from prefiqs_ext.exceptions import InputError

_MOST = 1_000_000  # non-mated pairs to keep


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
    scores: NDArray[np.float32]


class _Cut(NamedTuple):
    """What is left at a ratio."""

    key: int
    """The lowest kept."""
    mated: int
    non_mated: int


class _TailTooShort(Exception):
    pass


def bootstrap(
    embeddings: NDArray[np.floating],
    identities: NDArray[np.integer],
    qualities: Mapping[str, NDArray[np.floating]],
    *,
    fmr: float = 1e-3,
    limit: float = LIMIT,
    resamples: int = 500,
    seed: int = 0,
) -> Resampled:
    """pAUC over all pairs, for draws of persons with replacement.

    Keeps the mated pairs, and of non-mated ones the 4 * fmr that score highest. Where that is more than a million
    (above 7,000 images at 1e-2, 70,000 at 1e-4), a random million of them stands for all. A quarter of it lies above
    the threshold, with weights of mean square 4: the FMR there is off by (4 / 250,000)^.5 = .4 % (measured on 20,000
    synthetic images at 1e-2: .38 %, and pAUC by .24 %, where draws spread it by 3.5 %). A pair takes 20 bytes and 8
    more for each method: 450,000 mated ones (100,000 images, 10 a person) 13 MB with one method, 5 million 140 MB.

    Args:
        embeddings: [N, d] L2-normalised.
        identities: [N] a number a person.
        qualities: [N] of each method, higher = better.
        fmr: false match rate, in (0, 1).
        limit: highest discard ratio.

    Raises:
        ValueError: shapes that do not fit; qualities that are not finite; embeddings that are not of length 1; a draw
            that keeps no mated pair.
    """
    check_fmr(fmr)
    embeddings = np.asarray(embeddings, np.float32)
    persons, who = np.unique(identities, return_inverse=True)
    places = {name: ranks(quality) for name, quality in qualities.items()}
    if not places or any(len(place) != len(who) for place in places.values()) or len(embeddings) != len(who):
        raise InputError("expected as many embeddings as identities, and as many qualities of at least one method")
    check_normalised(embeddings)
    ratios = ratios_to(limit)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(persons), np.full(len(persons), 1 / len(persons)), resamples)
    share = 4 * fmr
    while True:
        mated, tail, taken = _pairs(embeddings, who, share, rng)
        curves = {name: _Curves(who, place, mated, tail, taken, fmr) for name, place in places.items()}
        fnmr = {name: np.empty((resamples, len(ratios))) for name in places}
        try:
            for b, drawn in enumerate(draws):
                weight = drawn[who]
                tail_weight = weight[tail.first] * weight[tail.second]
                for name, curve in curves.items():
                    fnmr[name][b] = curve.fnmr(weight, tail_weight, ratios)
            return resampled(fnmr, ratios)
        except _TailTooShort:
            share *= 4


def resampled(fnmr: Mapping[str, NDArray[np.float64]], ratios: NDArray[np.float64]) -> Resampled:
    """The areas of [B, ratios] of each method."""
    steps = np.diff(ratios)
    pauc = {name: 1000 * ((values[:, 1:] + values[:, :-1]) / 2) @ steps for name, values in fnmr.items()}
    return Resampled(pauc, 1000 * ratios[-1] * next(iter(fnmr.values()))[:, 0])


def _pairs(
    embeddings: NDArray[np.float32], who: NDArray[np.integer], share: float, rng: np.random.Generator
) -> tuple[_Pairs, _Pairs, float]:
    """All mated pairs, by rising score; about the given share of non-mated ones, those of the highest scores, falling,
    or a random part of these; the size of that part, 1 for all."""
    n = len(who)
    mated = mated_keys(who)
    taken = min(1.0, _MOST / max(1, min(1, share) * (n * (n - 1) // 2 - len(mated))))
    own, keys, scores = [], [], []
    for block in blocks(embeddings, mated, score_floor(embeddings, who, share)):
        own.append(block.mated)
        some = slice(None) if taken == 1 else rng.random(len(block.keys)) < taken
        keys.append(block.keys[some])
        scores.append(block.scores[some])
    return _sorted(mated, np.concatenate(own), n), _sorted(np.concatenate(keys), np.concatenate(scores), n, -1), taken


def _sorted(keys: NDArray[np.int64], scores: NDArray[np.float32], n: int, sign: int = 1) -> _Pairs:
    order = np.argsort(sign * scores, kind="stable")
    return _Pairs(*np.divmod(keys[order], n), scores[order])


class _Curves:
    """Of one quality: what does not depend on the draw."""

    def __init__(
        self, who: NDArray[np.integer], place: NDArray[np.int64], mated: _Pairs, tail: _Pairs, taken: float, fmr: float
    ) -> None:
        self._mated, self._tail, self._taken, self._fmr = mated, tail, taken, fmr
        self._mated_key, self._tail_key = _key(mated, place), _key(tail, place)
        self._images = np.argsort(place)
        self._who = who[self._images]
        by_person = np.argsort(self._who, kind="stable")
        ends = np.searchsorted(self._who[by_person], self._who, side="right")
        self._mates = ends - 1 - np.argsort(by_person)  # better images of the same person

    def fnmr(
        self, weight: NDArray[np.int64], tail_weight: NDArray[np.int64], ratios: NDArray[np.float64]
    ) -> list[float]:
        """At each ratio. Weights: [N] of the images, and those of the tail's pairs."""
        fnmr = []
        for r, cut in zip(ratios, self._cuts(weight[self._images], ratios), strict=True):
            check_kept(cut.mated, cut.non_mated, float(r), drawn=True)
            k = int(allowed(self._fmr, cut.non_mated) * self._taken)
            above = np.cumsum(tail_weight * (self._tail_key >= cut.key))
            if not len(above) or above[-1] <= k:
                raise _TailTooShort
            highest = self._tail.scores[np.searchsorted(above, k, side="right")]
            failing = np.searchsorted(self._mated.scores, highest, side="right")  # t lies just above: equal ones fail
            kept = self._mated_key[:failing] >= cut.key
            fnmr.append(float(weight[self._mated.first[:failing][kept]].sum() / cut.mated))
        return fnmr

    def _cuts(self, weight: NDArray[np.int64], ratios: NDArray[np.float64]) -> list[_Cut]:
        """Weight: [N] by rising quality. Row i is the pairs of image i with the better ones; its weight follows from
        sums over images."""
        n = len(weight)
        mated = weight * self._mates
        non_mated = weight * (weight.sum() - np.cumsum(weight) - mated)
        rows, mated_rows = np.cumsum(mated + non_mated), np.cumsum(mated)
        cuts = []
        for r in ratios:
            target = allowed(float(r), int(rows[-1]))
            row = int(np.searchsorted(rows, target, side="right"))
            mate = self._who[row + 1 :] == self._who[row]
            pair = weight[row] * np.where(mate, 1, weight[row + 1 :])
            before = rows[row] - pair.sum() + np.cumsum(pair) - pair
            gone = int(np.searchsorted(before, target))
            kept = int(rows[-1] - rows[row] + pair[gone:].sum())
            kept_mated = int(mated_rows[-1] - mated_rows[row] + pair[gone:][mate[gone:]].sum())
            cuts.append(_Cut(row * n + row + 1 + gone, kept_mated, kept - kept_mated))
        return cuts


def _key(pairs: _Pairs, place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rises in discard order: by the worse image, then the other."""
    first, second = place[pairs.first], place[pairs.second]
    keys: NDArray[np.int64] = np.minimum(first, second) * len(place) + np.maximum(first, second)
    return keys
