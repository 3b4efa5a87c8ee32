"""The kinds of networks people have, built small: random, in eval mode, each with an input it takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from networks import calibrate, calibrated, network_input, pictures
from torch import Tensor, nn


class Ghost(nn.Module):
    """GhostNet's module (arXiv 1911.11907): half of the channels by a convolution, the others from those, depthwise."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        half = out // 2
        self.primary = nn.Sequential(nn.Conv2d(inside, half, 1, bias=False), nn.BatchNorm2d(half), nn.PReLU(half))
        self.cheap = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half), nn.PReLU(half)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], dim=1)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class GhostNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16))
        self.ghost1 = Ghost(16, 40)
        self.down = nn.Sequential(nn.Conv2d(40, 40, 3, 2, 1, groups=40, bias=False), nn.BatchNorm2d(40))
        self.excite = SqueezeExcite(40)
        self.ghost2 = Ghost(40, 24)
        self.shortcut = nn.Sequential(
            nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.Conv2d(16, 24, 1, bias=False)
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 30), nn.BatchNorm1d(30))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.ghost2(self.excite(self.down(self.ghost1(x)))) + self.shortcut(x))


class MobileNet(nn.Module):
    """MobileNetV3's inverted residuals (arXiv 1905.02244): hard-swish, squeeze and excite, ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(16, 60, 1, bias=False), nn.BatchNorm2d(60), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(60, 60, 5, padding=2, groups=60, bias=False), nn.BatchNorm2d(60))
        self.excite = SqueezeExcite(60)
        self.project = nn.Sequential(nn.Conv2d(60, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Sequential(nn.Hardswish(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 30))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.project(self.excite(F.hardswish(self.depthwise(self.expand(x))))))


class ResNet(nn.Module):
    """Basic and bottleneck blocks (arXiv 1512.03385), ReLU after the sum, a 7x7 stem with max-pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.basic = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.bottleneck = nn.Sequential(
            nn.Conv2d(16, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.Conv2d(12, 12, 3, 2, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.Conv2d(12, 44, 1, bias=False),
            nn.BatchNorm2d(44),
        )
        self.downsample = nn.Sequential(nn.Conv2d(16, 44, 1, 2, bias=False), nn.BatchNorm2d(44))
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(44, 30)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(self.basic(x) + x)
        x = self.relu(self.bottleneck(x) + self.downsample(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(rows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, tokens, width))


class VisionTransformer(nn.Module):
    """Class token, learnt positions, blocks normalised first with layer scale; its forward traces by torch.fx."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 17, width))
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, 3)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.Parameter(torch.full((width,), 0.3))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = x + self.scale * self.attention(self.norm1(x))
        x = x + self.scale * self.mlp(self.norm2(x))
        return self.norm(x)[:, 0]


class ConvNeXt(nn.Module):
    """A 7x7 depthwise convolution, layer norm and an MLP in channels-last order, layer scale (arXiv 2201.03545)."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.3))
        self.fc = nn.Linear(width, 30)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inside = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        inside = self.scale * self.project(F.gelu(self.expand(inside)))
        return self.fc((x + inside.permute(0, 3, 1, 2)).mean((2, 3)))


class SpeakerNet(nn.Module):
    """Speaker embeddings from a waveform [N, 1, T]: dilated 1-d convolutions, then mean and deviation over time."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            nn.Conv1d(1, 20, 25, stride=10, bias=False),
            nn.BatchNorm1d(20),
            nn.ReLU(),
            nn.Conv1d(20, 24, 5, padding=2),
            nn.ReLU(),
            nn.BatchNorm1d(24),
            nn.Conv1d(24, 24, 3, dilation=2, padding="same", groups=3),
            nn.LeakyReLU(0.2),
            nn.BatchNorm1d(24),
            nn.Conv1d(24, 36, 1),
            nn.ReLU(),
            nn.BatchNorm1d(36),
        )
        self.fc = nn.Linear(72, 30)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frames(x)
        return self.fc(torch.cat([x.mean(2), x.std(2)], dim=1))


def waveforms(count: int, samples: int = 400, *, seed: int = 0) -> Tensor:
    """float32 [count, 1, samples]: a few tones each, and noise."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / samples
    tones = torch.rand(count, 3, 1, generator=generator) * 60
    return torch.sin(6.283 * tones * time).sum(1, keepdim=True) + 0.1 * torch.randn(
        count, 1, samples, generator=generator
    )


def _images(count: int, *, seed: int = 0) -> Tensor:
    return network_input(pictures(count, 32, seed=seed))


def _random(build: Callable[[], nn.Module], inputs: Callable[..., Tensor]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return calibrate(build(), inputs(8, seed=1))

    return make


def _transformers(name: str, **settings: object) -> Callable[[], nn.Module]:
    """A model of the transformers library with random weights; torch.fx cannot trace it, torch.export can."""

    def make() -> nn.Module:
        import transformers

        torch.manual_seed(0)
        model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings))
        return calibrate(model, _images(8, seed=1))

    return make


class Flat(nn.Module):
    """transformers' ResNet pools to [N, C, 1, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).pooler_output.flatten(1)


_VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
_CONVNEXT = {"hidden_sizes": [12, 20, 24, 28], "depths": [1, 2, 1, 1]}
_RESNET = {"embedding_size": 12, "hidden_sizes": [16, 24, 32, 36], "depths": [1, 2, 1, 1]}

ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "iresnet18": (lambda: calibrated("iresnet18"), lambda count, seed=0: network_input(pictures(count, seed=seed))),
    "mobilefacenet": (lambda: calibrated("mobile"), _images),
    "weight reuse": (lambda: calibrated("reuse"), _images),
    "grouped": (lambda: calibrated("groups"), _images),
    "ghostnet": (_random(GhostNet, _images), _images),
    "mobilenet": (_random(MobileNet, _images), _images),
    "resnet": (_random(ResNet, _images), _images),
    "vit": (_random(VisionTransformer, _images), _images),
    "convnext": (_random(ConvNeXt, _images), _images),
    "audio": (_random(SpeakerNet, waveforms), waveforms),
    "transformers vit": (_transformers("ViT", image_size=32, patch_size=8, **_VIT), _images),
    "transformers convnext": (_transformers("ConvNext", image_size=32, **_CONVNEXT), _images),
    "transformers resnet": (lambda: Flat(_transformers("ResNet", **_RESNET)()), _images),
}
