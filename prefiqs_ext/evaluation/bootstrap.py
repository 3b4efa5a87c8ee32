"""How certain is a pAUC over all pairs? Persons are drawn again, because pairs that share a person are not independent.

What is counted. A draw takes as many persons as there are, with replacement. The weight w_p of person p is how often
the person was drawn, and each time counts as another person. So a mated pair of person p has the weight w_p, a
non-mated pair of p and q has w_p * w_q, and two copies of one person form no pair. All counts below are sums of
weights.

Curves follow the rules of `edc`, mode "rethresholded". A pair is discarded with all its weight if the weight before it
in discard order is below floor(r * total). The kept weight is therefore the total from the cut on.

Invariants, in each draw and at each ratio:

* discarded + kept mated + kept non-mated = total, the weight of all pairs.
* The images are sorted by quality. The row of image i has its pairs with the better images. Its mated weight is
  w_i * (better images of the same person), and its non-mated weight is w_i * (weight of the better images of other
  persons). Both follow from sums over images, without a list of pairs.

Complexity: the scores are computed once, for all methods and FMRs. A draw then costs, for each method, FMR and ratio,
O(N) for the cut and O(T) for the threshold, where T is the number of non-mated pairs that are kept in memory (at most
about a million), and O(M) for the mated pairs that fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.array_types import Floats, Integers
from prefiqs_ext.evaluation.edc import LIMIT, check_fmr, check_kept, count_allowed, rank_images, select_ratios
from prefiqs_ext.evaluation.pair_blocks import check_normalised, estimate_floor, iterate_blocks, list_mated_keys
from prefiqs_ext.exceptions import InputError

# Non-mated pairs in memory: 20 bytes each and 8 more per method. resample_persons says what the sample does to the FMR.
_MOST = 1_000_000


class BootstrapDraws(NamedTuple):
    """The pAUC in each draw. The draws are the same for all methods, so differences between the arrays are paired.

    Attributes:
        pauc: [B] of each method, times 1000, up to the limit, LOWER is better.
        useless: [B] pAUC of a quality that does not help: limit * 1000 * FNMR without discard.
    """

    pauc: dict[str, NDArray[np.float64]]
    useless: NDArray[np.float64]

    def interval(self, method: str, other: str | None = None, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of pAUC(method) - pAUC(other), or - useless without other.

        The method is better if the whole interval lies below 0.
        """
        tail = 50 * (1 - level)
        difference = self.pauc[method] - (self.useless if other is None else self.pauc[other])
        low, high = np.percentile(difference, [tail, 100 - tail])
        return float(low), float(high)


class _Pairs(NamedTuple):
    """Pairs of images first < second, sorted by score."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    scores: NDArray[np.float32]


class _KeyCut(NamedTuple):
    """What is kept at a ratio.

    Attributes:
        key: The lowest key that is kept, see `_compute_keys`.
        mated: The weight of the kept mated pairs.
        non_mated: The weight of the kept non-mated pairs.
    """

    key: int
    mated: int
    non_mated: int


class _TailTooShortError(Exception):
    """The threshold lies below the non-mated scores that were kept in memory."""


def resample_persons(
    embeddings: Floats,
    identities: Integers,
    qualities: Mapping[str, Floats],
    *,
    fmrs: Sequence[float] = (1e-3,),
    limit: float = LIMIT,
    resamples: int = 500,
    seed: int = 0,
) -> dict[float, BootstrapDraws]:
    """Compute pAUC over all pairs for draws of persons with replacement.

    The mated pairs stay in memory, and of the non-mated ones, for each FMR, the share 4 * fmr that scores highest. If
    that is more than a million pairs (above 7,000 images at FMR 1e-2, 70,000 at 1e-4), a random million of them stands
    for all. A quarter of it lies above the threshold, with weights of mean square 4. The FMR there is off by
    (4 / 250,000)^.5 = .4 %. Measured on 20,000 synthetic images at FMR 1e-2: .38 %, and pAUC off by .24 %, while the
    draws spread it by 3.5 %.

    A pair takes 20 bytes, and 8 more per method: 450,000 mated pairs (100,000 images, 10 per person) take 13 MB with
    one method, 5 million take 140 MB. Only one FMR at a time takes the bytes per method.

    Args:
        embeddings: [N, d] L2-normalised.
        identities: [N] one number per person.
        qualities: [N] of each method, HIGHER is better.
        fmrs: False match rates, in (0, 1).
        limit: The highest discard ratio.
        resamples: B, the number of draws.
        seed: Of the draws, which are the same for every FMR.

    Returns:
        The draws of each FMR.

    Raises:
        InputError: Shapes that do not fit; qualities that are not finite; embeddings that are not of length 1; a draw
            that keeps no mated or no non-mated pair.
    """
    for fmr in fmrs:
        check_fmr(fmr)
    unit = np.asarray(embeddings, np.float32)
    persons, person_of = np.unique(identities, return_inverse=True)
    ranks = {name: rank_images(quality) for name, quality in qualities.items()}
    if not ranks or any(len(rank) != len(person_of) for rank in ranks.values()) or len(unit) != len(person_of):
        raise InputError("expected as many embeddings as identities, and as many qualities of at least one method")
    check_normalised(unit)
    ratios = select_ratios(limit)
    chances = np.full(len(persons), 1 / len(persons))
    tails: dict[float, _TailRule] = {}
    for fmr in fmrs:
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(len(persons), chances, resamples)
        tails[fmr] = _TailRule(4 * fmr, rng)
    found: dict[float, BootstrapDraws] = {}
    while left := {fmr: tail for fmr, tail in tails.items() if fmr not in found}:
        mated, kept = _collect_pairs(unit, person_of, left)
        for fmr, (tail, sampled) in kept.items():
            curves = {name: _PersonCurve(person_of, rank, mated, tail, sampled, fmr) for name, rank in ranks.items()}
            fnmr = {name: np.empty((resamples, len(ratios))) for name in ranks}
            try:
                for b, weights_of_persons in enumerate(draws):
                    weights = weights_of_persons[person_of]
                    tail_weights = weights[tail.first] * weights[tail.second]
                    for name, curve in curves.items():
                        fnmr[name][b] = curve.compute_fnmr(weights, tail_weights, ratios)
                found[fmr] = compute_areas(fnmr, ratios)
            except _TailTooShortError:
                tails[fmr] = tails[fmr]._replace(share=4 * tails[fmr].share)
    return found


def compute_areas(fnmr: Mapping[str, NDArray[np.float64]], ratios: NDArray[np.float64]) -> BootstrapDraws:
    """Integrate the FNMR [B, ratios] of each method over the ratios, by trapezoids."""
    widths = np.diff(ratios)
    pauc = {name: 1000 * ((values[:, 1:] + values[:, :-1]) / 2) @ widths for name, values in fnmr.items()}
    return BootstrapDraws(pauc, 1000 * ratios[-1] * next(iter(fnmr.values()))[:, 0])


class _TailRule(NamedTuple):
    """Which non-mated pairs stay in memory for one FMR.

    Attributes:
        share: Of all non-mated pairs, those with the highest scores.
        rng: Draws a sample of these, if they are too many.
    """

    share: float
    rng: np.random.Generator


def _collect_pairs(
    embeddings: NDArray[np.float32], person_of: Integers, rules: Mapping[float, _TailRule]
) -> tuple[_Pairs, dict[float, tuple[_Pairs, float]]]:
    """Collect the pairs that stay in memory, for all FMRs in one pass.

    Returns:
        All mated pairs, by rising score. For each FMR, about the given share of the non-mated pairs, those with the
        highest scores, or a random sample of these, by falling score; and the size of that sample relative to these
        pairs, 1 for all.
    """
    n = len(person_of)
    mated = list_mated_keys(person_of)
    non_mated = n * (n - 1) // 2 - len(mated)
    sampled = {fmr: min(1.0, _MOST / max(1, min(1, rule.share) * non_mated)) for fmr, rule in rules.items()}
    floors = {fmr: estimate_floor(embeddings, person_of, rule.share) for fmr, rule in rules.items()}
    mated_scores: list[NDArray[np.float32]] = []
    keys: dict[float, list[NDArray[np.int64]]] = {fmr: [] for fmr in rules}
    scores: dict[float, list[NDArray[np.float32]]] = {fmr: [] for fmr in rules}
    for block in iterate_blocks(embeddings, mated, min(floors.values())):
        mated_scores.append(block.mated)
        for fmr, rule in rules.items():
            some = np.flatnonzero(block.scores > floors[fmr])
            if sampled[fmr] < 1:
                some = some[rule.rng.random(len(some)) < sampled[fmr]]
            keys[fmr].append(block.keys[some])
            scores[fmr].append(block.scores[some])
    tails = {
        fmr: (_sort_pairs(np.concatenate(keys[fmr]), np.concatenate(scores[fmr]), n, -1), sampled[fmr]) for fmr in rules
    }
    return _sort_pairs(mated, np.concatenate(mated_scores), n), tails


def _sort_pairs(keys: NDArray[np.int64], scores: NDArray[np.float32], n: int, sign: int = 1) -> _Pairs:
    order = np.argsort(sign * scores, kind="stable")
    return _Pairs(*np.divmod(keys[order], n), scores[order])


class _PersonCurve:
    """The curve of one quality, for any weights. The constructor computes what does not depend on the draw.

    Args:
        person_of: [N] the person of each image.
        rank: [N] the rank of each image by quality, the worst 0.
        mated: All mated pairs, by rising score.
        tail: Non-mated pairs with the highest scores, by falling score.
        sampled: The share of these pairs that `tail` has.
        fmr: False match rate, in (0, 1).
    """

    def __init__(
        self,
        person_of: Integers,
        rank: NDArray[np.int64],
        mated: _Pairs,
        tail: _Pairs,
        sampled: float,
        fmr: float,
    ) -> None:
        self._mated, self._tail, self._sampled, self._fmr = mated, tail, sampled, fmr
        self._mated_keys, self._tail_keys = _compute_keys(mated, rank), _compute_keys(tail, rank)
        self._images = np.argsort(rank)
        self._persons = person_of[self._images]
        by_person = np.argsort(self._persons, kind="stable")
        ends = np.searchsorted(self._persons[by_person], self._persons, side="right")
        self._better_mates = ends - 1 - np.argsort(by_person)  # better images of the same person

    def compute_fnmr(
        self, weights: NDArray[np.int64], tail_weights: NDArray[np.int64], ratios: NDArray[np.float64]
    ) -> list[float]:
        """Compute the FNMR at each ratio.

        Args:
            weights: [N] of the images.
            tail_weights: Of the pairs of the tail.
            ratios: Discard ratios.
        """
        fnmr = []
        for r, cut in zip(ratios, self._find_cuts(weights[self._images], ratios), strict=True):
            check_kept(cut.mated, cut.non_mated, float(r), drawn=True)
            k = int(count_allowed(self._fmr, cut.non_mated) * self._sampled)
            passing = self._sum_passing(tail_weights, cut, k)
            highest = self._tail.scores[np.searchsorted(passing, k, side="right")]
            failing = np.searchsorted(self._mated.scores, highest, side="right")  # t lies just above: equal ones fail
            kept = self._mated_keys[:failing] >= cut.key
            fnmr.append(float(weights[self._mated.first[:failing][kept]].sum() / cut.mated))
        return fnmr

    def _sum_passing(self, tail_weights: NDArray[np.int64], cut: _KeyCut, k: int) -> NDArray[np.int64]:
        """Cumulated weights of the kept non-mated pairs by falling score, at least until they exceed k."""
        whole = len(tail_weights)
        for end in (whole // 2, whole):  # half of them is twice what is expected to be enough
            passing = np.cumsum(tail_weights[:end] * (self._tail_keys[:end] >= cut.key))
            if len(passing) and passing[-1] > k:
                return passing
        raise _TailTooShortError

    def _find_cuts(self, weights: NDArray[np.int64], ratios: NDArray[np.float64]) -> list[_KeyCut]:
        """Find the cut at each ratio: first its row by the sums over rows, then its pair inside the row.

        Args:
            weights: [N] of the images, by rising quality.
            ratios: Discard ratios.
        """
        n = len(weights)
        mated = weights * self._better_mates
        non_mated = weights * (weights.sum() - np.cumsum(weights) - mated)
        row_ends, mated_row_ends = np.cumsum(mated + non_mated), np.cumsum(mated)  # weights up to each row's end
        cuts = []
        for r in ratios:
            target = count_allowed(float(r), int(row_ends[-1]))
            row = int(np.searchsorted(row_ends, target, side="right"))
            is_mate = self._persons[row + 1 :] == self._persons[row]
            pair_weights = weights[row] * np.where(is_mate, 1, weights[row + 1 :])
            before = row_ends[row] - pair_weights.sum() + np.cumsum(pair_weights) - pair_weights
            discarded = int(np.searchsorted(before, target))  # pairs of this row
            kept = int(row_ends[-1] - row_ends[row] + pair_weights[discarded:].sum())
            kept_mated = int(
                mated_row_ends[-1] - mated_row_ends[row] + pair_weights[discarded:][is_mate[discarded:]].sum()
            )
            cuts.append(_KeyCut(row * n + row + 1 + discarded, kept_mated, kept - kept_mated))
        return cuts


def _compute_keys(pairs: _Pairs, rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers that rise in discard order: by the worse image of a pair, then by the other one."""
    first, second = rank[pairs.first], rank[pairs.second]
    keys: NDArray[np.int64] = np.minimum(first, second) * len(rank) + np.maximum(first, second)
    return keys
