"""Mode "crfiqa": cases counted by hand, and its rule as plain loops over all thresholds."""

import numpy as np
import pytest

from prefiqs_ext.evaluation import all_pairs as all_pairs_module
from prefiqs_ext.evaluation import pair_blocks as blocks_module
from prefiqs_ext.evaluation.all_pairs import compute_all_pairs_curves
from prefiqs_ext.evaluation.comparison import Protocol, compare
from prefiqs_ext.evaluation.datasets import PairList
from prefiqs_ext.evaluation.edc import count_discarded, error_versus_discard

RATIOS = np.arange(0, 0.98, 0.05)
FMRS = (1e-2, 1e-3, 1e-4)


def by_loops(scores, mated, pairs, quality, fmrs, ratios=RATIOS):
    """FNMR and threshold [FMRs, ratios]: every distinct score is tried at every ratio."""
    worst = [min(quality[i], quality[j]) for i, j in pairs]
    order = np.array(sorted(range(len(scores)), key=worst.__getitem__))  # stable
    found = np.empty((2, len(fmrs), len(ratios)))
    for column, r in enumerate(ratios):
        kept = order[int(r * len(scores)) :]
        own, others = scores[kept][mated[kept]], scores[kept][~mated[kept]]
        thresholds = sorted(set(scores[kept].tolist()))
        shares = [np.count_nonzero(others >= t) / len(others) for t in thresholds]
        for row, fmr in enumerate(fmrs):
            distances = [abs(share - fmr) for share in shares]
            t = thresholds[distances.index(min(distances))]  # the first
            found[:, row, column] = 1 - sum(score > t for score in own) / len(own), t
    return found


@pytest.mark.parametrize(
    ("own", "others", "fmr", "t", "fnmr"),
    [
        # .3 lets one of four pass, as asked for; so does .25, which is lower.
        ([0.25, 0.5, 0.6], [0.0, 0.1, 0.2, 0.3], 0.25, 0.25, 1 / 3),
        # No mated score between: .3 itself, and one that is equal to it fails.
        ([0.3, 0.5, 0.6], [0.0, 0.1, 0.2, 0.3], 0.25, 0.3, 1 / 3),
        # 1/4 and 2/4 are equally near to 3/8: the lower threshold.
        ([0.15, 0.25, 0.6], [0.0, 0.1, 0.2, 0.3], 0.375, 0.15, 1 / 3),
        # 2 of 4 are nearer to .45 than 1 of 4, though they are above it.
        ([0.1, 0.25, 0.6], [0.0, 0.1, 0.2, 0.3], 0.45, 0.2, 1 / 3),
        # Nothing passes at the mated score above all others: that is nearest, and it fails itself.
        ([0.1, 0.5, 0.6], [0.0, 0.1, 0.2, 0.3], 0.01, 0.5, 2 / 3),
        # No mated score above all others: one of four is the fewest that can pass.
        ([0.1, 0.2], [0.0, 0.1, 0.2, 0.3], 0.01, 0.3, 1),
        # Three equal ones pass together or not at all.
        ([0.1, 0.25, 0.6], [0.0, 0.3, 0.3, 0.3], 0.45, 0.1, 1 / 3),
        # All pass at the lowest score, whosever it is.
        ([-0.5, 0.5], [0.0, 0.1, 0.2, 0.3], 0.99, -0.5, 1 / 2),
    ],
)
def test_threshold_by_hand(own, others, fmr, t, fnmr):
    scores = np.array(own + others)
    mated = np.arange(len(scores)) < len(own)
    pairs = np.arange(2 * len(scores)).reshape(-1, 2)
    quality = np.zeros(pairs.size)
    curve = error_versus_discard(scores, mated, pairs, quality, fmr=fmr, mode="crfiqa", ratios=np.zeros(1))
    assert (curve.thresholds.tolist(), curve.fnmr.tolist()) == ([t], [pytest.approx(fnmr)])
    np.testing.assert_array_equal(by_loops(scores, mated, pairs, quality, (fmr,), [0])[:, 0, 0], [curve.fnmr[0], t])


def pair_list(seed, number, *, tied):
    """Pairs of images that each come several times; scores and qualities with many equal values or with few."""
    rng = np.random.default_rng(seed)
    images = max(20, number // 20)
    pairs = rng.integers(0, images, (number, 2))
    quality = rng.integers(0, 12, images).astype(float) if tied else rng.normal(size=images)
    mated = rng.random(number) < 0.5
    helps = (quality / 4)[pairs].min(1)
    scores = np.where(mated, 0.5 + 0.1 * helps, 0) + rng.normal(0, 0.12, number)
    return np.round(scores, 2) if tied else scores, mated, pairs, quality


# Of 40,000 pairs three ratios only: the loops go over 40,000 thresholds at each.
@pytest.mark.parametrize(("number", "ratios"), [(600, RATIOS), (6000, RATIOS), (40_000, RATIOS[[0, 6, 19]])])
@pytest.mark.parametrize("tied", [True, False])
def test_lists_agree_with_loops(number, ratios, tied):
    arguments = pair_list(number, number, tied=tied)
    fmrs = (*FMRS, 0.0004, 0.15, 0.999)
    expected = by_loops(*arguments, fmrs, ratios)
    for row, fmr in enumerate(fmrs):
        curve = error_versus_discard(*arguments, fmr=fmr, mode="crfiqa", ratios=ratios)
        np.testing.assert_array_equal(curve.fnmr, expected[0, row])
        np.testing.assert_array_equal(curve.thresholds, expected[1, row])


def faces(seed, images, *, tied):
    """Unit vectors of multiples of a power of 2: their products are exact in float32, in any order of addition."""
    rng = np.random.default_rng(seed)
    who = rng.integers(0, images // 5, images)
    if tied:
        halves = rng.permuted(np.tile([0.5] * 4 + [0.0] * 4, (images, 1)), axis=1)
        return halves * rng.choice([-1, 1], halves.shape), who, rng.integers(0, 4, images).astype(float)
    quality = rng.normal(size=images)
    embeddings = rng.normal(size=(images // 5, 16))[who] + np.exp(-quality / 3)[:, None] * rng.normal(size=(images, 16))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.round(embeddings * 2048) / 2048, who, np.round(quality, 1)  # of equal quality some


@pytest.mark.parametrize("block", [1, 37, 1 << 23])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bins", [64, 1 << 16])
def test_all_pairs_agree_with_loops(monkeypatch, block, tied, bins):
    """The order of equal qualities is that of numpy.triu_indices."""
    monkeypatch.setattr(blocks_module, "_BLOCK", block)
    monkeypatch.setattr(all_pairs_module, "_BINS", bins)
    embeddings, who, quality = faces(8, 70, tied=tied)
    pairs = np.stack(np.triu_indices(70, 1), 1)
    scores = (embeddings[pairs[:, 0]] * embeddings[pairs[:, 1]]).sum(1)
    ratios = RATIOS[:17]  # above, no mated pair is left
    for fmrs in ((0.3, 0.04), FMRS):
        expected = by_loops(scores, who[pairs[:, 0]] == who[pairs[:, 1]], pairs, quality, fmrs, ratios)
        curves = compute_all_pairs_curves(embeddings, who, quality, fmrs=fmrs, mode="crfiqa", ratios=ratios)
        np.testing.assert_array_equal([curve.fnmr for curve in curves], expected[0])
        np.testing.assert_array_equal([curve.thresholds for curve in curves], expected[1])


@pytest.mark.parametrize("tied", [True, False])
def test_all_pairs_of_many(tied):
    """Of 44,850 pairs, with most of the scores below what is looked at."""
    embeddings, who, quality = faces(9, 300, tied=tied)
    pairs = np.stack(np.triu_indices(300, 1), 1)
    arguments = (embeddings[pairs[:, 0]] * embeddings[pairs[:, 1]]).sum(1), who[pairs[:, 0]] == who[pairs[:, 1]], pairs
    for curve in compute_all_pairs_curves(embeddings, who, quality, mode="crfiqa"):
        expected = error_versus_discard(*arguments, quality, fmr=curve.fmr, mode="crfiqa")
        assert (curve.mode, curve.mated, curve.non_mated) == ("crfiqa", expected.mated, expected.non_mated)
        np.testing.assert_array_equal(curve.fnmr, expected.fnmr)
        np.testing.assert_array_equal(curve.thresholds, expected.thresholds)
        np.testing.assert_array_equal(curve.ratios, RATIOS)


def test_next_lower_score_is_looked_at():
    """Though the tail of the highest scores ends above it: mated scores below it must not count as just below t."""
    embeddings, who, quality = faces(9, 300, tied=True)
    pairs = np.stack(np.triu_indices(300, 1), 1)
    scores, mated = (embeddings[pairs[:, 0]] * embeddings[pairs[:, 1]]).sum(1), who[pairs[:, 0]] == who[pairs[:, 1]]
    fmr = 0.7 * float(np.mean(scores[~mated] >= 0.75))  # so that .75, the lowest of the highest 4 * fmr, is nearest
    (curve,) = compute_all_pairs_curves(embeddings, who, quality, fmrs=(fmr,), mode="crfiqa", ratios=RATIOS[:7])
    expected = error_versus_discard(scores, mated, pairs, quality, fmr=fmr, mode="crfiqa", ratios=RATIOS[:7])
    assert curve.thresholds[0] == 0.75
    np.testing.assert_array_equal(curve.thresholds, expected.thresholds)


def test_number_discarded_is_that_of_the_floats():
    """.29 * 100 is 28.999999999999996: 28 go here, 29 in the other modes."""
    ratios = np.array([0, 0.29])
    assert (count_discarded(ratios, 100, "crfiqa"), count_discarded(ratios, 100)) == ([0, 28], [0, 29])


def test_areas():
    """Trapezoids; the partial one over the seven points to .30, times 1000."""
    curve = error_versus_discard(*pair_list(1, 6000, tied=False), fmr=1e-2, mode="crfiqa")
    assert curve.area(0.3) == pytest.approx(1000 * np.trapezoid(curve.fnmr[:7], RATIOS[:7]))
    assert curve.area(0.95) == pytest.approx(1000 * np.trapezoid(curve.fnmr, RATIOS))


def test_differs_from_rethresholded():
    """Where one mode stood in for the other, figures would not be comparable with published ones."""
    arguments = pair_list(2, 6000, tied=False)
    ours, theirs = (error_versus_discard(*arguments, fmr=1e-3, mode=mode) for mode in ("rethresholded", "crfiqa"))
    assert ours.area(0.3) != theirs.area(0.3)


def test_scores_of_a_list_are_added_up_in_double_precision():
    """In single precision 1 + 2^-26 is 1, which is the threshold, and the mated pair fails."""
    embeddings = np.array([[1, 2**-13], [1, 2**-13], [1, 0]], np.float32)
    data = PairList(["a", "b", "c"], np.array([[0, 1], [1, 2]]), np.array([True, False]))
    protocol = Protocol("crfiqa", (0.5,), resamples=0, max_discard=0.3)
    (curve,) = compare(data, embeddings, {"any": np.zeros(3)}, protocol).curves["any"]
    assert (curve.thresholds[0], curve.fnmr[0]) == (1, 0)
