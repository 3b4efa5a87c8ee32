"""MobileFaceNet (arXiv 1804.07573) with the state-dict names of FaceX-Zoo, which follow InsightFace_Pytorch's.

A bottleneck is a 1x1 convolution, a depthwise 3x3 convolution with the stride, and a 1x1 convolution without
activation. The kernel of the last depthwise convolution has the size of its map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Bottlenecks(NamedTuple):
    """One stage: a bottleneck of stride 2, then bottlenecks of stride 1 with a shortcut.

    Attributes:
        channels: The number of output channels of each bottleneck.
        first: The number of channels inside the first bottleneck.
        others: The number of channels inside each of the others.
    """

    channels: int
    first: int
    others: Sequence[int]


class Linear(nn.Module):
    """A convolution and a batch norm."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, out, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map ``[N, out, H', W']`` for ``x`` ``[N, inside, H, W]``."""
        result: Tensor = self.bn(self.conv(x))
        return result


class Activated(Linear):
    """A convolution, a batch norm and PReLU."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1) -> None:
        super().__init__(inside, out, kernel, stride, padding, groups)
        self.prelu = nn.PReLU(out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map ``[N, out, H', W']`` for ``x`` ``[N, inside, H, W]``."""
        result: Tensor = self.prelu(super().forward(x))
        return result


class Bottleneck(nn.Module):
    """A 1x1 convolution, a depthwise 3x3 one with the stride, and a 1x1 one without activation.

    If the stride is 1, the input is added to the result.
    """

    def __init__(self, inside: int, out: int, expanded: int, stride: int) -> None:
        super().__init__()
        self.conv = Activated(inside, expanded, 1)
        self.conv_dw = Activated(expanded, expanded, 3, stride, 1, groups=expanded)
        self.project = Linear(expanded, out, 1)
        self.shortcut = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the result ``[N, out, ceil(H / stride), ceil(W / stride)]`` for ``x`` ``[N, inside, H, W]``."""
        result: Tensor = self.project(self.conv_dw(self.conv(x)))
        return x + result if self.shortcut else result


class Residual(nn.Module):
    """Bottlenecks of stride 1, one after the other."""

    def __init__(self, channels: int, expanded: Sequence[int]) -> None:
        super().__init__()
        self.model = nn.Sequential(*(Bottleneck(channels, channels, wide, 1) for wide in expanded))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape as ``x``."""
        result: Tensor = self.model(x)
        return result


class MobileFaceNet(nn.Module):
    """MobileFaceNet.

    Args:
        stem: The number of output channels of the first convolution.
        stages: The three stages.
        wide: The number of channels before the last depthwise convolution.
        num_features: The length of an embedding.
        last_size: The side of that convolution's kernel and of its map in pixels: 7 for images of 112 x 112 pixels.

    Attributes:
        input_size: S, the side of the images in pixels: 16 * last_size.
    """

    def __init__(
        self,
        stem: int = 64,
        stages: Sequence[Bottlenecks] = (
            Bottlenecks(64, 128, (128,) * 4),
            Bottlenecks(128, 256, (256,) * 6),
            Bottlenecks(128, 512, (256,) * 2),
        ),
        wide: int = 512,
        num_features: int = 512,
        last_size: int = 7,
    ) -> None:
        super().__init__()
        self.input_size = 16 * last_size
        first, second, third = stages
        self.conv1 = Activated(3, stem, 3, 2, 1)
        self.conv2_dw = Activated(stem, stem, 3, 1, 1, groups=stem)
        self.conv_23 = Bottleneck(stem, first.channels, first.first, 2)
        self.conv_3 = Residual(first.channels, first.others)
        self.conv_34 = Bottleneck(first.channels, second.channels, second.first, 2)
        self.conv_4 = Residual(second.channels, second.others)
        self.conv_45 = Bottleneck(second.channels, third.channels, third.first, 2)
        self.conv_5 = Residual(third.channels, third.others)
        self.conv_6_sep = Activated(third.channels, wide, 1)
        self.conv_6_dw = Linear(wide, wide, last_size, groups=wide)
        self.linear = nn.Linear(wide, num_features, bias=False)
        self.bn = nn.BatchNorm1d(num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings ``[N, num_features]``, not normalised, of images ``[N, 3, S, S]`` prepared by a preset."""
        x = self.conv_23(self.conv2_dw(self.conv1(x)))
        x = self.conv_45(self.conv_4(self.conv_34(self.conv_3(x))))
        x = self.conv_6_dw(self.conv_6_sep(self.conv_5(x)))
        embedding: Tensor = self.bn(self.linear(x.flatten(1)))
        return embedding
