"""IResNet: the residual networks of face recognition, with the state-dict names of their usual checkpoints.

Source: Duta et al., "Improved Residual Networks for Image and Video Recognition" (arXiv 2004.04989), in the form that
ArcFace made common (arXiv 1801.07698). A block is a batch norm, a convolution, a batch norm, PReLU, a convolution and a
batch norm; there is no activation after its sum. ElasticFace, GraFIQs and CR-FIQA use the same names, and may have
squeeze and excitation at the end of each block (SE-IResNet). Their dropout has a probability of 0 and is left out here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prefiqs_ext.models.squeeze_excite import SqueezeExcite

_STAGE_CHANNELS = (64, 128, 256, 512)


class Block(nn.Module):
    """One residual block. Its second convolution has the stride.

    Args:
        in_channels: The number of channels of the input.
        out_channels: The number of channels of the result.
        stride: 1 or 2.
        eps: The eps of the batch norms.
        reduction: The number by which squeeze and excitation divides the channels; None for a block without it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, eps: float = 1e-5, reduction: int | None = None
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels, eps=eps)
        self.prelu = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, eps=eps)
        self.se_block = None if reduction is None else SqueezeExcite(out_channels, out_channels // reduction)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels, eps=eps),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the result ``[N, out_channels, ceil(H / stride), ceil(W / stride)]`` for ``x`` ``[N, C, H, W]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        residual: Tensor = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        if self.se_block is not None:
            residual = self.se_block(residual)
        return residual + shortcut


class IResNet(nn.Module):
    """IResNet, a residual network of four stages.

    Args:
        blocks: The number of residual blocks in each of the four stages.
        num_features: The length of an embedding.
        last_size: The side of the last map in pixels: 7 for images of 112 x 112 pixels.
        eps: The eps of every batch norm. It is 2e-5 in MagFace's networks.
        reduction: The number by which squeeze and excitation divides the channels; None for blocks without it.

    Attributes:
        input_size: S, the side of the images in pixels: 16 * last_size.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        num_features: int = 512,
        *,
        last_size: int = 7,
        eps: float = 1e-5,
        reduction: int | None = None,
    ) -> None:
        super().__init__()
        self.input_size = 16 * last_size  # each of the four stages halves the map
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps=eps)
        self.prelu = nn.PReLU(64)
        stages: list[nn.Module] = []
        in_channels = 64
        for count, channels in zip(blocks, _STAGE_CHANNELS, strict=True):
            first = Block(in_channels, channels, 2, eps, reduction)
            others = (Block(channels, channels, 1, eps, reduction) for _ in range(count - 1))
            stages.append(nn.Sequential(first, *others))
            in_channels = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(in_channels, eps=eps)
        self.fc = nn.Linear(in_channels * last_size**2, num_features)
        self.features = nn.BatchNorm1d(num_features, eps=eps)
        nn.init.ones_(self.features.weight)
        self.features.weight.requires_grad = False  # training keeps this scale at 1

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings ``[N, num_features]``, not normalised, of images ``[N, 3, S, S]`` prepared by a preset."""
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        embedding: Tensor = self.features(self.fc(torch.flatten(self.bn2(x), 1)))
        return embedding


def iresnet18(num_features: int = 512) -> IResNet:
    """Build an IResNet-18 with random weights, for images of 112 x 112 pixels and embeddings ``[N, num_features]``."""
    return IResNet((2, 2, 2, 2), num_features)


def iresnet34(num_features: int = 512) -> IResNet:
    """Build an IResNet-34 with random weights, for images of 112 x 112 pixels and embeddings ``[N, num_features]``."""
    return IResNet((3, 4, 6, 3), num_features)


def iresnet50(num_features: int = 512) -> IResNet:
    """Build an IResNet-50 with random weights, for images of 112 x 112 pixels and embeddings ``[N, num_features]``."""
    return IResNet((3, 4, 14, 3), num_features)


def iresnet100(num_features: int = 512) -> IResNet:
    """Build an IResNet-100 with random weights, for images of 112 x 112 pixels and embeddings ``[N, num_features]``."""
    return IResNet((3, 13, 30, 3), num_features)


def iresnet200(num_features: int = 512) -> IResNet:
    """Build an IResNet-200 with random weights, for images of 112 x 112 pixels and embeddings ``[N, num_features]``."""
    return IResNet((6, 26, 60, 6), num_features)
