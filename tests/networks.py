"""Random networks that behave like trained ones, and images to feed them.

Plain random weights make a deep network overflow or go blind. Here the weights are He's (arXiv 1502.01852), and every
batch norm has the statistics of one train-mode pass over images, so activations keep their scale at any depth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefiqs_ext.models import iresnet


def pictures(count: int, size: int | tuple[int, int] = 112, *, seed: int = 0) -> Tensor:
    """uint8 [count, 3, H, W]: seeded noise of several scales, coarse ones strongest, as in photographs.

    Brightness, contrast and fine noise differ from image to image, so scores differ too.
    """
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    picture = torch.zeros(count, 3, height, width)
    for cells, weight in ((3, 1.0), (7, 0.6), (15, 0.35), (31, 0.2)):
        grey = torch.randn(count, 1, cells, cells, generator=generator)
        tint = 0.4 * torch.randn(count, 3, cells, cells, generator=generator)
        picture += weight * F.interpolate(grey + tint, (height, width), mode="bicubic", align_corners=False)
    picture += uniform(0.0, 0.3) * torch.randn(count, 3, height, width, generator=generator)
    return (uniform(90, 160) + uniform(20, 60) * picture).round().clamp(0, 255).to(torch.uint8)


def network_input(pixels: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1, 1], as most networks of the field want them."""
    return (pixels.float() - 127.5) / 127.5


def calibrate(model: nn.Module, batch: Tensor, *, seed: int = 0) -> nn.Module:
    """Seeds all parameters, sets batch-norm statistics by a train-mode pass over `batch`; returns the model in eval."""
    generator = torch.Generator().manual_seed(seed)
    norms: list[nn.BatchNorm1d | nn.BatchNorm2d] = []
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
            elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                norms.append(module)
                if module.affine:
                    if module.weight.requires_grad:  # IResNet's last scale is fixed to 1
                        module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.3, generator=generator)
            elif isinstance(module, nn.PReLU):
                module.weight.uniform_(0.05, 0.45, generator=generator)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average: after one pass, the statistics of that pass
        model.train()(batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model.eval()


class Mobile(nn.Module):
    """MobileFaceNet in small: depthwise 3x3 between 1x1 convolutions, linear bottlenecks, a last global depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16))
        self.down = self._bottleneck(16, 24, 2)
        self.same = self._bottleneck(24, 24, 1)
        self.last = nn.Sequential(nn.Conv2d(24, 24, 8, groups=24, bias=False), nn.BatchNorm2d(24))
        self.fc = nn.Linear(24, 32, bias=False)
        self.bn = nn.BatchNorm1d(32)

    @staticmethod
    def _bottleneck(inside: int, out: int, stride: int) -> nn.Sequential:
        wide = 2 * inside
        return nn.Sequential(
            nn.Conv2d(inside, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.PReLU(wide),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.PReLU(wide),
            nn.Conv2d(wide, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        x = x + self.same(x)
        return self.bn(self.fc(self.last(x).view(x.size(0), -1)))


class Residual(nn.Module):
    """IResNet blocks (no activation after the sum), with and without downsample, then one of ResNet (ReLU after it)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16))
        self.blocks = nn.Sequential(
            iresnet.Block(16, 24, 2), iresnet.Block(24, 24, 1), iresnet.Block(24, 32, 2), iresnet.Block(32, 32, 1)
        )
        self.conv1 = nn.Conv2d(32, 32, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 32, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.head = _pooled_head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        x = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)
        return self.head(x)


class Concat(nn.Module):
    """Branches of different kernels joined along channels, one of them without any convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU())
        self.narrow = nn.Sequential(nn.Conv2d(12, 10, 1), nn.BatchNorm2d(10), nn.PReLU())
        self.wide = nn.Sequential(nn.Conv2d(12, 14, 5, padding=2), nn.BatchNorm2d(14), nn.PReLU(14))
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.head = _pooled_head(36)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([self.narrow(x), self.wide(x), self.pool(x)], dim=1))


class Reuse(nn.Module):
    """One convolution used three times, first on a value that both branches share, later on one that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, 2, 1)
        self.conv = nn.Conv2d(20, 20, 3, padding=1)
        self.act = nn.PReLU()
        self.head = _pooled_head(20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        for _ in range(3):
            x = self.act(0.5 * self.conv(x)) + x
        return self.head(x)


def _pooled_head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 32), nn.BatchNorm1d(32))


def _groups() -> nn.Sequential:
    """ResNeXt's kind: 3x3 in 4 groups, then fewer input than output channels per group, then one group a channel."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 1, 1, groups=4, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 24, 3, 2, 1, groups=2),
        nn.PReLU(24),
        nn.Conv2d(24, 48, 3, 1, 1, groups=24, bias=False),
        nn.BatchNorm2d(48),
        nn.PReLU(),
        _pooled_head(48),
    )


def _norm_first() -> nn.Sequential:
    """Batch norm before padded convolutions of every kind: 7x7 stride 2, 5x5, dilated 3x3, 1x3, depthwise, stride 2."""
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 16, 7, 2, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.PReLU(16),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 5, 1, 2),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 20, 3, 1, 2, dilation=2, bias=False),
        nn.PReLU(),
        nn.BatchNorm2d(20),
        nn.Conv2d(20, 20, (1, 3), padding=(0, 1)),
        nn.PReLU(20),
        nn.BatchNorm2d(20),
        nn.Conv2d(20, 20, 3, 1, 1, groups=20, bias=False),
        nn.BatchNorm2d(20),
        nn.Conv2d(20, 24, 3, 2, 1),
        nn.ReLU(),
        nn.BatchNorm2d(24),
        _pooled_head(24),
    )


def _wide() -> nn.Module:
    """More than 64 filters, by kernels and strides of several kinds: what the CUDA kernel for Hopper takes."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1),
        nn.PReLU(16),
        nn.Conv2d(16, 72, 3, 2, 1, bias=False),
        nn.BatchNorm2d(72),
        nn.PReLU(72),
        nn.Conv2d(72, 72, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(72, 80, 1),
        nn.PReLU(80),
        nn.Conv2d(80, 72, 3, 2, 1),
        nn.PReLU(72),
        nn.Conv2d(72, 96, 1, bias=False),
        nn.BatchNorm2d(96),
        _pooled_head(96),
    )


ZOO: dict[str, Callable[[], nn.Module]] = {
    "mobile": Mobile,
    "residual": Residual,
    "concat": Concat,
    "reuse": Reuse,
    "groups": _groups,
    "norm_first": _norm_first,
    "wide": _wide,
}
ZOO_SIZE = 32  # pixels; "mobile" takes no other size, the others any


def calibrated(name: str, *, images: Tensor | None = None, seed: int = 0) -> nn.Module:
    """A network of ZOO or an IResNet ("iresnet18" ... "iresnet200"), in eval mode.

    images: uint8 [N, 3, H, W] to take batch-norm statistics from, N >= 2; 8 pictures of its input size by default.
    """
    build: Callable[[], nn.Module] = ZOO[name] if name in ZOO else getattr(iresnet, name)
    pixels = pictures(8, ZOO_SIZE if name in ZOO else 112, seed=1) if images is None else images
    return calibrate(build(), network_input(pixels), seed=seed)
