"""The two signals of one pass of the Scorer: the distance D and the norm of the dense embedding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor, nn

from prefiqs_ext.exceptions import NotFittedError
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer

if TYPE_CHECKING:
    from typing_extensions import Self


class ScorerMethod(ABC):
    """A method that needs nothing but what the Scorer gives for an image.

    These are the two signals: the distance D between the dense and the pruned embedding, and the norm of the dense
    embedding. If you have them already, call `fit_signals` and `score_signals`; then no network runs.

    Attributes:
        recalibrates: Whether the signals are those of a Scorer that is recalibrated on the images of the fit.
    """

    name: str
    higher_is_better: bool
    fit_images = 0
    recalibrates = False

    def __init__(
        self,
        network: nn.Module,
        preset: Preset,
        *,
        pruning: Pruning | None = None,
        output: int | str | None = None,
    ) -> None:
        self.network, self.preset, self.output = network, preset, output
        self.pruning = Pruning() if pruning is None else pruning

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.network, self.pruning, preset=self.preset, output=self.output)

    def fit(self, images: Tensor) -> Self:
        """Fit on uint8 RGB images [N, 3, H, W], and return the method itself."""
        result = self._scorer(images)
        return self.fit_signals(result.distance, result.embedding_norm)

    def score(self, images: Tensor) -> Tensor:
        """Score uint8 RGB images [N, 3, H, W]: float32 [N]."""
        result = self._scorer(images)
        return self.score_signals(result.distance, result.embedding_norm)

    def fit_signals(self, distance: Tensor, norm: Tensor) -> Self:
        """Fit on the signals of N images, and return the method itself.

        Args:
            distance: [N], D in [0, 2].
            norm: [N], above 0.
        """
        return self

    @abstractmethod
    def score_signals(self, distance: Tensor, norm: Tensor) -> Tensor:
        """Score N images by their signals.

        Args:
            distance: [N], D in [0, 2].
            norm: [N], above 0.

        Returns:
            float32 [N].
        """


class PreFIQs(ScorerMethod):
    """The distance D in [0, 2], LOWER is better (PreFIQs, arXiv 2605.13396)."""

    name = "prefiqs"
    higher_is_better = False

    def score_signals(self, distance: Tensor, norm: Tensor) -> Tensor:
        """Return the distance."""
        return distance


class RecalibratedPreFIQs(PreFIQs):
    """The distance D in [0, 2] of a pruned branch that is recalibrated on the images of `fit`, LOWER is better."""

    name = "prefiqs-recalibrated"
    fit_images = 200
    recalibrates = True

    @cached_property
    def _scorer(self) -> Scorer:
        raise NotFittedError("prefiqs-recalibrated: call fit() first: the gains and shifts are not known")

    def fit(self, images: Tensor) -> Self:
        """Recalibrate on uint8 RGB faces [N, 3, H, W], 8 different ones or more, and return the method itself.

        Raises:
            InputError: Fewer images, or whatever the Scorer refuses.
        """
        self._scorer = Scorer(self.network, self.pruning, recalibrate=images, preset=self.preset, output=self.output)
        return self


class EmbeddingNorm(ScorerMethod):
    """The norm of the dense embedding before normalisation, above 0, HIGHER is better (MagFace, CVPR 2021)."""

    name = "norm"
    higher_is_better = True

    def score_signals(self, distance: Tensor, norm: Tensor) -> Tensor:
        """Return the norm."""
        return norm
