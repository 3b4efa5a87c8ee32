"""MobileFaceNet (arXiv 1804.07573) with the state-dict names of FaceX-Zoo or of arcface_torch.

A bottleneck is a 1x1 convolution, a depthwise 3x3 convolution with the stride, and a 1x1 convolution without
activation. The kernel of the last depthwise convolution has the size of its map. The two code bases differ in names,
which :class:`Names` lists, and in their second layer: see :class:`MobileFaceNet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Names(NamedTuple):
    """The names that a code base gives to the parts of its MobileFaceNet.

    A dot leads into a part: "layers.0" is the part "0" of the part "layers".

    Attributes:
        convolution: The three layers of a convolution: the convolution itself, its batch norm and its PReLU.
        bottleneck: The three convolutions of a bottleneck.
        residual: The part of a residual stage in which its bottlenecks are numbered.
        stem: The first convolution.
        second: The second convolution, or the residual stage in its place.
        stages: The bottleneck of stride 2 and the residual stage of each of the three stages.
        separate: The convolution before the last depthwise one.
        output: The last depthwise convolution, the flattening, the linear layer and its batch norm.
    """

    convolution: tuple[str, str, str]
    bottleneck: tuple[str, str, str]
    residual: str
    stem: str
    second: str
    stages: tuple[tuple[str, str], ...]
    separate: str
    output: tuple[str, str, str, str]


FACEX_ZOO = Names(
    convolution=("conv", "bn", "prelu"),
    bottleneck=("conv", "conv_dw", "project"),
    residual="model",
    stem="conv1",
    second="conv2_dw",
    stages=(("conv_23", "conv_3"), ("conv_34", "conv_4"), ("conv_45", "conv_5")),
    separate="conv_6_sep",
    output=("conv_6_dw", "conv_6_flatten", "linear", "bn"),
)
"""The names of FaceX-Zoo, which follow InsightFace_Pytorch's."""
ARCFACE_TORCH = Names(
    convolution=("layers.0", "layers.1", "layers.2"),
    bottleneck=("layers.0", "layers.1", "layers.2"),
    residual="layers",
    stem="layers.0",
    second="layers.1",
    stages=(("layers.2", "layers.3"), ("layers.4", "layers.5"), ("layers.6", "layers.7")),
    separate="conv_sep",
    output=("features.layers.0", "features.layers.1", "features.layers.2", "features.layers.3"),
)
"""The names of insightface's arcface_torch."""


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


class Chain(nn.Sequential):
    """Modules that run one after the other, with names of their own."""

    def add(self, name: str, module: nn.Module) -> None:
        """Append a module. A dot in its name leads into a chain in this chain."""
        first, _, rest = name.partition(".")
        if not rest:
            self.add_module(first, module)
            return
        inside = self._modules.get(first)
        if not isinstance(inside, Chain):
            inside = Chain()
            self.add_module(first, inside)
        inside.add(rest, module)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last module gives for ``x`` ``[N, C, H, W]``."""
        for module in self:
            x = module(x)
        return x


class Convolution(Chain):
    """A convolution, a batch norm and, unless it is linear, PReLU."""

    def __init__(
        self,
        names: Names,
        inside: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        *,
        linear: bool = False,
    ) -> None:
        super().__init__()
        conv, norm, prelu = names.convolution
        self.add(conv, nn.Conv2d(inside, out, kernel, stride, padding, groups=groups, bias=False))
        self.add(norm, nn.BatchNorm2d(out))
        if not linear:
            self.add(prelu, nn.PReLU(out))


class Bottleneck(Chain):
    """A 1x1 convolution, a depthwise 3x3 one with the stride, and a 1x1 one without activation.

    If the stride is 1, the input is added to the result.
    """

    def __init__(self, names: Names, inside: int, out: int, expanded: int, stride: int) -> None:
        super().__init__()
        expand, depthwise, project = names.bottleneck
        self.add(expand, Convolution(names, inside, expanded))
        self.add(depthwise, Convolution(names, expanded, expanded, 3, stride, 1, groups=expanded))
        self.add(project, Convolution(names, expanded, out, linear=True))
        self.shortcut = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the result ``[N, out, ceil(H / stride), ceil(W / stride)]`` for ``x`` ``[N, inside, H, W]``."""
        result = super().forward(x)
        return x + result if self.shortcut else result


class MobileFaceNet(Chain):
    """MobileFaceNet.

    Args:
        names: The names of the parts.
        stem: The number of output channels of the first convolution.
        second: The number of groups of the second convolution: as many as channels in FaceX-Zoo, 64 in arcface_torch.
            Or the number of channels inside each bottleneck that arcface_torch's large network has in its place.
        stages: The three stages.
        wide: The number of channels before the last depthwise convolution.
        num_features: The length of an embedding.
        last_size: The side of that convolution's kernel and of its map in pixels: 7 for images of 112 x 112 pixels.

    Attributes:
        input_size: S, the side of the images in pixels: 16 * last_size.
    """

    def __init__(
        self,
        names: Names,
        stem: int,
        second: int | Sequence[int],
        stages: Sequence[Bottlenecks],
        wide: int,
        num_features: int,
        last_size: int,
    ) -> None:
        super().__init__()
        self.input_size = 16 * last_size
        self.add(names.stem, Convolution(names, 3, stem, 3, 2, 1))
        if isinstance(second, int):
            self.add(names.second, Convolution(names, stem, stem, 3, 1, 1, groups=second))
        else:
            self._add_residual(names, names.second, stem, second)
        inside = stem
        for (first, others), stage in zip(names.stages, stages, strict=True):
            self.add(first, Bottleneck(names, inside, stage.channels, stage.first, 2))
            self._add_residual(names, others, stage.channels, stage.others)
            inside = stage.channels
        self.add(names.separate, Convolution(names, inside, wide))
        depthwise, flatten, linear, norm = names.output
        self.add(depthwise, Convolution(names, wide, wide, last_size, groups=wide, linear=True))
        self.add(flatten, nn.Flatten())
        self.add(linear, nn.Linear(wide, num_features, bias=False))
        self.add(norm, nn.BatchNorm1d(num_features))

    def _add_residual(self, names: Names, name: str, channels: int, expanded: Sequence[int]) -> None:
        for index, wide in enumerate(expanded):
            self.add(f"{name}.{names.residual}.{index}", Bottleneck(names, channels, channels, wide, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings ``[N, num_features]``, not normalised, of images ``[N, 3, S, S]`` prepared by a preset."""
        return super().forward(x)
