"""What scoring a batch gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.utils import _pytree


class ScoreOutput(NamedTuple):
    """One row an image, float32 (PreFIQs, arXiv 2605.13396, section 3)."""

    distance: Tensor
    """[N] D in [0, 2]: how far pruning moves the normalised embedding. LOWER is a better image."""
    quality: Tensor
    """[N] Q = 1 - D/2 in [0, 1]. HIGHER is a better image."""
    embedding: Tensor
    """[N, d] L2-normalised embedding of the dense network: recognition for free."""
    pruned_embedding: Tensor
    """[N, d] L2-normalised embedding of the pruned network."""
    embedding_norm: Tensor
    """[N] norm of the dense embedding before normalisation; on some networks a strong quality signal of its own."""


# So that an exported Scorer can be saved: torch knows no public way for named tuples.
_pytree._register_namedtuple(ScoreOutput, serialized_type_name="prefiqs_ext.ScoreOutput")
