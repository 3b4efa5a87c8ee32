"""Small networks of the kinds that recognition uses beside ResNets, written as their authors write them, for exports.

Each takes images ``[N, 3, 32, 32]`` and gives embeddings ``[N, 16]``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefiqs_ext.models.mobilefacenet import FACEX_ZOO, Bottlenecks, MobileFaceNet

SIDE, WIDTH = 32, 16


class SmallMobileFaceNet(MobileFaceNet):
    """MobileFaceNet, of few channels."""

    def __init__(self) -> None:
        stages = (Bottlenecks(8, 16, (16,)), Bottlenecks(12, 16, (20,)), Bottlenecks(12, 24, (16, 16)))
        super().__init__(FACEX_ZOO, 8, 8, stages, 24, WIDTH, SIDE // 16)


class _GhostModule(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.out = out
        half = (out + 1) // 2
        self.primary = nn.Sequential(nn.Conv2d(channels, half, 1, bias=False), nn.BatchNorm2d(half), nn.PReLU(half))
        self.cheap = nn.Sequential(nn.Conv2d(half, half, 3, 1, 1, groups=half), nn.BatchNorm2d(half), nn.PReLU(half))

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)[:, : self.out]


class Ghost(nn.Module):
    """GhostNet: half of the channels are made of the other half; squeeze and excitation; a depthwise output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.ghost1, self.ghost2 = _GhostModule(12, 15), _GhostModule(15, 12)
        self.reduce, self.expand = nn.Conv2d(15, 4, 1), nn.Conv2d(4, 15, 1)
        self.head = nn.Conv2d(12, 12, SIDE // 2, groups=12, bias=False)
        self.project = nn.Conv2d(12, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem((x - 127.5) / 128)
        y = self.ghost1(x)
        gate = F.hardtanh(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(y, 1)))) + 3, 0, 6) / 6
        return self.project(self.head(x + self.ghost2(y * gate)))  # [N, 16, 1, 1]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = (q * self.scale) @ k.transpose(-2, -1)
        if bias is not None:
            attention = attention + bias.unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            attention = attention.view(n // windows, windows, self.heads, length, length)
            attention = (attention + mask.unsqueeze(1).unsqueeze(0)).view(-1, self.heads, length, length)
        return self.proj((attention.softmax(-1) @ v).transpose(1, 2).reshape(n, length, width))


class ViT(nn.Module):
    """A vision transformer with a class token and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 24)), nn.Parameter(torch.randn(1, 17, 24))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(24), nn.LayerNorm(24, eps=1e-6), nn.LayerNorm(24)
        self.attention = _Attention(24, 3)
        self.mlp = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24))
        self.head = nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x / 255).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm3(x)[:, 0])


class Swin(nn.Module):
    """Windows of 4 x 4 on an 8 x 8 map, shifted by two, with a bias for each relative position."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.attention = _Attention(16, 2)
        self.table = nn.Parameter(torch.randn(49, 2))
        places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        relative = (places[:, :, None] - places[:, None, :]) + 3
        self.register_buffer("relative", relative[0] * 7 + relative[1])
        region = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
        regions = (3 * region[:, None] + region[None]).view(1, 8, 8, 1)
        windows = self.split(regions).squeeze(-1)
        self.register_buffer("mask", (windows[:, None] != windows[:, :, None]) * -100.0)
        self.merge = nn.Linear(64, 32, bias=False)
        self.head = nn.Linear(32, WIDTH)

    @staticmethod
    def split(x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        x = x.view(n, height // 4, 4, width // 4, 4, channels)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x / 255).permute(0, 2, 3, 1)
        n, height, width, channels = x.shape
        shifted = torch.roll(self.norm(x), (-2, -2), (1, 2))
        bias = self.table[self.relative.view(-1)].view(16, 16, -1).permute(2, 0, 1)
        y = self.attention(self.split(shifted), bias, self.mask)
        y = y.view(n, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        x = x + torch.roll(y, (2, 2), (1, 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.merge(x).mean((1, 2)))


class ConvNeXt(nn.Module):
    """A block with a 7x7 depthwise convolution, norms over channels, and a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.weight, self.bias = nn.Parameter(torch.rand(12) + 0.5), nn.Parameter(torch.randn(12))
        self.depthwise, self.norm = nn.Conv2d(12, 12, 7, padding=3, groups=12), nn.LayerNorm(12, eps=1e-6)
        self.wide, self.narrow = nn.Linear(12, 48), nn.Linear(48, 12)
        self.gamma = nn.Parameter(torch.rand(12))
        self.head = nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x / 255)
        mean = x.mean(1, keepdim=True)  # a norm over channels, written out
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        x = self.weight[:, None, None] * x + self.bias[:, None, None]
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(F.gelu(self.wide(y)))
        return F.normalize(self.head((x + y.permute(0, 3, 1, 2)).mean((-2, -1))))


class EdgeNeXt(nn.Module):
    """Split depthwise convolutions, then attention across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 18, 4, 4)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, groups=6) for _ in range(2))
        self.norm, self.qkv, self.proj = nn.LayerNorm(18), nn.Linear(18, 54), nn.Linear(18, 18)
        self.temperature = nn.Parameter(torch.rand(3, 1, 1) + 0.5)
        self.head = nn.Linear(18, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x / 255)
        parts = torch.split(x, 6, 1)
        part, done = parts[0], []
        for i, conv in enumerate(self.convs):
            part = conv(part if i == 0 else part + parts[i])
            done.append(part)
        x = torch.cat([*done, parts[2]], 1)
        n, channels, height, width = x.shape
        x = x.reshape(n, channels, height * width).permute(0, 2, 1)
        qkv = self.qkv(self.norm(x)).reshape(n, height * width, 3, 3, channels // 3).permute(2, 0, 3, 1, 4)
        q, k, v = (part.transpose(-2, -1) for part in qkv.unbind(0))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        y = (attention @ v).permute(0, 3, 1, 2).reshape(n, height * width, channels)
        x = (x + self.proj(y)).permute(0, 2, 1).reshape(n, channels, height, width)
        return self.head(F.interpolate(x, scale_factor=2.0, mode="bilinear").mean((-2, -1)))


NETWORKS: dict[str, type[nn.Module]] = {
    "mobilefacenet": SmallMobileFaceNet,
    "ghostnet": Ghost,
    "vit": ViT,
    "swin": Swin,
    "convnext": ConvNeXt,
    "edgenext": EdgeNeXt,
}


def make_network(name: str) -> nn.Module:
    """A network with random weights and plausible statistics, in eval mode."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()
