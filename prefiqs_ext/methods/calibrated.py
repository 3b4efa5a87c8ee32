"""The calibrated score: the embedding's norm, corrected by the norms of layers as far as degraded copies support it.

The formula is in calibration/scale.py, the rule of its fit in calibration/fit.py. Both are this project's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from prefiqs_ext.calibration.calibrate import MOST_FACES, calibrate
from prefiqs_ext.exceptions import NotFittedError
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer

if TYPE_CHECKING:
    from typing_extensions import Self


class Calibrated:
    """The expected similarity of a face to a good image of the same face, in [0, 100], HIGHER is better.

    Call `fit` before `score`.

    Args:
        network: In eval mode, in float32 and on the CPU.
        preset: What the network wants done to an image.
        pruning: What the pruned branch loses. It matters only where D is the prior, see calibration/fit.py.
        seed: Of the degradations.
        output: Which of the network's several outputs is the embedding, as in :class:`Scorer`.
    """

    name = "calibrated"
    higher_is_better = True
    fit_images = MOST_FACES

    def __init__(
        self,
        network: nn.Module,
        preset: Preset,
        *,
        pruning: Pruning | None = None,
        seed: int = 0,
        output: int | str | None = None,
    ) -> None:
        self.network, self.preset, self.seed, self.output = network, preset, seed, output
        self.pruning = Pruning() if pruning is None else pruning
        self._scorer: Scorer | None = None

    def fit(self, images: Tensor) -> Self:
        """Calibrate on uint8 RGB faces [N, 3, H, W], 50 different ones or more, and return the method itself.

        Raises:
            InputError: What :func:`prefiqs_ext.calibrate` refuses.
        """
        settings = calibrate(images, self.network, self.pruning, preset=self.preset, output=self.output, seed=self.seed)
        self._scorer = Scorer.from_settings(settings, self.network)
        return self

    def score(self, images: Tensor) -> Tensor:
        """Score uint8 RGB images [N, 3, H, W]: float32 [N].

        Raises:
            NotFittedError: Before `fit`.
        """
        if self._scorer is None:
            raise NotFittedError("calibrated: call fit() first: the score is not known")
        return self._scorer(images).score
