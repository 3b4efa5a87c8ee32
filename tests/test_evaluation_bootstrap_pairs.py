"""Intervals for lists of pairs against error_versus_discard over the same drawn pairs."""

import numpy as np
import pytest

from prefiqs_ext.evaluation.bootstrap_pairs import resample_pairs
from prefiqs_ext.evaluation.edc import RATIOS, error_versus_discard


def pair_list(seed, pairs=400, images=90, tied=False):
    """Pairs of images, a tenth of them listed twice, and two qualities, one with equal values."""
    rng = np.random.default_rng(seed)
    listed = rng.permutation(np.stack(np.triu_indices(images, 1), 1), axis=0)[: pairs - pairs // 10]
    good = rng.normal(size=images)
    mated = rng.random(len(listed)) < 0.4
    scores = mated * (1 + 0.5 * good[listed].min(1)) + rng.normal(0, 0.6, len(listed))
    scores = np.round(scores, 1) if tied else scores
    scores, mated, listed = (np.concatenate([values, values[: pairs // 10]]) for values in (scores, mated, listed))
    return scores, mated, listed, {"good": good, "equal": rng.integers(0, 5, images).astype(float)}


@pytest.mark.parametrize("fmr", [0.5, 0.1, 0.01, 1e-5])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("limit", [0.3, 0.8])
def test_agrees_with_drawn_lists(fmr, tied, limit):
    scores, mated, listed, qualities = pair_list(4, tied=tied)
    ratios = RATIOS[limit + 1e-9 >= RATIOS]
    result = resample_pairs(scores, mated, listed, qualities, fmr=fmr, limit=limit, resamples=6, seed=5)
    rng = np.random.default_rng(5)
    for b in range(6):
        drawn = rng.integers(len(scores), size=len(scores))
        for name, quality in qualities.items():
            curve = error_versus_discard(scores[drawn], mated[drawn], listed[drawn], quality, fmr=fmr, ratios=ratios)
            assert result.pauc[name][b] == pytest.approx(curve.area(limit), rel=1e-12)
            assert result.useless[b] == pytest.approx(1000 * limit * curve.fnmr[0], rel=1e-12)


def test_tail_of_the_worst_pairs_grows():
    """The highest non-mated scores are all of the pairs that go first."""
    rng = np.random.default_rng(0)
    listed, mated = np.arange(2000).reshape(-1, 2), np.arange(1000) % 2 == 0
    quality = np.arange(2000.0)
    scores = np.where(mated, rng.normal(1, 1, 1000), -np.arange(1000) / 100)
    result = resample_pairs(scores, mated, listed, {"a": quality}, fmr=1e-2, resamples=3)
    rng = np.random.default_rng(0)
    for b in range(3):
        drawn = rng.integers(1000, size=1000)
        curve = error_versus_discard(scores[drawn], mated[drawn], listed[drawn], quality, fmr=1e-2)
        assert result.pauc["a"][b] == pytest.approx(curve.area(0.3), rel=1e-12)


def test_centred_on_the_curve():
    scores, mated, listed, qualities = pair_list(1, pairs=2000)
    result = resample_pairs(scores, mated, listed, qualities, fmr=0.1, resamples=200)
    curve = error_versus_discard(scores, mated, listed, qualities["good"], fmr=0.1)
    low, high = np.percentile(result.pauc["good"], [0.5, 99.5])
    assert low < curve.area(0.3) < high
    assert result.interval("good")[1] < 0  # it explains the errors
    assert result.interval("good", "equal")[1] < 0


def test_refused():
    scores, mated, listed, qualities = pair_list(2)
    for change, message in [
        ({"qualities": {}}, "at least one"),
        ({"qualities": {"a": np.full(90, np.nan)}}, "finite quality"),
        ({"qualities": {"a": np.zeros(5)}}, "images 0 to 4"),
        ({"mated": mated[1:]}, "expected scores"),
        ({"mated": np.zeros(400, bool)}, "no mated pair"),
        ({"mated": np.arange(400) == 0}, "no mated pair"),  # in one of the draws
        ({"scores": np.full(400, np.inf)}, "finite comparison"),
        ({"fmr": 1.0}, "false match rate"),
    ]:
        good = {"scores": scores, "mated": mated, "pairs": listed, "qualities": qualities}
        with pytest.raises(ValueError, match=message):
            resample_pairs(**{**good, **change})
