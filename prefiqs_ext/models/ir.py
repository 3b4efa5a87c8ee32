"""IR and IR-SE: the residual networks of face.evoLVe, CurricularFace, AdaFace and CVLface, with their state-dict names.

Source: face.evoLVe's model_irse and AdaFace's net, with the basic block (depths up to 100). A block is a batch norm, a
convolution, (in AdaFace a batch norm,) PReLU, a convolution with the stride, a batch norm, and in IR-SE squeeze and
excitation. The shortcut is a max-pool of size 1 if the number of channels stays, else a convolution and a batch norm.
The output layers are a batch norm, a linear layer and a batch norm. Dropout does nothing in eval mode; it is here so
that the layers after it keep their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

STEM_CHANNELS = 64


class SqueezeExcite(nn.Module):
    """Squeeze and excitation: scales each channel by a factor that depends on the means of all channels.

    Source: arXiv 1709.01507.

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


class Block(nn.Module):
    """One residual block of IR or IR-SE.

    Args:
        in_channels: The number of channels of the input.
        out_channels: The number of channels of the result.
        stride: The stride of the second convolution and of the shortcut.
        norm_between: Whether there is a batch norm after the first convolution, as in AdaFace.
        excite: The name and the reduced channels of the squeeze and excitation at the end; None for IR.
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
        """Return the result ``[N, out_channels, ceil(H / stride), ceil(W / stride)]`` for ``x`` ``[N, C, H, W]``."""
        result: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return result


class IR(nn.Module):
    """IR or IR-SE of basic blocks.

    Args:
        channels: The number of output channels of each block. The first block has stride 2, and so has every block with
            another number of channels than the block before it.
        num_features: The length of an embedding.
        last_size: The side of the last map in pixels: 7 for images of 112 x 112 pixels and four strides of 2.
        norm_between: Whether the blocks have a batch norm after their first convolution, as in AdaFace.
        excite: The name of the squeeze and excitation in each block, and the number by which it divides the channels;
            None for IR.
        affine: Whether the last batch norm has weights.

    Attributes:
        input_size: S, the side of the images in pixels.
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
        """Return embeddings ``[N, num_features]``, not normalised, of images ``[N, 3, S, S]`` prepared by a preset."""
        embedding: Tensor = self.output_layer(self.body(self.input_layer(x)))
        return embedding
