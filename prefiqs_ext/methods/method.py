"""What every method is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Method(Protocol):
    """Images in, one raw score an image out. An image's score does not depend on its batch."""

    name: str
    higher_is_better: bool
    needs_fit: bool
    """Whether fit() must be called before score(), which raises ValueError otherwise."""

    def fit(self, images: Tensor) -> None:
        """Calibrate on uint8 RGB images [N, 3, H, W]; nothing to do where needs_fit is False."""

    def score(self, images: Tensor) -> Tensor:
        """Float32 [N] of uint8 RGB images [N, 3, H, W] of the preset's size; errors as the Scorer's."""
        ...
