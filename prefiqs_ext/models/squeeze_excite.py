"""Squeeze and excitation with the state-dict names of face recognition's usual code."""

from __future__ import annotations

from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Squeeze and excitation: scales each channel by a factor that depends on the means of all channels.

    Source: arXiv 1709.01507. IR-SE and SE-IResNet have one at the end of each block, before the sum.

    Args:
        channels: The number of channels.
        reduced: The number of channels between the two convolutions.
    """

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, reduced, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(reduced, channels, 1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` ``[N, C, H, W]`` with its channels scaled."""
        scale: Tensor = self.sigmoid(self.fc2(self.relu(self.fc1(self.avg_pool(x)))))
        return x * scale
