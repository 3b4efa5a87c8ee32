"""Files of dlib's face recognition network, a record at a time, so that tests can put any of them wrong.

Written from dlib's serialize() functions: serialize.h, float_details.h, dnn/core.h, layers.h, input.h and loss.h.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prefiqs_ext.models.dlib import Block, DlibResNet, ScaleShift

Record = tuple[str, bytes]
"""What it is ("con: padding"), and its bytes."""


def random_network(seed: int) -> DlibResNet:
    """Random weights under which activations keep their size."""
    generator = torch.Generator().manual_seed(seed)
    network = DlibResNet().eval()
    network.mean.copy_(torch.tensor([120.25, 110.5, 100.75]))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, math.sqrt(2 / fan_in), generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.1, generator=generator)
        elif isinstance(module, ScaleShift):
            module.weight.uniform_(0.4, 0.9, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)
    return network


def records(network: DlibResNet, *, newest: bool) -> list[Record]:
    """The file that today's dlib writes, or the one that dlib 19.3 wrote: that of the published weights."""
    layers = list(_layers(network, newest))
    written: list[Record] = [("loss: version", integer(1)), ("loss: name", string("loss_metric_2"))]
    written += [("loss: margin", number(0.04, 24)), ("loss: threshold", number(0.6, 24))]
    for name, _ in reversed(layers):
        versions = {"tag": 1, "skip": 1, "con of the image": 3}
        written.append((f"{name}: version", integer(versions.get(name, 2))))
    written.append(("input: name", string("input_rgb_image_sized")))
    written += [("input: mean", number(value, 24)) for value in network.mean.tolist()]
    written += [("input: rows", integer(150)), ("input: columns", integer(150))]
    for (name, details), (following, _) in itertools.pairwise([*layers, ("the loss", [])]):
        if name in ("tag", "skip"):
            continue
        written += [(f"{name}: {what}", data) for what, data in details]
        written += [(f"{name}: setup called", boolean(True)), (f"{name}: gradient is stale", boolean(True))]
        # A ReLU works in place.
        written.append((f"{name}: output disabled", boolean(following == "relu")))
        written += [(f"{name}: state", tensor(None))] * 3
        if name == "con of the image":
            written.append((f"{name}: expansion", integer(1)))
    return written


def join(written: list[Record]) -> bytes:
    return b"".join(data for _, data in written)


def changed(written: list[Record], name: str, data: bytes) -> bytes:
    """The file with other bytes in the first record of this name."""
    at = [record for record, _ in written].index(name)
    return join([*written[:at], (name, data), *written[at + 1 :]])


def _layers(network: DlibResNet, newest: bool) -> Iterator[tuple[str, list[Record]]]:
    """Every layer from the image on; tags and skips have no details."""
    yield "con of the image", _con(network.conv, 0, newest)
    yield "affine", _affine(network.affine, newest)
    yield "relu", _relu(newest)
    yield "max_pool", _pool("max_pool_2", 3, 2)
    for block in network.blocks:
        assert isinstance(block, Block)
        yield "tag", []
        yield "con", _con(block.conv1, 0 if block.down else 1, newest)
        yield "affine", _affine(block.affine1, newest)
        yield "relu", _relu(newest)
        yield "con", _con(block.conv2, 1, newest)
        yield "affine", _affine(block.affine2, newest)
        if block.down:
            yield "tag", []
            yield "skip", []
            yield "avg_pool", _pool("avg_pool_2", 2, 2)
        yield "add_prev", [("name", string("add_prev_"))]
        yield "relu", _relu(newest)
    yield "avg_pool", _pool("avg_pool_2", 0, 1)
    yield "fc", _fc(network.fc, newest)


def _con(conv: nn.Conv2d, padding: int, newest: bool) -> list[Record]:
    assert conv.bias is not None
    filters, kernel, stride = conv.out_channels, conv.kernel_size[0], conv.stride[0]
    return [
        ("name", string("con_6" if newest else "con_4")),
        ("values", tensor(torch.cat([conv.weight.flatten(), conv.bias]))),
        ("filters", integer(filters)),
        ("rows", integer(kernel)),
        ("columns", integer(kernel)),
        ("stride", integer(stride)),
        ("stride", integer(stride)),
        ("padding", integer(padding)),
        ("padding", integer(padding)),
        ("shape", alias(*conv.weight.shape)),
        ("shape of bias", alias(1, filters, 1, 1)),
        *_multipliers(),
        *([("use_bias", boolean(True)), ("use_relu", boolean(False))] if newest else []),
    ]


def _affine(affine: ScaleShift, newest: bool) -> list[Record]:
    channels = len(affine.weight)
    return [
        ("name", string("affine_2" if newest else "affine_")),
        ("values", tensor(torch.cat([affine.weight, affine.bias]))),
        ("shape", alias(1, channels, 1, 1)),
        ("shape", alias(1, channels, 1, 1)),
        ("mode", integer(0)),
        *([("disabled", boolean(False))] if newest else []),
    ]


def _relu(newest: bool) -> list[Record]:
    return [("name", string("relu_2")), ("disabled", boolean(False))] if newest else [("name", string("relu_"))]


def _pool(name: str, size: int, stride: int) -> list[Record]:
    window = [("size", integer(size))] * 2 + [("stride", integer(stride))] * 2
    return [("name", string(name)), *window, *[("padding", integer(0))] * 2]


def _fc(linear: nn.Linear, newest: bool) -> list[Record]:
    return [
        ("name", string("fc_3" if newest else "fc_2")),
        ("outputs", integer(linear.out_features)),
        ("inputs", integer(linear.in_features)),
        ("values", tensor(linear.weight.T, linear.in_features)),
        ("shape", alias(linear.in_features, linear.out_features, 1, 1)),
        ("shape of bias", alias(0, 0, 0, 0)),
        ("bias mode", integer(1)),
        *_multipliers(),
        *([("use_bias", boolean(True))] if newest else []),
    ]


def _multipliers() -> list[Record]:
    return [("multiplier", number(value, 53)) for value in (1.0, 1.0, 1.0, 0.0)]


# --- serialize.h --------------------------------------------------------------------------------------------------


def integer(value: int) -> bytes:
    size = max(1, (abs(value).bit_length() + 7) // 8)
    return bytes([size | (0x80 if value < 0 else 0)]) + abs(value).to_bytes(size, "little")


def boolean(value: bool) -> bytes:
    return b"1" if value else b"0"


def string(value: str) -> bytes:
    return integer(len(value)) + value.encode()


def number(value: float, digits: int) -> bytes:
    """digits: binary, of the mantissa: 24 of a float, 53 of a double."""
    fraction, exponent = math.frexp(value)
    mantissa, exponent = round(fraction * 2**digits), exponent - digits
    for _ in range(8):
        if mantissa & 0xFF == 0:
            mantissa, exponent = mantissa >> 8, exponent + 8
    return integer(mantissa) + integer(exponent)


def tensor(values: Tensor | None, samples: int | None = None) -> bytes:
    """samples: the first dimension; None: all of them, as a layer keeps its parameters. No values: an empty tensor."""
    if values is None:
        return integer(2) + integer(0) * 4
    count = values.numel()
    shape = (count, 1, 1, 1) if samples is None else (samples, count // samples, 1, 1)
    data = values.detach().contiguous().numpy().astype("<f4").tobytes()
    return integer(2) + b"".join(map(integer, shape)) + data


def alias(*shape: int) -> bytes:
    return integer(1) + b"".join(map(integer, shape))
