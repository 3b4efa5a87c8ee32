"""Error-versus-discard: cases counted by hand, a plain implementation, and scikit-learn."""

import numpy as np
import pytest

from prefiqs_ext.evaluation import all_pairs as all_pairs_module
from prefiqs_ext.evaluation import pair_blocks as blocks_module
from prefiqs_ext.evaluation.all_pairs import compute_all_pairs_curves
from prefiqs_ext.evaluation.edc import Curve, ThresholdWindow, error_versus_discard, find_threshold


def by_loops(scores, mated, pairs, quality, fmr, ratio):
    """FNMR and pairs kept, in plain Python."""
    place = {image: i for i, image in enumerate(sorted(range(len(quality)), key=lambda image: quality[image]))}
    order = sorted(range(len(scores)), key=lambda p: tuple(sorted(place[i] for i in pairs[p])))
    kept = order[int(ratio * len(scores) + 1e-9) :]
    non_mated = [scores[p] for p in kept if not mated[p]]
    t = min(
        t
        for t in [-np.inf, *(np.nextafter(s, np.inf) for s in non_mated)]
        if sum(s >= t for s in non_mated) <= fmr * len(non_mated) + 1e-9
    )
    genuine = [scores[p] for p in kept if mated[p]]
    return sum(s < t for s in genuine) / len(genuine)


def faces(seed, identities=9, images=5, d=6, distinct=True):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(identities, d))
    who = np.repeat(np.arange(identities), images)
    embeddings = centres[who] + rng.normal(size=(len(who), d))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    quality = rng.normal(size=len(who)) if distinct else rng.integers(0, 4, len(who)).astype(float)
    return embeddings.astype(np.float32), who, quality


def pair_list(embeddings, who):
    first, second = np.triu_indices(len(who), 1)
    scores = (embeddings @ embeddings.T)[first, second]
    return scores, who[first] == who[second], np.stack([first, second], 1)


@pytest.mark.parametrize(
    ("scores", "fmr", "above"),
    [
        ([0.1, 0.2, 0.3, 0.4], 0.25, 0.3),  # one of four may pass
        ([0.1, 0.2, 0.3, 0.4], 0.49, 0.3),
        ([0.1, 0.4, 0.4, 0.4], 0.5, 0.4),  # two may, but three are equal: none
        ([0.1, 0.2], 0.01, 0.2),  # below 1/n: none
    ],
)
def test_threshold_by_hand(scores, fmr, above):
    around = ThresholdWindow.cut(np.array(scores), fmr)
    assert find_threshold("rethresholded", around, np.zeros(1), fmr) == np.nextafter(above, 1)


def test_curves_by_hand():
    # Images 0-3 of quality 0-3; persons (0, 1, 2) and 3. Discard order: 01 02 03 12 13 23.
    pairs = np.array([[2, 3], [0, 1], [1, 2], [0, 2], [0, 3], [1, 3]])
    scores = np.array([0.6, 0.2, 0.9, 0.7, 0.5, 0.3])
    mated = np.array([False, True, True, True, False, False])
    quality = np.arange(4.0)
    arguments = scores, mated, pairs, quality
    curve = error_versus_discard(*arguments, fmr=0.4, ratios=np.array([0, 0.25, 0.5]))
    # Kept: all (t just above .5, .2 fails), from 02 on (same t), from 12 on (.3, .6; none may pass).
    assert curve.fnmr.tolist() == [1 / 3, 0, 0]
    assert curve.thresholds.tolist() == [np.nextafter(s, 1) for s in (0.5, 0.5, 0.6)]
    assert (curve.mated, curve.non_mated) == (3, 3)
    assert curve.area(0.5) == pytest.approx(1000 * 0.25 / 6)
    normalised = error_versus_discard(*arguments, fmr=0.4, mode="normalised", ratios=np.array([0, 0.25, 0.5]))
    assert normalised.area(0.5) == pytest.approx(0.25)
    # fixed-threshold: qualities of mated pairs 0, 0, 1; the step falls at two thirds.
    steps = error_versus_discard(*arguments, fmr=0.4, mode="fixed-threshold")
    assert steps.ratios.tolist() == [0, 2 / 3]
    assert steps.fnmr.tolist() == [1 / 3, 0]
    ideal = 0.2 * (1 / 3 - 0.1)  # of max(0, 1/3 - x) up to .2, where it is still above 0
    assert steps.area(0.2) == pytest.approx(1000 * (0.2 / 3 - ideal))


def test_ideal_area_by_hand():
    """Nothing is discarded and .1 fail: the steps are .1 high, the ideal is the triangle below .1 - x."""
    curve = Curve("fixed-threshold", 1e-3, np.zeros(1), np.array([0.1]), np.zeros(1), 10, 9999)
    assert curve.area(0.2) == pytest.approx(1000 * (0.1 * 0.2 - 0.1**2 / 2))
    assert curve._replace(fnmr=np.ones(1)).area(0.2) == pytest.approx(1000 * 0.2**2 / 2)


def test_area_is_seven_points():
    ratios = np.arange(20) / 20
    curve = Curve("rethresholded", 1e-3, ratios, 0.01 * (1 - ratios), ratios, 1, 1)
    assert curve.area(0.3) == pytest.approx(1000 * 0.01 * (0.3 - 0.045))


def test_useless_quality_is_one():
    ratios = np.arange(20) / 20
    assert Curve("normalised", 1e-3, ratios, np.full(20, 0.07), ratios, 1, 1).area(0.2) == pytest.approx(1)


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("fmr", [0.2, 0.05, 1e-4])
def test_agrees_with_plain_loops(fmr, distinct):
    embeddings, who, quality = faces(3, distinct=distinct)
    arguments = *pair_list(embeddings, who), quality
    ratios = np.array([0, 0.15, 0.3, 0.55, 0.7])
    curve = error_versus_discard(*arguments, fmr=fmr, ratios=ratios)
    assert curve.fnmr.tolist() == [by_loops(*arguments, fmr, r) for r in ratios]


@pytest.mark.parametrize("block", [1, 37, 4_000_000])
@pytest.mark.parametrize("distinct", [True, False])
def test_blocks_agree_with_the_list(monkeypatch, block, distinct):
    monkeypatch.setattr(blocks_module, "_BLOCK", block)
    monkeypatch.setattr(all_pairs_module, "_BINS", 64)  # many scores a bin
    # Multiples of 1/4, four times: dot products are exact in any order of addition, and tied.
    rng = np.random.default_rng(5)
    who = np.repeat(np.arange(12), 5)
    embeddings = rng.permuted(np.tile([0.5] * 4 + [0.0] * 4, (60, 1)), axis=1) * rng.choice([-1, 1], (60, 8))
    quality = rng.normal(size=60) if distinct else rng.integers(0, 4, 60).astype(float)
    arguments, ratios = (*pair_list(embeddings.astype(np.float32), who), quality), np.array([0, 0.15, 0.3, 0.6])
    for mode in ("rethresholded", "fixed-threshold", "normalised"):
        for curve in compute_all_pairs_curves(
            embeddings, who, quality, fmrs=(0.2, 0.05, 1e-4), mode=mode, ratios=ratios
        ):
            expected = error_versus_discard(*arguments, fmr=curve.fmr, mode=mode, ratios=ratios)
            assert (curve.mode, curve.mated, curve.non_mated) == (mode, expected.mated, expected.non_mated)
            np.testing.assert_array_equal(curve.fnmr, expected.fnmr)
            np.testing.assert_array_equal(curve.ratios, expected.ratios)


def test_fixed_threshold_discards_no_non_mated_pair():
    """So that the ratios of the other modes, at which few images may have no mated pair left, are nothing to it."""
    embeddings, who, quality = faces(3, identities=4, images=2)
    quality += np.where(who > 1, 10, 0)
    quality[-2:] = quality.max() + 1, -9  # the best pairs of images are of different persons
    (of_all,) = compute_all_pairs_curves(embeddings, who, quality, fmrs=(0.1,), mode="fixed-threshold")
    of_list = error_versus_discard(*pair_list(embeddings, who), quality, fmr=0.1, mode="fixed-threshold")
    assert of_all.fnmr.tolist() == of_list.fnmr.tolist()
    assert of_all.area(0.2) == pytest.approx(of_list.area(0.2))
    with pytest.raises(ValueError, match="no mated pair at discard ratio"):
        compute_all_pairs_curves(embeddings, who, quality, fmrs=(0.1,))


def test_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    scores, mated, pairs = pair_list(*faces(7)[:2])
    false, true, _ = metrics.roc_curve(mated, scores, drop_intermediate=False)
    for fmr in (0.3, 0.1, 0.01):
        curve = error_versus_discard(scores, mated, pairs, faces(7)[2], fmr=fmr, ratios=np.array([0.0]))
        assert curve.fnmr[0] == pytest.approx(1 - true[false <= fmr].max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mated": np.zeros(3, bool)}, "no mated pair"),
        ({"mated": np.ones(3, bool)}, "no non-mated pair"),
        ({"quality": np.array([0, np.nan, 1])}, "finite quality"),
        ({"scores": np.array([0, np.inf, 1])}, "finite comparison"),
        ({"pairs": np.array([[0, 1], [0, 2], [1, 3]])}, "images 0 to 2"),
        ({"mated": np.zeros(2, bool)}, "expected scores"),
        ({"fmr": 0.0}, "false match rate"),
        ({"ratios": np.array([0.1, 0.2])}, "rise from 0"),
    ],
)
def test_refused(change, message):
    good = {
        "scores": np.array([0.1, 0.2, 0.3]),
        "mated": np.array([True, False, False]),
        "pairs": np.array([[0, 1], [0, 2], [1, 2]]),
        "quality": np.arange(3.0),
    }
    with pytest.raises(ValueError, match=message):
        error_versus_discard(**{**good, **change})


def test_nothing_to_divide_by():
    ratios = np.arange(20) / 20
    with pytest.raises(ValueError, match="no mated pair fails"):
        Curve("normalised", 1e-3, ratios, np.zeros(20), ratios, 1, 1).area(0.2)
