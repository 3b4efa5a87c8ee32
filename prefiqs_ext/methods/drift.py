"""What one pass of the Scorer tells: the drift D, and the norm of the dense embedding."""

from __future__ import annotations

from torch import Tensor, nn

from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer


class PreFIQs:
    """D in [0, 2], LOWER is better (PreFIQs, arXiv 2605.13396)."""

    name = "prefiqs"
    higher_is_better = False
    needs_fit = False

    def __init__(self, network: nn.Module, preset: Preset, pruning: Pruning, seed: int) -> None:
        self._scorer = Scorer(network, pruning, preset=preset)

    def fit(self, images: Tensor) -> None:
        """Nothing to do."""

    def score(self, images: Tensor) -> Tensor:
        return self._scorer(images).distance


class EmbeddingNorm(PreFIQs):
    """Norm of the dense embedding before normalisation, above 0, HIGHER is better."""

    name = "norm"
    higher_is_better = True

    def score(self, images: Tensor) -> Tensor:
        return self._scorer(images).embedding_norm
