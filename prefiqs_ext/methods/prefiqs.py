"""What one pass of the Scorer tells: the drift D, and the norm of the dense embedding."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor, nn

from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer


class ScorerMethod:
    """A method that needs of an image only what the Scorer gives: D [N] and the embedding's norm [N].

    Who has these already calls `fit_pass` and `read` with them, and no network runs.
    """

    name: str
    higher_is_better: bool
    needs_fit = False

    def __init__(
        self, network: nn.Module, preset: Preset, pruning: Pruning, seed: int, output: int | str | None = None
    ) -> None:
        self._made_of = network, preset, pruning, output

    @cached_property
    def _scorer(self) -> Scorer:
        network, preset, pruning, output = self._made_of
        return Scorer(network, pruning, preset=preset, output=output)

    def fit(self, images: Tensor) -> None:
        output = self._scorer(images)
        self.fit_pass(output.distance, output.embedding_norm)

    def score(self, images: Tensor) -> Tensor:
        output = self._scorer(images)
        return self.read(output.distance, output.embedding_norm)

    def fit_pass(self, distance: Tensor, norm: Tensor) -> None:
        """Nothing to do where needs_fit is False."""

    def read(self, distance: Tensor, norm: Tensor) -> Tensor:
        """Float32 [N]."""
        raise NotImplementedError


class PreFIQs(ScorerMethod):
    """D in [0, 2], LOWER is better (PreFIQs, arXiv 2605.13396)."""

    name = "prefiqs"
    higher_is_better = False

    def read(self, distance: Tensor, norm: Tensor) -> Tensor:
        return distance


class EmbeddingNorm(ScorerMethod):
    """Norm of the dense embedding before normalisation, above 0, HIGHER is better."""

    name = "norm"
    higher_is_better = True

    def read(self, distance: Tensor, norm: Tensor) -> Tensor:
        return norm
