"""Load dlib's face recognition network from its own file, as ordinary modules.

The network is the ResNet-29 of dlib's dnn_face_recognition_ex.cpp, for images of 150 x 150 pixels. The format is that
of dlib's serialize.h, float_details.h, dnn/core.h and dnn/layers.h. In dlib, each layer contains the layer before it.
So a file has two parts: first the versions of all layers, from the loss back to the image; then the data of all
layers, in the opposite order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.models.file_kinds import refuse_other_kinds
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.text import format_path

SIZE = 150
"""The height and width of an image in pixels."""

_NOT_FINITE = 32000  # this exponent and larger ones mean infinity or NaN
_STEM = 32
_EMBEDDING = 128
# For each block, in the order of the computation: the number of filters, and whether it halves the map.
_BLOCKS = (
    *((32, False),) * 3,
    *((64, True), *((64, False),) * 3),
    *((128, True), *((128, False),) * 2),
    *((256, True), *((256, False),) * 2),
    (256, True),
)


class ScaleShift(nn.Module):
    """One scale and one shift per channel: what a batch norm is after training.

    Args:
        channels: The number of channels.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * weight + bias`` for ``x`` ``[N, C, H, W]``, channel by channel."""
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class Block(nn.Module):
    """One residual block: ReLU of the sum of the residual and the shortcut.

    If their sizes or channels differ, zeros are appended to the smaller one.

    Args:
        in_channels: The number of channels of the input.
        out_channels: The number of channels of the result.
        size: The side of the input in pixels.
        down: Whether the block halves the map.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int, *, down: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, 2 if down else 1, 0 if down else 1)
        self.affine1 = ScaleShift(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.affine2 = ScaleShift(out_channels)
        self.down = down
        self.size = size // 2 if down else size
        self.missing = self.size - (size - 1) // 2 if down else 0  # rows and columns that the residual lacks
        self.missing_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the map ``[N, out_channels, self.size, self.size]`` for ``x`` ``[N, in_channels, size, size]``."""
        residual = self.affine2(self.conv2(F.relu(self.affine1(self.conv1(x)))))
        shortcut = F.avg_pool2d(x, 2) if self.down else x
        if self.missing:
            residual = F.pad(residual, (0, self.missing, 0, self.missing))
        if self.missing_channels:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.missing_channels))
        return F.relu(residual + shortcut)


class DlibResNet(nn.Module):
    """dlib's ResNet-29. It gives the same embeddings as dlib itself.

    Attributes:
        mean: The mean of the training images, float32 ``[3]``, which is subtracted from an image.
        input_size: The side of the images in pixels, 150.
    """

    mean: Tensor
    input_size = SIZE

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.conv = nn.Conv2d(3, _STEM, 7, 2)
        self.affine = ScaleShift(_STEM)
        size = ((SIZE - 7) // 2 + 1 - 3) // 2 + 1
        blocks, channels = [], _STEM
        for filters, down in _BLOCKS:
            blocks.append(Block(channels, filters, size, down=down))
            channels, size = filters, blocks[-1].size
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, _EMBEDDING, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings ``[N, 128]``, not normalised, of RGB images ``[N, 3, 150, 150]`` with levels of 0-255."""
        x = (x - self.mean.view(1, 3, 1, 1)) / 256
        x = F.max_pool2d(F.relu(self.affine(self.conv(x))), 3, 2)
        embedding: Tensor = self.fc(self.blocks(x).mean((2, 3)))
        return embedding


def load_dlib(file: IO[bytes], path: Path) -> DlibResNet:
    """Load dlib_face_recognition_resnet_model_v1.dat, or another file of the same network.

    Args:
        file: The open file.
        path: Its path, for errors.

    Returns:
        The network, in eval mode on the CPU in float32.

    Raises:
        FileAccessError: The file cannot be read.
        FileFormatError: The file is damaged, would do harm or has another network.
    """
    name = format_path(str(path))
    try:
        with explain_read_errors(name):
            refuse_other_kinds(file, "dlib")
            file.seek(0)
            data = file.read()
        return _read_network(_Reader(data))
    except FileFormatError as error:
        raise FileFormatError(f"cannot load {name}: {error}") from error


def _read_network(file: _Reader) -> DlibResNet:
    network = DlibResNet().eval()
    # Both lists are in the order of the computation. `steps` reads the data of each layer. `versions` has the versions
    # that each layer may have; the file begins with them, in the opposite order.
    steps: list[Callable[[], None]] = [
        lambda: _read_conv(file, network.conv, 0),
        lambda: _read_affine(file, network.affine),
        lambda: _read_relu(file),
        lambda: _read_pool(file, "max_pool_2", 3, 2),
    ]
    versions: list[tuple[int, ...]] = [_INPUT, *[_LAYER] * 3]
    for block in network.blocks:
        assert isinstance(block, Block)
        steps += _list_block_steps(file, block)
        versions += [_TAG, *[_LAYER] * 5, *([_TAG, _TAG, _LAYER] if block.down else []), *[_LAYER] * 2]
    steps += [lambda: _read_pool(file, "avg_pool_2", 0, 1), lambda: _read_linear(file, network.fc)]
    versions += [_LAYER, _LAYER]
    file.expect_version("the loss", (1,))
    if file.expect_string(("loss_metric_", "loss_metric_2")) == "loss_metric_2":
        file.read_number(), file.read_number()  # the margin and the threshold
    found = [file.expect_version("a layer", allowed) for allowed in reversed(versions)][::-1]
    file.expect_string(("input_rgb_image_sized",))
    with torch.no_grad():
        network.mean.copy_(torch.tensor([file.read_number() for _ in range(3)]))
        for size in (file.read_integer(), file.read_integer()):
            if size != SIZE:
                raise FileFormatError(f"expected a network for {SIZE} x {SIZE} pixels, got {size}")
        layers = [version for version, allowed in zip(found, versions, strict=True) if allowed != _TAG]
        for index, (step, version) in enumerate(zip(steps, layers, strict=True)):
            step()
            _skip_state(file, version, innermost=index == 0)
    file.expect_end()
    for name, tensor in network.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise FileFormatError(f"{name} has NaN or infinite values")
    return network


# The versions that can be read of dlib's add_layer on an input, of add_layer, and of add_tag_layer and add_skip_layer.
_INPUT, _LAYER, _TAG = (2, 3), (1, 2), (1,)


def _list_block_steps(file: _Reader, block: Block) -> list[Callable[[], None]]:
    """Return functions that read the data of a block's layers, in the order of the computation."""
    steps: list[Callable[[], None]] = [
        lambda: _read_conv(file, block.conv1, 0 if block.down else 1),
        lambda: _read_affine(file, block.affine1),
        lambda: _read_relu(file),
        lambda: _read_conv(file, block.conv2, 1),
        lambda: _read_affine(file, block.affine2),
    ]
    if block.down:
        steps.append(lambda: _read_pool(file, "avg_pool_2", 2, 2))
    return [*steps, lambda: _read_sum(file), lambda: _read_relu(file)]


def _read_conv(file: _Reader, conv: nn.Conv2d, padding: int) -> None:
    version = file.expect_string(("con_4", "con_5", "con_6"))
    values = file.read_tensor()
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    file.expect_integers("a convolution", (conv.out_channels, kernel, kernel, stride, stride, padding, padding))
    weights, biases = file.read_shape(), file.read_shape()
    for _ in range(4):
        file.read_number()  # factors of the learning rate and of the weight decay
    if version != "con_4":
        file.expect_boolean("a convolution's use_bias", True)
    if version == "con_6":
        file.expect_boolean("a convolution's use_relu", False)
    shape, count = tuple(conv.weight.shape), conv.weight.numel()
    if (weights, biases) != (shape, (1, conv.out_channels, 1, 1)) or values.size != count + conv.out_channels:
        raise FileFormatError(f"expected filters {list(shape)} with a bias, got {list(weights)} and {list(biases)}")
    assert conv.bias is not None
    conv.weight.copy_(torch.from_numpy(values[:count].reshape(shape)))
    conv.bias.copy_(torch.from_numpy(values[count:]))


def _read_affine(file: _Reader, affine: ScaleShift) -> None:
    version = file.expect_string(("affine_", "affine_2"))
    values = file.read_tensor()
    shapes = file.read_shape(), file.read_shape()
    file.expect_integers("an affine layer's mode", (0,))  # one number for each channel, not for each pixel
    if version == "affine_2":
        file.expect_boolean("an affine layer's disabled", False)
    channels = len(affine.weight)
    if shapes != ((1, channels, 1, 1),) * 2 or values.size != 2 * channels:
        raise FileFormatError(f"expected {channels} scales and shifts, got {[list(shape) for shape in shapes]}")
    affine.weight.copy_(torch.from_numpy(values[:channels]))
    affine.bias.copy_(torch.from_numpy(values[channels:]))


def _read_relu(file: _Reader) -> None:
    if file.expect_string(("relu_", "relu_2")) == "relu_2":
        file.expect_boolean("a ReLU's disabled", False)


def _read_sum(file: _Reader) -> None:
    file.expect_string(("add_prev_",))


def _read_pool(file: _Reader, name: str, size: int, stride: int) -> None:
    file.expect_string((name,))
    file.expect_integers("a pooling", (size, size, stride, stride, 0, 0))


def _read_linear(file: _Reader, linear: nn.Linear) -> None:
    version = file.expect_string(("fc_2", "fc_3"))
    file.expect_integers("the linear layer", (linear.out_features, linear.in_features))
    values, weights, _ = file.read_tensor(), file.read_shape(), file.read_shape()
    file.expect_integers("the linear layer's bias mode", (1,))  # there is no bias
    for _ in range(4):
        file.read_number()
    if version == "fc_3":
        file.read_boolean()  # whether the bias is used; there is none
    if weights != (linear.in_features, linear.out_features, 1, 1) or values.size != linear.weight.numel():
        raise FileFormatError(f"expected {linear.weight.numel()} weights of the linear layer, got {list(weights)}")
    linear.weight.copy_(torch.from_numpy(values.reshape(linear.in_features, linear.out_features)).T)


def _skip_state(file: _Reader, version: int, *, innermost: bool) -> None:
    """Read past what a layer keeps from training.

    Args:
        file: The file.
        version: The version of the layer.
        innermost: Whether the layer is the one next to the image.
    """
    for _ in range(3):
        file.read_boolean()
    for _ in range(2 + (innermost or version == 2)):
        file.read_tensor()
    if innermost and version == 3:
        file.read_integer()


class _Reader:
    """Reads dlib's numbers, strings and tensors, one after the other.

    The methods named `expect_` also check the value. All methods raise FileFormatError for data that is not what they
    read, or that ends too early.

    Args:
        data: The content of the file.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read_integer(self) -> int:
        head = self._take(1)[0]
        size = head & 0x0F
        if head & 0x70 or not 1 <= size <= 8:
            raise FileFormatError(f"expected an integer at byte {self._at - 1}, got {head:#04x}")
        value = int.from_bytes(self._take(size), "little")
        return -value if head & 0x80 else value

    def read_number(self) -> float:
        mantissa, exponent = self.read_integer(), self.read_integer()
        with suppress(OverflowError):
            if exponent < _NOT_FINITE:
                return math.ldexp(mantissa, exponent)
        raise FileFormatError(f"expected a finite number before byte {self._at}")

    def read_boolean(self) -> bool:
        value = self._take(1)
        if value not in (b"0", b"1"):
            raise FileFormatError(f"expected 0 or 1 at byte {self._at - 1}, got {value!r}")
        return value == b"1"

    def expect_boolean(self, what: str, expected: bool) -> None:
        if self.read_boolean() != expected:
            raise FileFormatError(f"expected {what} to be {expected}, got {not expected}")

    def read_tensor(self) -> np.ndarray:
        """Return the values of a tensor, float32, in one dimension."""
        self.expect_version("a tensor", (2,))
        count = math.prod(self._read_size() for _ in range(4))
        return np.frombuffer(self._take(4 * count), "<f4").copy()

    def read_shape(self) -> tuple[int, ...]:
        """Return the four sizes of a part of a tensor (dlib's alias_tensor)."""
        self.expect_version("a tensor's shape", (1,))
        return tuple(self._read_size() for _ in range(4))

    def expect_version(self, what: str, allowed: tuple[int, ...]) -> int:
        version = self.read_integer()
        if version not in allowed:
            raise FileFormatError(f"expected {what} of version {' or '.join(map(str, allowed))}, got {version}")
        return version

    def expect_string(self, allowed: tuple[str, ...]) -> str:
        size = self._read_size()
        found = self._take(min(size, 64)).decode("latin-1")
        if found not in allowed:
            raise FileFormatError(
                f"expected a layer {' or '.join(allowed)} of dlib's face recognition network, got {found!r}"
            )
        return found

    def expect_integers(self, what: str, expected: tuple[int, ...]) -> None:
        found = tuple(self.read_integer() for _ in expected)
        if found != expected:
            raise FileFormatError(f"expected {what} of {expected}, got {found}")

    def expect_end(self) -> None:
        if self._at != len(self._data):
            raise FileFormatError(f"{len(self._data) - self._at} bytes follow the network")

    def _read_size(self) -> int:
        size = self.read_integer()
        if not 0 <= size <= len(self._data):
            raise FileFormatError(f"expected a size before byte {self._at}, got {size}")
        return size

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise FileFormatError(f"truncated: {count} bytes expected at byte {self._at}, {len(taken)} are left")
        self._at += count
        return taken
