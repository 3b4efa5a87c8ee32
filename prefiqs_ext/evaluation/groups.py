"""Who is discarded, and who fails: the curves of `edc` within groups of images, such as skin tones or cameras.

At each discard ratio, the pairs that are kept and the threshold are those of the curve of all images, as in a system
that treats all alike. Within a group:

* An image is discarded if its quality is below that of every kept pair, the lower of its images' qualities. So images
  of equal quality are all kept or all discarded. With all pairs of images compared, no kept pair has a discarded image.
* The FNMR is the share of the kept mated pairs with both images in the group that score below the threshold.

Intervals. The persons with mated pairs in the group are drawn with replacement, as in `bootstrap`; of a list of pairs,
which does not say who is who, the pairs. Threshold and kept pairs stay those of all images: an interval says how
certain the group's FNMR is in this system, not how certain the threshold is. Where no pair fails, or all do, all draws
agree. The interval is then that of Clopper and Pearson (1934) with one trial per person: with n persons it ends at
1 - .025^(1/n), or begins at .025^(1/n).

Too few. A group gets an FNMR where MIN_PAIRS mated pairs of MIN_PERSONS persons are kept. With n independent pairs, an
FNMR of 3/n shows no failing pair in 5 % of the cases: with 30 pairs, 10 %. Percentile intervals of few persons are too
narrow. In simulated groups of 20 to 100 persons, 87 to 95 % of them held the true FNMR; with 5 to 15 persons at a mean
FNMR of .1 and .25, 85 to 92 %. (1,500 groups each; 2 to 5 images per person; FNMR of a person drawn from a beta
distribution with mean .03, .1 or .25 and concentration 4.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.array_types import Floats
from prefiqs_ext.evaluation.comparison import Protocol, compute_similarities
from prefiqs_ext.evaluation.datasets import Data
from prefiqs_ext.evaluation.datasets.group_table import ALL_IMAGES, Groups
from prefiqs_ext.evaluation.datasets.readers import Images, PairList
from prefiqs_ext.evaluation.discard_order import DiscardOrder
from prefiqs_ext.evaluation.edc import Curve, count_discarded, order_pairs, rank_images
from prefiqs_ext.evaluation.pair_blocks import list_mated_keys
from prefiqs_ext.exceptions import InputError

MIN_PERSONS = 20
"""So many persons must have kept mated pairs in a group that gets an FNMR. Lists of pairs do not say who is who."""
MIN_PAIRS = 30
"""So many mated pairs must be kept in a group that gets an FNMR."""
_TAIL = 0.025  # on either side of a 95 % interval
_SAME = 1e-9  # by how much ratios that are meant to be equal may differ


class GroupCurve(NamedTuple):
    """What one method does to one group at one FMR, at each discard ratio.

    Attributes:
        method: The name of the quality.
        fmr: The false match rate that the thresholds of all images were set for.
        group: The name of the group; ALL_IMAGES for all together.
        images: How many images it has.
        ratios: [R] discarded share of the pairs of all images (fixed-threshold: of their mated pairs).
        discarded: [R] discarded share of the group's images, in [0, 1].
        persons: [R] how many persons have kept mated pairs in the group; None for a list of pairs.
        mated: [R] how many mated pairs are kept in the group.
        fnmr: [R] false non-match rate of these, in [0, 1], LOWER is better; 0 if it is not known.
        known: [R] whether there are enough persons and pairs, and the FMR can be measured at all.
        interval: [R, 2] low and high, 95 %; 0 if it is not known; None without draws.
    """

    method: str
    fmr: float
    group: str
    images: int
    ratios: NDArray[np.float64]
    discarded: NDArray[np.float64]
    persons: NDArray[np.int64] | None
    mated: NDArray[np.int64]
    fnmr: NDArray[np.float64]
    known: NDArray[np.bool_]
    interval: NDArray[np.float64] | None


class GroupComparison(NamedTuple):
    """What a comparison of methods gave for groups.

    Attributes:
        column: Where the groups came from, "skin tone" for example.
        curves: One per method, FMR and group, in this order; all images come before the groups.
    """

    column: str
    curves: list[GroupCurve]


def check_groups(data: Data) -> Images | PairList:
    """Return data whose groups can be measured; called before anything is computed.

    Raises:
        InputError: The images are compared as templates.
    """
    if not isinstance(data, Images | PairList):
        raise InputError("groups are of images, and IJB-C compares templates of several images: leave groups out")
    return data


def measure_groups(
    groups: Groups,
    data: Data,
    embeddings: Floats,
    qualities: Mapping[str, Floats],
    curves: Mapping[str, list[Curve]],
    protocol: Protocol,
) -> GroupComparison:
    """Measure what the curves of all images mean for groups of them.

    Args:
        groups: Which image is in which.
        data: The images and what is compared.
        embeddings: [N, d] of the images, L2-normalised.
        qualities: [N] of each method, HIGHER is better.
        curves: What `compare` gave for these, in any mode but "crfiqa".
        protocol: How these were measured. Without resamples there are no intervals.

    Raises:
        InputError: The mode is "crfiqa", whose ties go by the order of a list, or the data are of templates.
    """
    data = check_groups(data)
    if protocol.mode == "crfiqa":
        raise InputError("groups are not measured in mode crfiqa: choose another one")
    pairs, units = _list_mated_pairs(data)
    scores = compute_similarities(embeddings, pairs)
    parts = _divide(groups, pairs, units)
    found = []
    for method, of_method in curves.items():
        quality = np.asarray(qualities[method])
        cuts = _find_cuts(data, pairs, quality, of_method[0], protocol)
        for part in parts:
            kept = _count_kept(part, cuts, scores)
            mated, persons = kept.sum(0).astype(np.int64), np.count_nonzero(kept, axis=0)
            enough = mated >= MIN_PAIRS
            if isinstance(data, Images):
                enough &= persons >= MIN_PERSONS
            discarded = np.mean(quality[part.members] < cuts.qualities[:, None], axis=1)
            for curve in of_method:
                failing = _count_kept(part, cuts, scores, _select_thresholds(curve, protocol))
                known = enough & curve.measurable
                found.append(
                    GroupCurve(
                        method,
                        curve.fmr,
                        part.label,
                        int(part.members.sum()),
                        protocol.ratios,
                        discarded,
                        persons if isinstance(data, Images) else None,
                        mated,
                        np.where(known, failing.sum(0) / np.maximum(mated, 1), 0),
                        known,
                        _resample(kept, failing, known, protocol) if protocol.resamples else None,
                    )
                )
    return GroupComparison(groups.column, found)


def _list_mated_pairs(data: Images | PairList) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List the mated pairs [M, 2], and what is drawn with each of them [M]: a person, or the pair itself."""
    if isinstance(data, PairList):
        pairs = data.pairs[data.mated]
        return pairs, np.arange(len(pairs))
    pairs = np.stack(np.divmod(list_mated_keys(data.identities), len(data.identities)), axis=1)
    return pairs, data.identities[pairs[:, 0]]


class _Part(NamedTuple):
    """A group, or all images.

    Attributes:
        label: Its name.
        members: [N] which images it has.
        pairs: [m] which of the mated pairs have both images in it.
        units: [m] what is drawn with each of these, as numbers from 0 to size - 1.
        size: How many such units there are.
    """

    label: str
    members: NDArray[np.bool_]
    pairs: NDArray[np.int64]
    units: NDArray[np.int64]
    size: int


def _divide(groups: Groups, pairs: NDArray[np.int64], units: NDArray[np.int64]) -> list[_Part]:
    """Divide the images: all of them first, then the groups."""
    parts = []
    for label in (ALL_IMAGES, *groups.labels):
        everything = np.ones(len(groups.of_image), dtype=bool)
        members = everything if label == ALL_IMAGES else groups.of_image == groups.labels.index(label)
        own = np.flatnonzero(members[pairs].all(1))
        drawn, numbers = np.unique(units[own], return_inverse=True)
        parts.append(_Part(label, members, own, numbers, len(drawn)))
    return parts


class _Cuts(NamedTuple):
    """What is discarded by a method.

    Attributes:
        last: [M] the last ratio at which each mated pair is kept, as its index.
        qualities: [R] the quality of the first pair that is kept at each ratio.
    """

    last: NDArray[np.int64]
    qualities: Floats


def _find_cuts(
    data: Images | PairList, mated: NDArray[np.int64], quality: Floats, curve: Curve, protocol: Protocol
) -> _Cuts:
    """Find what goes at each ratio. The positions of pairs rise in discard order."""
    n = len(quality)
    if isinstance(data, Images):
        order = DiscardOrder.make(quality, count_discarded(protocol.ratios, n * (n - 1) // 2), protocol.mode)
        positions, cuts = order.get_positions(*mated.T), order.cuts
        first = np.argsort(rank_images(quality))[np.stack(np.divmod(cuts, n), axis=1)]
    else:
        listed = order_pairs(data.pairs, quality)
        place = np.empty(len(listed), np.int64)
        place[listed] = np.arange(len(listed))
        positions, cuts = place[data.mated], np.array(count_discarded(protocol.ratios, len(listed)))
        first = data.pairs[listed[cuts]]
    if protocol.mode == "fixed-threshold":  # mated pairs alone are discarded, by steps of equal quality
        steps = np.searchsorted(curve.ratios, protocol.ratios + _SAME, side="right") - 1
        discarded = np.rint(curve.ratios[steps] * len(mated)).astype(np.int64)
        first_kept = np.argsort(positions)[discarded]
        first, cuts = mated[first_kept], positions[first_kept]
    return _Cuts(np.searchsorted(cuts, positions, side="right") - 1, quality[first].min(1))


def _select_thresholds(curve: Curve, protocol: Protocol) -> NDArray[np.float64]:
    """The threshold at each of the protocol's ratios."""
    fixed = protocol.mode == "fixed-threshold"  # such a curve has its own ratios, and one threshold
    return np.full(len(protocol.ratios), curve.thresholds[0]) if fixed else curve.thresholds


def _count_kept(
    part: _Part, cuts: _Cuts, scores: Floats, below: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Count the kept mated pairs of each unit at each ratio, [units, R]: all, or those that score below a threshold."""
    last, own = cuts.last[part.pairs], scores[part.pairs]
    counts = np.empty((part.size, len(cuts.qualities)))
    for ratio in range(len(cuts.qualities)):
        counted = last >= ratio if below is None else (last >= ratio) & (own < below[ratio])
        counts[:, ratio] = np.bincount(part.units[counted], minlength=part.size)
    return counts


def _resample(
    kept: NDArray[np.float64], failing: NDArray[np.float64], known: NDArray[np.bool_], protocol: Protocol
) -> NDArray[np.float64]:
    """Draw units with replacement: the interval [R, 2] of the FNMR at each ratio; 0 where it is not known."""
    interval = np.zeros((len(known), 2))
    if not known.any():
        return interval
    kept, failing = kept[:, known], failing[:, known]
    rng = np.random.default_rng(protocol.seed)
    chances = np.full(len(kept), 1 / len(kept))
    fnmr = np.empty((protocol.resamples, kept.shape[1]))
    for b in range(protocol.resamples):
        weights = rng.multinomial(len(kept), chances).astype(np.float64)
        drawn = weights @ kept
        # A draw that keeps no pair says nothing. Of 20 persons or 30 pairs with kept pairs it draws some.
        fnmr[b] = np.divide(weights @ failing, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0)
    interval[known] = np.nanpercentile(fnmr, [100 * _TAIL, 100 * (1 - _TAIL)], axis=0).T
    bound = _TAIL ** (1 / np.count_nonzero(kept, axis=0))
    none, all_of_them = failing.sum(0) == 0, failing.sum(0) == kept.sum(0)
    interval[known] = np.where(none[:, None], np.stack([0 * bound, 1 - bound], axis=1), interval[known])
    interval[known] = np.where(all_of_them[:, None], np.stack([bound, 1 + 0 * bound], axis=1), interval[known])
    return interval
