"""The protocol that every method follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


class Method(Protocol):
    """Takes images and gives one raw score per image, which does not depend on the rest of the batch.

    Attributes:
        name: What :func:`prefiqs_ext.methods.create` calls it.
        higher_is_better: The direction of the raw scores. PreFIQs, for example, gives a distance: LOWER is better.
        fit_images: The number of images that :meth:`fit` makes use of, at most. 0: it need not be called before
            :meth:`score`.
    """

    name: str
    higher_is_better: bool
    fit_images: int

    def fit(self, images: Tensor) -> Self:
        """Calibrate on uint8 RGB images [N, 3, H, W], and return the method itself.

        A method that needs no fit returns itself at once.
        """

    def score(self, images: Tensor) -> Tensor:
        """Score images.

        Args:
            images: uint8 RGB [N, 3, H, W], of the preset's size.

        Returns:
            float32 [N].

        Raises:
            NotFittedError: The method needs a fit and has had none.
            InputError: Another batch, or an image without a finite score.
        """
        ...
