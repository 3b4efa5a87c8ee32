"""The normalisation that a preset describes, as modules: alone, and in front of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prefiqs_ext.models.preset import Preset


class Normalize(nn.Module):
    """Turns RGB images of levels 0-255 into a network's input: ``(x - mean) / std``, in the network's channel order.

    Attributes:
        flip: Whether the channels are reordered to BGR first.
        scale: ``1 / std``, float32 ``[3]``, in the network's channel order.
        shift: ``-mean / std``, float32 ``[3]``, likewise. The output is ``x * scale + shift``.
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
        """Normalise images.

        Args:
            x: RGB images ``[N, 3, H, W]`` with levels of 0-255, uint8 or floating-point.

        Returns:
            A tensor ``[N, 3, H, W]`` in the dtype of the buffers, which is float32 unless you change it.
        """
        if self.flip:
            x = x.flip(1)
        return x.to(self.scale.dtype) * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)


class NormalizedNetwork(nn.Module):
    """A network with the normalisation of its preset in front, so that it takes levels of 0-255.

    Attributes:
        normalize: The :class:`Normalize` of the preset.
        network: The network itself. A layer ``fc`` of it has the name ``network.fc`` here.
    """

    def __init__(self, preset: Preset, network: nn.Module) -> None:
        super().__init__()
        self.normalize = preset.normalize().eval()
        self.network = network
        self.training = network.training  # dualize refuses a network in train mode, so this must not hide it

    def forward(self, images: Tensor) -> object:
        """Return what the network gives for RGB images ``[N, 3, H, W]`` of levels 0-255."""
        return self.network(self.normalize(images))
