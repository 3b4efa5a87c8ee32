"""MobileFaceNet (arXiv 1804.07573) with the state-dict names of FaceX-Zoo, which follow InsightFace_Pytorch's.

A bottleneck is a 1x1 convolution, a depthwise 3x3 with the stride and a linear 1x1; the last map goes through a
depthwise convolution of its own size. The embedding is not normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Bottlenecks(NamedTuple):
    """One stage: a bottleneck of stride 2, then others of stride 1 with a shortcut.

    Attributes:
        channels: of the result of each.
        first: the expanded channels inside the first one.
        others: the expanded channels inside each of the others.
    """

    channels: int
    first: int
    others: Sequence[int]


class Linear(nn.Module):
    """Convolution and batch norm."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, out, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Returns batch norm of the convolution of ``x``."""
        result: Tensor = self.bn(self.conv(x))
        return result


class Activated(Linear):
    """Convolution, batch norm, PReLU."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1) -> None:
        super().__init__(inside, out, kernel, stride, padding, groups)
        self.prelu = nn.PReLU(out)

    def forward(self, x: Tensor) -> Tensor:
        """Returns PReLU of batch norm of the convolution of ``x``."""
        result: Tensor = self.prelu(super().forward(x))
        return result


class Bottleneck(nn.Module):
    """A 1x1 convolution, a depthwise 3x3 one with the stride, and a linear 1x1 one.

    Where the stride is 1 there is a shortcut.
    """

    def __init__(self, inside: int, out: int, expanded: int, stride: int) -> None:
        super().__init__()
        self.conv = Activated(inside, expanded, 1)
        self.conv_dw = Activated(expanded, expanded, 3, stride, 1, groups=expanded)
        self.project = Linear(expanded, out, 1)
        self.shortcut = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[N, out, ceil(H / stride), ceil(W / stride)]``."""
        result: Tensor = self.project(self.conv_dw(self.conv(x)))
        return x + result if self.shortcut else result


class Residual(nn.Module):
    """Bottlenecks of stride 1, one after the other."""

    def __init__(self, channels: int, expanded: Sequence[int]) -> None:
        super().__init__()
        self.model = nn.Sequential(*(Bottleneck(channels, channels, wide, 1) for wide in expanded))

    def forward(self, x: Tensor) -> Tensor:
        """Returns a map of the shape of ``x``."""
        result: Tensor = self.model(x)
        return result


class MobileFaceNet(nn.Module):
    """MobileFaceNet: images prepared as the checkpoint's preset says in, embeddings out.

    Args:
        stem: channels of the first convolution.
        stages: the three stages.
        wide: channels before the last depthwise convolution.
        num_features: numbers of an embedding.
        last_size: the kernel of that convolution and the side of its map; 7 for images of 112.

    Attributes:
        input_size: the side of the images, 16 * last_size.
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
        """Returns embeddings ``[N, num_features]``, not normalised, of prepared images ``[N, 3, S, S]``."""
        x = self.conv_23(self.conv2_dw(self.conv1(x)))
        x = self.conv_45(self.conv_4(self.conv_34(self.conv_3(x))))
        x = self.conv_6_dw(self.conv_6_sep(self.conv_5(x)))
        embedding: Tensor = self.bn(self.linear(x.flatten(1)))
        return embedding
