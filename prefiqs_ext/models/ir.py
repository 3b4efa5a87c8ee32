"""IR and IR-SE: the residual networks of face.evoLVe, CurricularFace, AdaFace and CVLface, with their state-dict names.

Source: face.evoLVe's model_irse and AdaFace's net, for the basic block (depths up to 100). A block is batch norm,
convolution, [batch norm,] PReLU, convolution with the stride, batch norm, and in IR-SE squeeze and excitation; the
shortcut is a max-pool of size 1 where channels stay, else a convolution and batch norm. The output is batch norm, a
linear layer and batch norm; the embedding is not normalised. Dropout, which does nothing in eval mode, keeps its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

STEM_CHANNELS = 64


class SqueezeExcite(nn.Module):
    """Squeeze and excitation: scales channels by a function of their means (arXiv 1709.01507)."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, reduced, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(reduced, channels, 1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x`` ``[N, C, H, W]`` with its channels scaled."""
        scale: Tensor = self.sigmoid(self.fc2(self.relu(self.fc1(self.avg_pool(x)))))
        return x * scale


class Block(nn.Module):
    """One residual block of IR or IR-SE.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        stride: of the second convolution and the shortcut.
        norm_between: whether there is a batch norm after the first convolution, as in AdaFace.
        excite: the name and the reduced channels of the squeeze and excitation at the end; None for IR.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, norm_between: bool, excite: tuple[str, int] | None
    ) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if in_channels != out_channels:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False),
            *([nn.BatchNorm2d(out_channels)] if norm_between else []),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        if excite is not None:
            name, reduced = excite
            self.res_layer.add_module(name, SqueezeExcite(out_channels, reduced))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[N, out, ceil(H / stride), ceil(W / stride)]``."""
        result: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return result


class IR(nn.Module):
    """IR or IR-SE of basic blocks: images prepared as the checkpoint's preset says in, embeddings out.

    Args:
        channels: channels of every block's result. The first block has stride 2, and so has every block whose channels
            differ from those before it.
        num_features: numbers of an embedding.
        last_size: side of the last map: S / 16 with four strides, 7 for images of 112.
        norm_between: as :class:`Block` takes it.
        excite: the name of each block's squeeze and excitation, and by what it divides the channels.
        affine: whether the last batch norm scales and shifts.

    Attributes:
        input_size: S, the side of the images.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_features: int = 512,
        *,
        last_size: int = 7,
        norm_between: bool = False,
        excite: tuple[str, int] | None = None,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, STEM_CHANNELS, 3, 1, 1, bias=False), nn.BatchNorm2d(STEM_CHANNELS), nn.PReLU(STEM_CHANNELS)
        )
        before = [STEM_CHANNELS, *channels]
        strides = [2 if index == 0 or out != before[index] else 1 for index, out in enumerate(channels)]
        self.input_size = last_size * prod(strides)
        self.body = nn.Sequential(
            *(
                Block(
                    before[index],
                    out,
                    strides[index],
                    norm_between=norm_between,
                    excite=None if excite is None else (excite[0], out // excite[1]),
                )
                for index, out in enumerate(channels)
            )
        )
        last = before[-1]
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(last * last_size**2, num_features),
            nn.BatchNorm1d(num_features, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns embeddings ``[N, num_features]``, not normalised, of prepared images ``[N, 3, S, S]``."""
        embedding: Tensor = self.output_layer(self.body(self.input_layer(x)))
        return embedding
