"""D and norm together, against scipy's z-scores of what the Scorer gives."""

import numpy as np
import pytest
import torch
from networks import calibrated, pictures
from scipy.stats import zscore

from prefiqs_ext import Preset, Pruning, Scorer, methods
from prefiqs_ext.exceptions import NotFittedError
from prefiqs_ext.methods.combined import ZScores, log_distance

PRESET = Preset("odd", (32, 32), "bgr", (127.5,) * 3, (128.0,) * 3)
IMAGES = pictures(11, 32)


def test_is_the_difference_of_z_scores():
    network, pruning = calibrated("residual"), Pruning(sparsity=0.3)
    method = methods.create("prefiqs+norm", network, PRESET, pruning=pruning)
    assert method.fit_images == 200
    assert method.higher_is_better
    with pytest.raises(NotFittedError, match=r"call fit\(\) first"):
        method.score(IMAGES)
    assert method.fit(IMAGES) is method
    scored = Scorer(network, pruning, preset=PRESET)(IMAGES)
    expected = zscore(scored.embedding_norm.double()) - zscore(scored.distance.double().log())
    scores = method.score(IMAGES)
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)  # float32 out
    # The scale is that of the fit, not of the batch.
    assert torch.equal(method.score(IMAGES[3:5]), scores[3:5])


def test_better_in_both_is_better():
    fitted = ZScores.fit([0.0, 1.0, 2.0], [5.0, 7.0, 9.0])
    low, high = fitted.quality([2.0, 0.5], [6.0, 8.0])
    assert low < high
    assert fitted.quality([1.0], [7.0]) == 0
    assert log_distance([0.0, 1.0]) == pytest.approx([np.log(1e-6), 0])


@pytest.mark.parametrize(
    ("distance", "norm", "name"),
    [([1, 2], [1, 1 + 1e-7], "norm"), ([3, 3], [1, 2], "distance"), ([1], [1], "distance")],
)
def test_nothing_to_scale_by(distance, norm, name):
    with pytest.raises(ValueError, match=f"whose {name} differs"):
        ZScores.fit(distance, norm)
