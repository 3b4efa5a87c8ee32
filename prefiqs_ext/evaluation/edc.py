"""Error-versus-discard: how the share of false non-matches falls as the pairs of lowest quality are left out.

The rules are stated here once, for the whole package.

Mode "crfiqa" is the rule of CR-FIQA's scripts (github.com/fdbtrs/CR-FIQA, evaluation/ERC). Published figures follow it:

* The candidates for the threshold t are all kept scores, mated and non-mated. FMR(t) is the share of non-mated scores
  >= t. Of the candidates whose FMR is nearest to the target, below or above it, t is the lowest.
* A mated comparison fails if its score <= t. So a score equal to t fails, although it would count in FMR(t).
* The quality of a pair is the lower of its images' qualities. Pairs are discarded from the lowest quality on. Pairs of
  equal quality go in the order of the list, as in a stable sort (all pairs: in the order of numpy.triu_indices). At
  ratio r, int(r * P) of P pairs go, with r and the product as floats.

In all other modes the FMR never exceeds its target:

* A mated comparison fails if its score < t.
* Let n be the number of kept non-mated scores and k = floor(FMR * n). Then t lies just above the (k+1)-th largest of
  them: it is the lowest t at which at most k of them are >= t. Scores equal to that score are rejected together. With
  FMR < 1/n, t lies just above the largest; with k >= n it is -infinity.
* Pairs are discarded by their quality as above. Pairs of equal quality go by the quality of their other image, and
  images of equal quality by their place in the input. At ratio r, floor(r * P) pairs go.

"rethresholded" sets t anew at each ratio (ours). "normalised" has the same curve with another area (FaceQAN and FROQ).
"fixed-threshold" keeps the t of no discard and discards mated pairs only (Schlett et al., arXiv 2303.13294).

An FMR below 1/n, where n counts the non-mated pairs before anything is discarded, cannot be measured. At higher ratios
fewer pairs are kept, and an FMR may fall below 1/n there; the rules above still give a t, and the point stands.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.array_types import Floats, Integers
from prefiqs_ext.exceptions import InputError

Mode = Literal["crfiqa", "rethresholded", "fixed-threshold", "normalised"]
RATIOS = np.arange(0, 0.98, 0.05)
"""Discard ratios 0 to .95, in the very floats of CR-FIQA's scripts."""
FMRS = (1e-2, 1e-3, 1e-4)
"""The false match rates that are reported."""
TOO_FEW = "too few pairs"
"""What tables say in place of a number at an FMR that cannot be measured."""
LIMIT = 0.3
"""The highest discard ratio that counts for a partial area, as in the paper."""
_EXACT = 1e-9  # .001 * 3000 must count as 3, whatever the float product is


class Curve(NamedTuple):
    """One error-versus-discard curve.

    Attributes:
        mode: The rule that it follows.
        fmr: The false match rate, in (0, 1), that the threshold was set for.
        ratios: [R] discarded share of the pairs, rising from 0 (fixed-threshold: of the mated pairs).
        fnmr: [R] false non-match rate of the kept pairs, in [0, 1], LOWER is better.
        thresholds: [R] t at each ratio.
        mated: The number of mated pairs before anything is discarded.
        non_mated: The number of non-mated pairs before anything is discarded.
    """

    mode: Mode
    fmr: float
    ratios: NDArray[np.float64]
    fnmr: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    mated: int
    non_mated: int

    @property
    def measurable(self) -> bool:
        """Whether there are enough non-mated pairs: False if the FMR is below 1 / non_mated."""
        return count_allowed(self.fmr, self.non_mated) > 0

    def area(self, limit: float) -> float:
        """The area under the curve up to a discard ratio, by the mode's own rule, LOWER is better.

        * crfiqa, rethresholded: trapezoids over the ratios <= limit, times 1000.
        * fixed-threshold: the area of the step curve up to limit minus that of the ideal curve, times 1000. The ideal
          error at x is max(0, f - x), with f the error without discard, as in the code of arXiv 2303.13294. No order of
          the pairs reaches it: discarding all failing pairs first leaves (f - x) / (1 - x), which is more.
        * normalised: trapezoids up to limit, divided by limit * (error without discard). 1 is a useless quality.

        Args:
            limit: In (0, 1].

        Raises:
            InputError: The limit is out of range; fewer than two ratios lie within it; normalised without any error to
                divide by.
        """
        if not 0 < limit <= 1:
            raise InputError(f"expected an area's limit in (0, 1], got {limit}")
        if self.mode == "fixed-threshold":
            return 1000 * (self._compute_step_area(limit) - _compute_ideal_area(float(self.fnmr[0]), limit))
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

    def _compute_step_area(self, limit: float) -> float:
        ends = np.minimum(np.append(self.ratios[1:], 1.0), limit)
        return float(np.sum(self.fnmr * np.maximum(ends - self.ratios, 0)))


def _compute_ideal_area(error: float, limit: float) -> float:
    end = min(error, limit)
    return end * (error - end / 2)  # the integral of max(0, error - x)


def count_allowed(fmr: float, n: int) -> int:
    """How many of n non-mated scores may be >= t: floor(fmr * n)."""
    return int(np.floor(fmr * n + _EXACT))


def find_turning_place(fmr: float, n: int) -> int:
    """The place among n non-mated scores, 0 the highest, at which the FMR turns from <= the target to above it."""
    return min(count_allowed(fmr, n), n - 1)


class ThresholdWindow(NamedTuple):
    """The non-mated scores that decide t.

    These are the score at the turning place, the next lower and the next higher score that differ from it, if there are
    such, and all scores equal to these or between them. More scores do no harm.

    Attributes:
        scores: Rising.
        above: How many non-mated scores lie above these.
        n: How many non-mated scores there are.
    """

    scores: Floats
    above: int
    n: int

    @staticmethod
    def cut(non_mated: Floats, fmr: float) -> ThresholdWindow:
        """Cut the window out of scores [n], n > 0, in any order."""
        n = len(non_mated)
        place = n - 1 - find_turning_place(fmr, n)
        score = np.partition(non_mated, place)[place]
        lowest = non_mated[non_mated < score].max(initial=-np.inf)
        return ThresholdWindow(np.sort(non_mated[non_mated >= lowest]), 0, n)


def find_threshold(mode: Mode, window: ThresholdWindow, mated: Floats, fmr: float) -> float:
    """Find t by the mode's rule.

    Args:
        mode: See the head of this file.
        window: Of the kept non-mated scores.
        mated: The kept mated scores.
        fmr: The target.
    """
    if mode == "crfiqa":
        # Each candidate's number of non-mated scores >= it is exact inside the window. A candidate outside gets the
        # number of the window's nearest end, which is farther from the target than that of a candidate inside. So it is
        # never the first of the nearest.
        candidates = np.sort(np.concatenate([window.scores, mated]))
        passing = window.above + len(window.scores) - np.searchsorted(window.scores, candidates)
        return float(candidates[np.argmin(np.abs(passing / window.n - fmr))])
    k = count_allowed(fmr, window.n)
    return -np.inf if k >= window.n else float(np.nextafter(window.scores[window.above - 1 - k], np.inf))


def compute_fnmr(mode: Mode, mated: Floats, t: float) -> float:
    """The share of mated scores that fail at t."""
    if mode == "crfiqa":
        return 1 - np.count_nonzero(mated > t) / len(mated)
    return float(np.mean(mated < t))


def rank_images(quality: Floats) -> NDArray[np.int64]:
    """[N] the rank of each image by quality, the worst 0; images of equal quality keep their order.

    Raises:
        InputError: The quality is not [N] or not finite.
    """
    quality = check_quality(quality)
    ranks = np.empty(len(quality), np.int64)
    ranks[np.argsort(quality, kind="stable")] = np.arange(len(quality))
    return ranks


def check_quality(quality: Floats) -> Floats:
    """Return the quality as an array.

    Raises:
        InputError: It is not [N] or not finite.
    """
    quality = np.asarray(quality)
    if quality.ndim != 1 or not np.isfinite(quality).all():
        raise InputError("expected one finite quality per image; drop images that cannot be assessed first")
    return quality


def count_discarded(ratios: NDArray[np.float64], pairs: int, mode: Mode = "rethresholded") -> list[int]:
    """How many of `pairs` pairs go at each ratio.

    Raises:
        InputError: The ratios do not rise from 0, or do not stay below 1.
    """
    if not len(ratios) or ratios[0] != 0 or (np.diff(ratios) <= 0).any() or ratios[-1] >= 1:
        raise InputError("expected discard ratios that rise from 0 and stay below 1")
    return [int(r * pairs + (0 if mode == "crfiqa" else _EXACT)) for r in ratios]


def check_pairs(
    scores: Floats, mated: NDArray[np.bool_], pairs: Integers, images: int
) -> tuple[Floats, NDArray[np.bool_], Integers]:
    """Return a list of pairs as arrays of float64, bool and integers.

    Raises:
        InputError: Shapes that do not fit, scores that are not finite, or indices outside 0..images - 1.
    """
    # In float32 there may be no number just above a score that float64 calls so.
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


def order_pairs(pairs: Integers, quality: Floats, mode: Mode = "rethresholded") -> NDArray[np.int64]:
    """[P] indices of the pairs in discard order, the first to go first.

    Raises:
        InputError: The quality is not [N] or not finite.
    """
    if mode == "crfiqa":
        return np.argsort(check_quality(quality)[pairs].min(1), kind="stable")
    both = np.sort(rank_images(quality)[pairs], axis=1)
    return np.lexsort((both[:, 1], both[:, 0]))


def select_ratios(limit: float) -> NDArray[np.float64]:
    """Those of RATIOS up to the limit, which is included."""
    return RATIOS[limit + _EXACT >= RATIOS]


def error_versus_discard(
    scores: Floats,
    mated: NDArray[np.bool_],
    pairs: Integers,
    quality: Floats,
    *,
    fmr: float = 1e-3,
    mode: Mode = "rethresholded",
    ratios: NDArray[np.float64] = RATIOS,
) -> Curve:
    """Compute the curve of a list of pairs. For all pairs of many images see `compute_all_pairs_curves`.

    Args:
        scores: [P] similarity, HIGHER is more alike.
        mated: [P] whether both images show one person.
        pairs: [P, 2] indices into quality.
        quality: [N], HIGHER is better.
        fmr: False match rate, in (0, 1).
        mode: See the head of this file. In "fixed-threshold" the curve has a point at every quality.
        ratios: [R], for the other modes.

    Raises:
        InputError: Shapes that do not fit, numbers that are not finite, indices out of range, or no mated or no
            non-mated pair at the start or left at a ratio.
    """
    check_fmr(fmr)
    scores, mated, pairs = check_pairs(scores, mated, pairs, np.size(quality))
    order = order_pairs(pairs, quality, mode)
    scores, mated = scores[order], mated[order]
    if mode == "fixed-threshold":
        check_kept(int(mated.sum()), int((~mated).sum()), 0)
        t = find_threshold(mode, ThresholdWindow.cut(scores[~mated], fmr), scores[mated], fmr)
        worst = np.asarray(quality)[pairs].min(1)[order]
        return build_step_curve(scores[mated], worst[mated], t, fmr, int((~mated).sum()))
    thresholds, fnmr = [], []
    for r, discarded in zip(ratios, count_discarded(ratios, len(scores), mode), strict=True):
        kept_scores, kept_mated = scores[discarded:], mated[discarded:]
        mated_scores, non_mated_scores = kept_scores[kept_mated], kept_scores[~kept_mated]
        check_kept(len(mated_scores), len(non_mated_scores), r)
        thresholds.append(find_threshold(mode, ThresholdWindow.cut(non_mated_scores, fmr), mated_scores, fmr))
        fnmr.append(compute_fnmr(mode, mated_scores, thresholds[-1]))
    return Curve(mode, fmr, ratios, np.array(fnmr), np.array(thresholds), int(mated.sum()), int((~mated).sum()))


def build_step_curve(mated_scores: Floats, quality: Floats, t: float, fmr: float, non_mated: int) -> Curve:
    """Build the curve of mode "fixed-threshold".

    Args:
        mated_scores: [M], sorted by the quality of their pairs.
        quality: [M] of these pairs, rising.
        t: The threshold.
        fmr: What t was set for.
        non_mated: How many non-mated pairs there are.
    """
    _, first = np.unique(quality, return_index=True)
    fail = np.cumsum((mated_scores < t)[::-1])[::-1]  # from each pair to the last
    kept = len(mated_scores) - first
    ratios, fnmr = first / len(mated_scores), fail[first] / kept
    return Curve("fixed-threshold", fmr, ratios, fnmr, np.full(len(first), t), len(quality), non_mated)


def check_fmr(fmr: float) -> None:
    """Check that a false match rate lies in (0, 1).

    Raises:
        InputError: It does not.
    """
    if not 0 < fmr < 1:
        raise InputError(f"expected a false match rate in (0, 1), got {fmr}")


def check_kept(mated: int, non_mated: int, ratio: float, *, drawn: bool = False) -> None:
    """Check that mated and non-mated pairs are left at a discard ratio.

    Args:
        mated: How many mated pairs are left.
        non_mated: How many non-mated pairs are left.
        ratio: The discard ratio.
        drawn: Whether this is a draw for intervals, which the error then says.

    Raises:
        InputError: One of the kinds has no pair left.
    """
    if not mated or not non_mated:
        kind = "non-mated" if mated else "mated"
        where, else_ = (" in a draw for intervals", " or no intervals") if drawn else ("", " or smaller ratios")
        raise InputError(f"no {kind} pair at discard ratio {ratio:g}{where}: use more images per person,{else_}")
