"""D and the norm of the dense embedding together; one pass gives both.

Each becomes a z-score over the images of fit(), and their difference is the quality. D enters as its logarithm: it is
above 0 and skewed, so by itself its spread would be that of its few highest values, and all other images would be
ranked by the norm alone. To first order a weight that is pruned also turns the embedding by an angle in inverse
proportion to the norm, so that on a logarithmic scale the two are added, not multiplied.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.methods.prefiqs import ScorerMethod

_LEAST = 1e-6  # D's rounding in float32; a D of 0 has no logarithm
_VARIES = 1e-5  # of a mean: what rounding alone may do to a norm of 1


class ZScores(NamedTuple):
    """Means and standard deviations of two measures over some images."""

    drift: tuple[float, float]
    norm: tuple[float, float]

    @classmethod
    def fit(cls, drift: ArrayLike, norm: ArrayLike) -> ZScores:
        """drift, norm: [N], finite. ValueError for fewer than two images, or where either is the same for all."""
        found = []
        for name, given in (("drift", drift), ("norm", norm)):
            values = np.asarray(given, np.float64)
            if len(values) < 2 or values.std() <= _VARIES * abs(values.mean()):
                raise InputError(f"expected two images or more to fit on, whose {name} differs; got {len(values)}")
            found.append((float(values.mean()), float(values.std())))
        return cls(*found)

    def quality(self, drift: ArrayLike, norm: ArrayLike) -> NDArray[np.float64]:
        """[N] z-score of the norm - z-score of the drift, HIGHER is better."""
        z_drift, z_norm = (
            (np.asarray(values, np.float64) - mean) / deviation
            for values, (mean, deviation) in ((drift, self.drift), (norm, self.norm))
        )
        difference: NDArray[np.float64] = z_norm - z_drift
        return difference


def log_distance(distance: ArrayLike) -> NDArray[np.float64]:
    """[N] natural logarithm of D; of one below 1e-6, that of 1e-6."""
    logarithm: NDArray[np.float64] = np.log(np.maximum(np.asarray(distance, np.float64), _LEAST))
    return logarithm


class Combined(ScorerMethod):
    """Norm and D together, HIGHER is better; any finite number."""

    name = "prefiqs+norm"
    higher_is_better = True
    needs_fit = True

    _z_scores: ZScores | None = None

    def fit_pass(self, distance: Tensor, norm: Tensor) -> None:
        """[N], N > 1: they become the scale. ValueError where one is the same for all."""
        self._z_scores = ZScores.fit(log_distance(distance.cpu().numpy()), norm.cpu().numpy())

    def read(self, distance: Tensor, norm: Tensor) -> Tensor:
        """ValueError before a fit."""
        if self._z_scores is None:
            raise InputError("prefiqs+norm: call fit() first: the scales of D and norm are not known")
        return torch.from_numpy(
            self._z_scores.quality(log_distance(distance.cpu().numpy()), norm.cpu().numpy())
        ).float()
