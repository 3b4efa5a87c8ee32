"""The distance D and the norm of the dense embedding together; one pass of the Scorer gives both.

Each becomes a z-score over the images of `fit`, and the quality is z(norm) - z(log D). The formula is ours. There are
two reasons for the logarithm:

* D is above 0 and skewed. Its spread would be that of its few highest values, and the norm alone would rank all other
  images.
* To first order, a pruned weight turns the embedding by an angle in inverse proportion to the norm. On a logarithmic
  scale the two effects add up instead of multiplying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from prefiqs_ext.exceptions import InputError, NotFittedError
from prefiqs_ext.methods.prefiqs import ScorerMethod

if TYPE_CHECKING:
    from typing_extensions import Self

_LEAST_DISTANCE = 1e-6  # how far float32 rounds D; a D of 0 has no logarithm
_LEAST_SPREAD = 1e-5  # relative to the mean: what rounding alone may do to a norm of 1


class ZScores(NamedTuple):
    """The scale of two signals: mean and standard deviation over the images of a fit.

    Attributes:
        distance: (mean, standard deviation) of D or of its logarithm.
        norm: (mean, standard deviation) of the norm.
    """

    distance: tuple[float, float]
    norm: tuple[float, float]

    @classmethod
    def fit(cls, distance: ArrayLike, norm: ArrayLike) -> ZScores:
        """Measure the scale of two signals [N], both finite.

        Raises:
            InputError: Fewer than two images, or a signal that is the same for all of them.
        """
        scales = []
        for name, given in (("distance", distance), ("norm", norm)):
            values = np.asarray(given, np.float64)
            if len(values) < 2 or values.std() <= _LEAST_SPREAD * abs(values.mean()):
                raise InputError(f"expected two images or more to fit on, whose {name} differs; got {len(values)}")
            scales.append((float(values.mean()), float(values.std())))
        return cls(*scales)

    def quality(self, distance: ArrayLike, norm: ArrayLike) -> NDArray[np.float64]:
        """[N] z-score of the norm minus z-score of the distance, HIGHER is better."""
        z_distance, z_norm = (
            (np.asarray(values, np.float64) - mean) / deviation
            for values, (mean, deviation) in ((distance, self.distance), (norm, self.norm))
        )
        difference: NDArray[np.float64] = z_norm - z_distance
        return difference


def log_distance(distance: ArrayLike) -> NDArray[np.float64]:
    """[N] natural logarithm of D; a D below 1e-6 counts as 1e-6."""
    logarithm: NDArray[np.float64] = np.log(np.maximum(np.asarray(distance, np.float64), _LEAST_DISTANCE))
    return logarithm


class Combined(ScorerMethod):
    """z(norm) - z(log D), any finite number, HIGHER is better."""

    name = "prefiqs+norm"
    higher_is_better = True
    fit_images = 200

    _z_scores: ZScores | None = None

    def fit_signals(self, distance: Tensor, norm: Tensor) -> Self:
        """Take the scale of N > 1 images from their signals [N].

        Raises:
            InputError: Fewer than two images, or a signal that is the same for all of them.
        """
        self._z_scores = ZScores.fit(log_distance(distance.cpu().numpy()), norm.cpu().numpy())
        return self

    def score_signals(self, distance: Tensor, norm: Tensor) -> Tensor:
        """Score N images by their signals [N]: float32 [N].

        Raises:
            NotFittedError: Before a fit.
        """
        if self._z_scores is None:
            raise NotFittedError("prefiqs+norm: call fit() first: the scales of D and norm are not known")
        return torch.from_numpy(
            self._z_scores.quality(log_distance(distance.cpu().numpy()), norm.cpu().numpy())
        ).float()
