"""Error-versus-discard: how the share of false non-matches falls as the pairs of lowest quality are left out.

Said once, for everything in this package. FNMR is the share of the kept mated pairs that fail.

In mode "crfiqa", the rule of CR-FIQA's scripts, with which published figures compare:

* The candidates for t are all kept scores, mated and non-mated; FMR(t) is the share of non-mated scores >= t. Of those
  whose FMR is nearest to the target, below or above it, t is the lowest.
* A mated comparison fails where its score <= t, so one equal to t fails although it would count in FMR(t).
* A pair's quality is the lower of its images' qualities. Pairs are discarded from the lowest on, equal ones in the
  order of the list, a stable sort (of `all_pairs`: as numpy.triu_indices lists them). At ratio r, int(r * P) pairs go,
  r and product as floats.

In all other modes the FMR never exceeds its target:

* A mated comparison fails where its score < t.
* t at a given FMR lies just above the (k+1)-th largest non-mated score, k = floor(FMR * n): the lowest t at which at
  most k of the n non-mated scores are >= t. Scores equal to that score are rejected together. With FMR < 1/n, t lies
  just above the largest; with k >= n it is -infinity.
* Pairs are discarded by their quality as above; equal ones by the other image's quality, then images of equal quality
  by their place in the input. At ratio r, floor(r * P) pairs go.

An FMR below 1/n, n the non-mated pairs before anything is discarded, cannot be measured. Fewer are kept at higher
ratios; where an FMR falls below one in these, the rules above still give a t, and the point stands.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.exceptions import InputError

Mode = Literal["crfiqa", "rethresholded", "fixed-threshold", "normalised"]
RATIOS = np.arange(0, 0.98, 0.05)  # 0 to .95, in the floats of CR-FIQA's scripts
FMRS = (1e-2, 1e-3, 1e-4)
TOO_FEW = "too few pairs"
"""What tables say in place of a number at an FMR that cannot be measured."""
LIMIT = 0.3
"""Of the discard ratios that count for a partial area."""
_EXACT = 1e-9  # .001 * 3000 must count as 3, whatever the float says


class Curve(NamedTuple):
    """One error-versus-discard curve."""

    mode: Mode
    fmr: float
    """The false match rate that the threshold was set for."""
    ratios: NDArray[np.float64]
    """[R] discarded share of the pairs, rising from 0 (fixed-threshold: of the mated pairs)."""
    fnmr: NDArray[np.float64]
    """[R] false non-match rate of the kept pairs, 0 to 1; lower is better."""
    thresholds: NDArray[np.float64]
    """[R] t at each ratio."""
    mated: int
    """Mated pairs before anything is discarded."""
    non_mated: int
    """Non-mated pairs before anything is discarded."""

    @property
    def measurable(self) -> bool:
        """Whether there are enough pairs: false where the FMR is below 1 / non_mated."""
        return allowed(self.fmr, self.non_mated) > 0

    def area(self, limit: float) -> float:
        """The area under the curve up to a discard ratio, by the mode's own rule; lower is better.

        crfiqa, rethresholded: trapezoids over the ratios <= limit, times 1000.
        fixed-threshold: the step curve's area up to limit minus the ideal's, times 1000. The ideal's error at x is
            max(0, f - x), f the error without discard, as in the code of arXiv 2303.13294. No order of the pairs
            reaches it: discarding failing pairs first leaves (f - x) / (1 - x), which is more.
        normalised: trapezoids up to limit over limit * (error without discard); 1 = useless.

        Raises:
            ValueError: limit not in (0, 1]; fewer than two ratios within it; normalised without any error to divide by.
        """
        if not 0 < limit <= 1:
            raise InputError(f"expected an area's limit in (0, 1], got {limit}")
        if self.mode == "fixed-threshold":
            return 1000 * (self._steps(limit) - _ideal_area(float(self.fnmr[0]), limit))
        within = self.ratios <= limit + _EXACT
        if within.sum() < 2:
            raise InputError(f"expected at least two discard ratios up to {limit}, got {within.sum()}")
        x, y = self.ratios[within], self.fnmr[within]
        area = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))
        if self.mode != "normalised":
            return 1000 * area
        if y[0] == 0:
            raise InputError("expected an error to improve on; no mated pair fails without discard: use a lower FMR")
        return area / float(y[0] * x[-1])

    def _steps(self, limit: float) -> float:
        ends = np.minimum(np.append(self.ratios[1:], 1.0), limit)
        return float(np.sum(self.fnmr * np.maximum(ends - self.ratios, 0)))


def _ideal_area(error: float, limit: float) -> float:
    end = min(error, limit)
    return end * (error - end / 2)  # the integral of max(0, error - x)


def allowed(fmr: float, n: int) -> int:
    """How many of n non-mated scores may be >= t: floor(fmr * n)."""
    return int(np.floor(fmr * n + _EXACT))


def turning(fmr: float, n: int) -> int:
    """The place, 0 the highest, of the one of n non-mated scores at which the FMR turns from <= the target to above."""
    return min(allowed(fmr, n), n - 1)


class Around(NamedTuple):
    """Of n non-mated scores those that decide t: the one at `turning`, the next lower and the next higher one that
    differ from it, where there are such, and all that are equal to these or between them. More do no harm."""

    scores: NDArray[np.floating]
    """Rising."""
    above: int
    """How many lie above these."""
    n: int

    @staticmethod
    def of(non_mated: NDArray[np.floating], fmr: float) -> Around:
        """Of scores [n] in any order, n > 0."""
        n = len(non_mated)
        place = n - 1 - turning(fmr, n)
        score = np.partition(non_mated, place)[place]
        lowest = non_mated[non_mated < score].max(initial=-np.inf)
        return Around(np.sort(non_mated[non_mated >= lowest]), 0, n)


def threshold(mode: Mode, around: Around, mated: NDArray[np.floating], fmr: float) -> float:
    """t for the mated scores and the non-mated ones around it."""
    if mode == "crfiqa":
        # Candidates outside of the run get the number of its nearest end, which is farther from the target than the
        # number of a candidate inside: they are never the first of the nearest.
        candidates = np.sort(np.concatenate([around.scores, mated]))
        passing = around.above + len(around.scores) - np.searchsorted(around.scores, candidates)
        return float(candidates[np.argmin(np.abs(passing / around.n - fmr))])
    k = allowed(fmr, around.n)
    return -np.inf if k >= around.n else float(np.nextafter(around.scores[around.above - 1 - k], np.inf))


def failing(mode: Mode, mated: NDArray[np.floating], t: float) -> float:
    """The share of mated scores that fail at t."""
    if mode == "crfiqa":
        return 1 - np.count_nonzero(mated > t) / len(mated)
    return float(np.mean(mated < t))


def ranks(quality: NDArray[np.floating]) -> NDArray[np.int64]:
    """[N] the place of each image when sorted by quality, the worst 0; equal ones keep their order.

    Raises:
        ValueError: quality is not [N] or not finite.
    """
    quality = check_quality(quality)
    places = np.empty(len(quality), np.int64)
    places[np.argsort(quality, kind="stable")] = np.arange(len(quality))
    return places


def check_quality(quality: NDArray[np.floating]) -> NDArray[np.floating]:
    """As an array. Raises ValueError where it is not [N] or not finite."""
    quality = np.asarray(quality)
    if quality.ndim != 1 or not np.isfinite(quality).all():
        raise InputError("expected one finite quality an image; drop images that cannot be assessed first")
    return quality


def discarded_pairs(ratios: NDArray[np.float64], pairs: int, mode: Mode = "rethresholded") -> list[int]:
    """How many go at each ratio. Raises ValueError unless ratios rise from 0 and stay below 1."""
    if not len(ratios) or ratios[0] != 0 or (np.diff(ratios) <= 0).any() or ratios[-1] >= 1:
        raise InputError("expected discard ratios that rise from 0 and stay below 1")
    return [int(r * pairs + (0 if mode == "crfiqa" else _EXACT)) for r in ratios]


def check_pairs(
    scores: NDArray[np.floating], mated: NDArray[np.bool_], pairs: NDArray[np.integer], images: int
) -> tuple[NDArray[np.floating], NDArray[np.bool_], NDArray[np.integer]]:
    """The list as float64, bool and integer arrays. Raises ValueError as error_versus_discard."""
    # Single precision has no number just above a score that double precision calls so.
    scores, mated, pairs = np.asarray(scores, np.float64), np.asarray(mated, dtype=bool), np.asarray(pairs)
    if scores.ndim != 1 or mated.shape != scores.shape or pairs.shape != (len(scores), 2):
        raise InputError(
            f"expected scores [P], mated [P], pairs [P, 2]; got {scores.shape}, {mated.shape}, {pairs.shape}"
        )
    if not np.isfinite(scores).all():
        raise InputError("expected finite comparison scores")
    if len(pairs) and not 0 <= pairs.min() <= pairs.max() < images:
        raise InputError(f"expected pairs of images 0 to {images - 1}, got {pairs.min()} to {pairs.max()}")
    return scores, mated, pairs


def discard_order(
    pairs: NDArray[np.integer], quality: NDArray[np.floating], mode: Mode = "rethresholded"
) -> NDArray[np.int64]:
    """[P] indices of the pairs, the first to be discarded first. Raises ValueError as ranks."""
    if mode == "crfiqa":
        return np.argsort(check_quality(quality)[pairs].min(1), kind="stable")
    both = np.sort(ranks(quality)[pairs], axis=1)
    return np.lexsort((both[:, 1], both[:, 0]))


def ratios_to(limit: float) -> NDArray[np.float64]:
    """RATIOS up to the limit, itself included."""
    return RATIOS[limit + _EXACT >= RATIOS]


def error_versus_discard(
    scores: NDArray[np.floating],
    mated: NDArray[np.bool_],
    pairs: NDArray[np.integer],
    quality: NDArray[np.floating],
    *,
    fmr: float = 1e-3,
    mode: Mode = "rethresholded",
    ratios: NDArray[np.float64] = RATIOS,
) -> Curve:
    """The curve of a list of pairs; for all pairs of many images see `all_pairs`.

    Args:
        scores: [P] similarity, higher = more alike.
        mated: [P] whether both images show one person.
        pairs: [P, 2] indices into quality.
        quality: [N] higher = better.
        fmr: false match rate, in (0, 1).
        mode: see the head of this file. "normalised" has the points of "rethresholded" and another area;
            "fixed-threshold" keeps the threshold of no discard, discards mated pairs only and has a point at every
            quality.
        ratios: [R] for the other modes.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, indices out of range, no mated or non-mated
            pair at the start or left at a ratio.
    """
    check_fmr(fmr)
    scores, mated, pairs = check_pairs(scores, mated, pairs, np.size(quality))
    order = discard_order(pairs, quality, mode)
    scores, mated = scores[order], mated[order]
    if mode == "fixed-threshold":
        check_kept(int(mated.sum()), int((~mated).sum()), 0)
        start = threshold(mode, Around.of(scores[~mated], fmr), scores[mated], fmr)
        worst = np.asarray(quality)[pairs].min(1)[order]
        return steps(scores[mated], worst[mated], start, fmr, int((~mated).sum()))
    thresholds, fnmr = [], []
    for r, cut in zip(ratios, discarded_pairs(ratios, len(scores), mode), strict=True):
        own, others = scores[cut:][mated[cut:]], scores[cut:][~mated[cut:]]
        check_kept(len(own), len(others), r)
        thresholds.append(threshold(mode, Around.of(others, fmr), own, fmr))
        fnmr.append(failing(mode, own, thresholds[-1]))
    return Curve(mode, fmr, ratios, np.array(fnmr), np.array(thresholds), int(mated.sum()), int((~mated).sum()))


def steps(
    mated_scores: NDArray[np.floating], quality: NDArray[np.floating], t: float, fmr: float, non_mated: int
) -> Curve:
    """The step curve of mated pairs: scores [M] and pair qualities [M], sorted by quality, at one threshold."""
    _, first = np.unique(quality, return_index=True)
    fail = np.cumsum((mated_scores < t)[::-1])[::-1]  # from each pair to the last
    kept = len(mated_scores) - first
    ratios, fnmr = first / len(mated_scores), fail[first] / kept
    return Curve("fixed-threshold", fmr, ratios, fnmr, np.full(len(first), t), len(quality), non_mated)


def check_fmr(fmr: float) -> None:
    if not 0 < fmr < 1:
        raise InputError(f"expected a false match rate in (0, 1), got {fmr}")


def check_kept(mated: int, non_mated: int, ratio: float, *, drawn: bool = False) -> None:
    """ValueError where nothing is left to count. drawn: in a draw for intervals."""
    if not mated or not non_mated:
        kind = "non-mated" if mated else "mated"
        where, else_ = (" in a draw for intervals", " or no intervals") if drawn else ("", " or smaller ratios")
        raise InputError(f"no {kind} pair at discard ratio {ratio:g}{where}: use more images an identity,{else_}")
