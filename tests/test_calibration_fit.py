"""The rule of the calibrated score on made-up copies: against other libraries, and where it must not act."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge

from prefiqs_ext.calibration import fit as rule
from prefiqs_ext.calibration.fit import Copies, choose_penalty, fit, fit_correction, fit_logistic, measure_area
from prefiqs_ext.faces.degrade import KINDS

FACES, EACH, LAYERS = 200, 3, 4


def make_copies(seed: int = 0, *, told: float = 1.0, noise: float = 0.1) -> Copies:
    """Copies whose angle the signal tells in part, and layer 0 tells `told` of the rest; the other layers are noise."""
    random = np.random.default_rng(seed)
    count = FACES * EACH
    signal, rest = random.standard_normal((2, count))
    layers = random.standard_normal((count, LAYERS)) * [0.3, 1, 2, 0.5] + [5, 1, -3, 0]
    layers[:, 0] += 0.3 * (told * rest + signal)
    angle = np.clip(0.8 - 0.2 * signal - 0.2 * rest + noise * random.standard_normal(count), 0, 1.5)
    kinds = tuple(frozenset(random.choice(list(KINDS), random.integers(1, 3), replace=False)) for _ in range(count))
    return Copies(np.column_stack([0.1 * signal + 2, layers]), np.cos(angle), np.repeat(np.arange(FACES), EACH), kinds)


def test_kinds_have_one_family_each():
    assert sorted(kind for family in rule.FAMILIES.values() for kind in family) == sorted(KINDS)


def test_correction_that_helps():
    copies, other = make_copies(0), make_copies(1)
    fitted = fit(copies)
    rankings = other.features[:, 0], fitted.correction(other.features)
    # How much lower the mean angle of what is kept is than that of all. Signal and rest tell as much as each other, so
    # both together tell sqrt(2) = 1.41 times as much as the signal.
    prior, score = (other.angle.mean() - measure_area(other.angle, ranking) for ranking in rankings)
    assert 1.3 < score / prior < 1.5
    assert set(fitted.left_out) == set(KINDS)
    assert max(fitted.left_out.values()) < 1
    # The spread that nothing tells: noise of .1 rad is .1 sin(.8) = .07 in the cosine, and the curve is not quite it.
    assert 0.06 < fitted.error < 0.13
    expected, found, counts = np.array(fitted.reliability).T
    assert counts.sum() == FACES * EACH
    assert np.abs(expected - found).max() < 0.1
    assert list(expected) == sorted(expected)


def test_layers_that_tell_nothing():
    """By chance some penalty may seem to help a little; what it changes must be next to nothing."""
    penalties = []
    for seed in range(6):
        copies, random = make_copies(seed), np.random.default_rng(100 + seed)
        copies = replace(copies, features=np.column_stack([copies.features[:, 0], random.random((FACES * EACH, 2))]))
        penalties.append(choose_penalty(copies))
        fitted = fit(copies)
        corrected, prior = fitted.correction(copies.features), copies.features[:, 0]
        if penalties[-1] == np.inf:
            assert not fitted.correction.coefficients.any()
            assert np.array_equal(np.argsort(corrected, kind="stable"), np.argsort(prior, kind="stable"))
            assert all(value == pytest.approx(1) for value in fitted.left_out.values())
        assert spearmanr(corrected, prior).statistic > 0.99
    assert np.inf in penalties


@pytest.mark.parametrize("penalty", [0.03, 1.0])
def test_ridge_and_distance_against_other_libraries(penalty):
    copies = make_copies(4)
    found = fit_correction(copies, penalty)
    features = copies.features
    standard = (features - features.mean(0)) / features.std(0)
    prior, layers, target = standard[:, :1], standard[:, 1:], -copies.angle + copies.angle.mean()
    slope = np.linalg.lstsq(prior, target, rcond=None)[0]
    rest = layers - prior @ np.linalg.lstsq(prior, layers, rcond=None)[0]
    ridge = Ridge(alpha=penalty * len(target), fit_intercept=False).fit(rest, target - prior @ slope)
    expected = ridge.predict(rest) / slope * features[:, 0].std()  # on the scale of the prior
    centred = features - found.centre
    assert np.allclose(centred @ found.coefficients, expected, atol=1e-10)

    correlation = 0.99 * np.corrcoef(features.T) + 0.01 * np.eye(features.shape[1])
    inverse = np.linalg.inv(correlation * np.outer(features.std(0), features.std(0)))
    distances = [mahalanobis(row, features.mean(0), inverse) ** 2 for row in features]
    assert found.radius == pytest.approx(np.quantile(distances, 0.95))
    fade = np.minimum(1, found.radius / np.array(distances))
    assert np.allclose(found(features), centred[:, 0] + fade * expected, atol=1e-10)


def test_correction_fades_outside():
    copies = make_copies(5)
    found = fit_correction(copies, 0.1)
    away = np.zeros(1 + LAYERS)
    away[2] = 1.0
    shares = []
    for far in (0, 10, 100, 1000, 1e6):
        row = (found.centre + far * away)[None]
        shares.append(abs(float((found(row) - (row - found.centre)[:, 0])[0])))
    assert shares[0] == 0
    assert shares[-1] < 1e-4  # the score is the prior again
    assert shares[2] > shares[3] > shares[4]


def test_logistic_curve_against_scikit_learn():
    random = np.random.default_rng(6)
    values = random.normal(1, 2, 500)
    similarity = np.clip(1 / (1 + np.exp(-(0.3 + 0.8 * values))) + 0.1 * random.standard_normal(500), -0.2, 1)
    # A share of s is one success of weight s and one failure of weight 1 - s.
    share = np.clip(similarity, 0, 1)
    model = LogisticRegression(C=1e12, tol=1e-12, max_iter=1000)
    model.fit(np.tile(values, 2)[:, None], np.repeat([1, 0], 500), sample_weight=np.concatenate([share, 1 - share]))
    # Both stop when their steps are small.
    assert fit_logistic(values, similarity) == pytest.approx((model.intercept_[0], model.coef_[0, 0]), abs=1e-4)


def test_area_against_a_loop():
    random = np.random.default_rng(7)
    angle, score = random.random(103), random.integers(0, 20, 103).astype(float)  # with ties
    kept = []
    for discarded in np.linspace(0, 0.3, 31):
        order = sorted(range(103), key=lambda row: (score[row], row))
        kept.append(np.mean([angle[row] for row in order[round(discarded * 103) :]]))
    assert measure_area(angle, score) == pytest.approx(np.mean(kept))


def test_signals_that_tell_nothing():
    copies = make_copies(8)
    with pytest.raises(ValueError, match="neither the norm of the embedding nor D tells"):
        fit(replace(copies, features=-copies.features))
    flat = copies.features.copy()
    flat[:, 0] = 2
    with pytest.raises(ValueError, match="the same for all copies"):
        fit(replace(copies, features=flat))


def test_a_layer_that_never_changes_counts_for_nothing():
    copies = make_copies(9)
    constant = replace(copies, features=np.column_stack([copies.features, np.full(FACES * EACH, 3.0)]))
    found, without = fit_correction(constant, 0.1), fit_correction(copies, 0.1)
    assert found.coefficients[-1] == 0
    other = constant.features + np.array([0, 0, 0, 0, 0, 5.0])
    assert np.allclose(found(other), without(copies.features), atol=1e-10)
