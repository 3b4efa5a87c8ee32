"""Error-versus-discard: how the share of false non-matches falls as the pairs of lowest quality are left out.

Said once, for everything in this package:

* A mated comparison fails where its score < t. FNMR is the share of mated pairs that fail.
* t at a given FMR lies just above the (k+1)-th largest non-mated score, k = floor(FMR * n): the lowest t at which at
  most k of the n non-mated scores are >= t. Scores equal to that score are rejected together. With FMR < 1/n, t lies
  just above the largest; with k >= n it is -infinity.
* A pair's quality is the lower of its images' qualities. Pairs are discarded from the lowest on; equal ones by the
  other image's quality, then images of equal quality by their place in the input. At ratio r, int(r * P) pairs go.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Mode = Literal["rethresholded", "fixed-threshold", "normalised"]
RATIOS = np.arange(20) / 20
FMRS = (1e-2, 1e-3, 1e-4)
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
    """Non-mated pairs before anything is discarded; an FMR below 1 / non_mated cannot be measured."""

    def area(self, limit: float) -> float:
        """The area under the curve up to a discard ratio, by the mode's own rule; lower is better.

        rethresholded: trapezoids over the ratios <= limit, times 1000.
        fixed-threshold: the step curve's area up to limit minus the ideal's, times 1000. The ideal's error at x is
            max(0, f - x), f the error without discard, as in the code of arXiv 2303.13294. No order of the pairs
            reaches it: discarding failing pairs first leaves (f - x) / (1 - x), which is more.
        normalised: trapezoids up to limit over limit * (error without discard); 1 = useless.

        Raises:
            ValueError: limit not in (0, 1]; fewer than two ratios within it; normalised without any error to divide by.
        """
        if not 0 < limit <= 1:
            raise ValueError(f"expected an area's limit in (0, 1], got {limit}")
        if self.mode == "fixed-threshold":
            return 1000 * (self._steps(limit) - _ideal_area(float(self.fnmr[0]), limit))
        within = self.ratios <= limit + _EXACT
        if within.sum() < 2:
            raise ValueError(f"expected at least two discard ratios up to {limit}, got {within.sum()}")
        x, y = self.ratios[within], self.fnmr[within]
        area = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))
        if self.mode == "rethresholded":
            return 1000 * area
        if y[0] == 0:
            raise ValueError("expected an error to improve on; no mated pair fails without discard: use a lower FMR")
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


def threshold(non_mated: NDArray[np.floating], fmr: float) -> float:
    """t for scores [n], in any order. Raises ValueError without a score."""
    n = len(non_mated)
    k = allowed(fmr, n)
    if not n:
        raise ValueError("expected at least one non-mated pair to set a threshold with, got none")
    return -np.inf if k >= n else just_above(float(np.partition(non_mated, n - 1 - k)[n - 1 - k]))


def just_above(score: float) -> float:
    return float(np.nextafter(score, np.inf))


def ranks(quality: NDArray[np.floating]) -> NDArray[np.int64]:
    """[N] the place of each image when sorted by quality, the worst 0; equal ones keep their order.

    Raises:
        ValueError: quality is not [N] or not finite.
    """
    quality = np.asarray(quality)
    if quality.ndim != 1 or not np.isfinite(quality).all():
        raise ValueError("expected one finite quality an image; drop images that cannot be assessed first")
    places = np.empty(len(quality), np.int64)
    places[np.argsort(quality, kind="stable")] = np.arange(len(quality))
    return places


def discarded_pairs(ratios: NDArray[np.float64], pairs: int) -> list[int]:
    """int(r * pairs) for each ratio. Raises ValueError unless ratios rise from 0 and stay below 1."""
    if not len(ratios) or ratios[0] != 0 or (np.diff(ratios) <= 0).any() or ratios[-1] >= 1:
        raise ValueError("expected discard ratios that rise from 0 and stay below 1")
    return [int(r * pairs + _EXACT) for r in ratios]


def check_pairs(
    scores: NDArray[np.floating], mated: NDArray[np.bool_], pairs: NDArray[np.integer], images: int
) -> tuple[NDArray[np.floating], NDArray[np.bool_], NDArray[np.integer]]:
    """The list as float64, bool and integer arrays. Raises ValueError as error_versus_discard."""
    # Single precision has no number just above a score that double precision calls so.
    scores, mated, pairs = np.asarray(scores, np.float64), np.asarray(mated, dtype=bool), np.asarray(pairs)
    if scores.ndim != 1 or mated.shape != scores.shape or pairs.shape != (len(scores), 2):
        raise ValueError(
            f"expected scores [P], mated [P], pairs [P, 2]; got {scores.shape}, {mated.shape}, {pairs.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("expected finite comparison scores")
    if len(pairs) and not 0 <= pairs.min() <= pairs.max() < images:
        raise ValueError(f"expected pairs of images 0 to {images - 1}, got {pairs.min()} to {pairs.max()}")
    return scores, mated, pairs


def discard_order(pairs: NDArray[np.integer], quality: NDArray[np.floating]) -> NDArray[np.int64]:
    """[P] indices of the pairs, the first to be discarded first. Raises ValueError as ranks."""
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
        mode: "fixed-threshold" keeps the threshold of no discard, discards mated pairs only and has a point at every
            quality.
        ratios: [R] for the other modes.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, indices out of range, no mated or non-mated
            pair at the start or left at a ratio.
    """
    check_fmr(fmr)
    scores, mated, pairs = check_pairs(scores, mated, pairs, np.size(quality))
    order = discard_order(pairs, quality)
    scores, mated = scores[order], mated[order]
    if mode == "fixed-threshold":
        check_kept(int(mated.sum()), int((~mated).sum()), 0)
        start = threshold(scores[~mated], fmr)
        worst = np.asarray(quality)[pairs].min(1)[order]
        return steps(scores[mated], worst[mated], start, fmr, int((~mated).sum()))
    thresholds, fnmr = [], []
    for r, cut in zip(ratios, discarded_pairs(ratios, len(scores)), strict=True):
        kept, kept_mated = scores[cut:], mated[cut:]
        check_kept(int(kept_mated.sum()), int((~kept_mated).sum()), r)
        thresholds.append(threshold(kept[~kept_mated], fmr))
        fnmr.append(float(np.mean(kept[kept_mated] < thresholds[-1])))
    return Curve(mode, fmr, ratios, np.array(fnmr), np.array(thresholds), int(mated.sum()), int((~mated).sum()))


def steps(
    mated_scores: NDArray[np.floating], quality: NDArray[np.floating], t: float, fmr: float, non_mated: int
) -> Curve:
    """The step curve of mated pairs: scores [M] and pair qualities [M], sorted by quality, at one threshold."""
    _, first = np.unique(quality, return_index=True)
    failing = np.cumsum((mated_scores < t)[::-1])[::-1]  # from each pair to the last
    kept = len(mated_scores) - first
    ratios, fnmr = first / len(mated_scores), failing[first] / kept
    return Curve("fixed-threshold", fmr, ratios, fnmr, np.full(len(first), t), len(quality), non_mated)


def check_fmr(fmr: float) -> None:
    if not 0 < fmr < 1:
        raise ValueError(f"expected a false match rate in (0, 1), got {fmr}")


def check_kept(mated: int, non_mated: int, ratio: float, *, drawn: bool = False) -> None:
    """ValueError where nothing is left to count. drawn: in a draw for intervals."""
    if not mated or not non_mated:
        kind = "non-mated" if mated else "mated"
        where, else_ = (" in a draw for intervals", " or no intervals") if drawn else ("", " or smaller ratios")
        raise ValueError(f"no {kind} pair at discard ratio {ratio:g}{where}: use more images an identity,{else_}")
