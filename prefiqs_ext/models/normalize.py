"""The normalisation that a preset describes, as a module: alone, and in front of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prefiqs_ext.models.preset import Preset


class Normalize(nn.Module):
    """Turns an image of levels 0-255 into a network's input: ``(x - mean) / std``, in the network's channel order.

    Attributes:
        flip: whether RGB becomes BGR first.
        scale: float32 ``[3]``, ``1 / std``, in the network's channel order.
        shift: float32 ``[3]``, ``-mean / std``; the output is ``x * scale + shift``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float], *, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        self.register_buffer("scale", torch.tensor([1 / s for s in std], dtype=torch.float32))
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises images.

        Args:
            x: uint8 or floating ``[N, 3, H, W]``, RGB levels 0-255.

        Returns:
            ``[N, 3, H, W]`` in the dtype of the buffers, float32 unless you change it.
        """
        if self.flip:
            x = x.flip(1)
        return x.to(self.scale.dtype) * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)


class NormalizedNetwork(nn.Module):
    """A network behind the normalisation of its preset: it takes levels of 0-255.

    Attributes:
        normalize: the :class:`Normalize` of the preset.
        network: the network itself, so its layers have the names that they had, behind ``network.``
    """

    def __init__(self, preset: Preset, network: nn.Module) -> None:
        super().__init__()
        self.normalize = preset.normalize().eval()
        self.network = network
        self.training = network.training  # dualize refuses a network in train mode; wrapping must not hide it

    def forward(self, images: Tensor) -> object:
        """Returns what the network gives for images ``[N, 3, H, W]`` of levels 0-255."""
        return self.network(self.normalize(images))
