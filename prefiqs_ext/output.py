"""What scoring images gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.utils import _pytree


class ScoreOutput(NamedTuple):
    """One row per image: its score, the numbers that it may come from, and its embedding for recognition.

    >>> out = prefiqs_ext.score(crops)
    >>> best = out.score.argsort(descending=True)[:10]  # the ten best faces
    >>> similarity = out.embedding @ out.embedding.T  # cosines: who is like whom

    All are float32, on the scorer's device. Of N images and embeddings of d numbers the shapes are ``[N]`` and
    ``[N, d]``. Source: PreFIQs, arXiv 2605.13396, section 3.
    """

    score: Tensor
    """``[N]``, HIGHER is better: the number to rank and to act on. It is a calibrated score of 0 to 100, the quality or
    the embedding norm, as the scorer's `rank_by` says."""
    distance: Tensor
    """``[N]`` in [0, 2], LOWER is better: D, how far pruning moves the normalised embedding."""
    quality: Tensor
    """``[N]`` in [0, 1], HIGHER is better: Q = 1 - D/2."""
    embedding: Tensor
    """``[N, d]``, of length 1: the embedding of the network itself, for recognition."""
    pruned_embedding: Tensor
    """``[N, d]``, of length 1: the embedding of the pruned network."""
    embedding_norm: Tensor
    """``[N]``: the norm of the network's embedding before normalisation; on some networks it tells quality too."""
    layer_norms: Tensor
    """``[N, K]``: the norms of the outputs of K layers, of those that the scorer was made with; K = 0 without."""


class ImageScore(NamedTuple):
    """The row of one image, with Python's numbers."""

    score: float
    quality: float
    distance: float
    embedding_norm: float
    embedding: Tensor
    """``[d]``"""


def split_output(output: ScoreOutput) -> list[ImageScore]:
    """Splits an output into its rows; waits for the device."""
    numbers = (output.score, output.quality, output.distance, output.embedding_norm)
    return list(map(ImageScore, *(column.tolist() for column in numbers), output.embedding))


# So that an exported Scorer can be saved: torch knows no public way for named tuples.
_pytree._register_namedtuple(ScoreOutput, serialized_type_name="prefiqs_ext.ScoreOutput")
