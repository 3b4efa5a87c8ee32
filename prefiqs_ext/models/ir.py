"""IR and IR-SE: the residual networks of face.evoLVe, CurricularFace, AdaFace and CVLface, with their state-dict names.

Source: face.evoLVe's model_irse, and AdaFace's net. :data:`BLOCKS` lists the kinds of blocks. A block ends with squeeze
and excitation in IR-SE. Its shortcut is a max-pool of size 1 if the number of channels stays, else a convolution and a
batch norm. The output layers are a batch norm, a linear layer and a batch norm. Dropout does nothing in eval mode; it
is here so that the layers after it keep their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from torch import Tensor, nn

from prefiqs_ext.models.squeeze_excite import SqueezeExcite

STEM_CHANNELS = 64


class BlockLayout(NamedTuple):
    """The layers of a residual block, without its shortcut.

    Attributes:
        layers: The layers in order: "norm", "prelu", or "conv" and the size of its kernel. The last two are the
            convolution that has the stride, and a batch norm.
        expansion: The number of output channels for each channel inside the block.
    """

    layers: tuple[str, ...]
    expansion: int = 1


BASIC = BlockLayout(("norm", "conv3", "prelu", "conv3", "norm"))
"""Of face.evoLVe, InsightFace_Pytorch and CurricularFace, of any depth (and there called a bottleneck)."""
BASIC_WITH_NORM = BlockLayout(("norm", "conv3", "norm", "prelu", "conv3", "norm"))
"""Of AdaFace and CVLface, up to 101 layers."""
BOTTLENECK = BlockLayout(("norm", "conv1", "norm", "prelu", "conv3", "norm", "prelu", "conv1", "norm"), expansion=4)
"""Of AdaFace and CVLface, with 152 and 200 layers."""
BLOCKS = (BASIC, BASIC_WITH_NORM, BOTTLENECK)
"""All kinds of blocks. No two have the same number of layers."""


class Block(nn.Module):
    """One residual block of IR or IR-SE.

    Args:
        in_channels: The number of channels of the input.
        out_channels: The number of channels of the result.
        stride: The stride of the last convolution and of the shortcut.
        layout: The layers.
        excite: The name and the reduced channels of the squeeze and excitation at the end; None for IR.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, layout: BlockLayout, excite: tuple[str, int] | None
    ) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if in_channels != out_channels:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.res_layer = nn.Sequential()
        last = len(layout.layers) - 2
        channels = in_channels
        for index, kind in enumerate(layout.layers):
            if kind == "norm":
                self.res_layer.append(nn.BatchNorm2d(channels))
            elif kind == "prelu":
                self.res_layer.append(nn.PReLU(channels))
            else:
                kernel = int(kind.removeprefix("conv"))
                out = out_channels if index == last else out_channels // layout.expansion
                self.res_layer.append(
                    nn.Conv2d(channels, out, kernel, stride if index == last else 1, kernel // 2, bias=False)
                )
                channels = out
        if excite is not None:
            name, reduced = excite
            self.res_layer.add_module(name, SqueezeExcite(out_channels, reduced))

    def forward(self, x: Tensor) -> Tensor:
        """Return the result ``[N, out_channels, ceil(H / stride), ceil(W / stride)]`` for ``x`` ``[N, C, H, W]``."""
        result: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return result


class IR(nn.Module):
    """IR or IR-SE.

    Args:
        channels: The number of output channels of each block. The first block has stride 2, and so has every block with
            another number of channels than the block before it.
        num_features: The length of an embedding.
        last_size: The side of the last map in pixels: 7 for images of 112 x 112 pixels and four strides of 2.
        layout: The layers of each block, one of :data:`BLOCKS`.
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
        layout: BlockLayout = BASIC,
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
                    layout,
                    None if excite is None else (excite[0], out // excite[1]),
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
