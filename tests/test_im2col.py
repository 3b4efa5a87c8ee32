"""The index arithmetic of the kernel for compute capability 9.0, function by function, against plain loops."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.emulated import EMULATION, ROOT, compile_sources, link


class Layer(NamedTuple):
    images: int
    size: tuple[int, int]
    channels: int
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    paired: bool = False

    @property
    def out(self) -> tuple[int, ...]:
        axes = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)

    def numbers(self) -> ctypes.Array[ctypes.c_int64]:
        flat = [self.images, *self.size, self.channels, *self.out, self.filters]
        flat += [*self.kernel, *self.stride, *self.padding, *self.dilation, self.paired]
        return (ctypes.c_int64 * 16)(*flat)


LAYERS = {
    "3x3": Layer(2, (7, 9), 72, 20, (3, 3), padding=(1, 1)),
    "stride": Layer(3, (8, 7), 64, 16, (3, 3), (2, 2), (1, 1), paired=True),
    "unequal": Layer(1, (11, 10), 40, 21, (3, 3), (2, 1), (0, 3), (2, 3)),
    "1x1": Layer(2, (5, 6), 200, 130, (1, 1), paired=True),
    "1x1, stride": Layer(2, (6, 7), 24, 65, (1, 1), (2, 2)),
}


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder: Path = tmp_path_factory.mktemp("indices")
    objects = compile_sources(folder, ROOT / "csrc", [EMULATION / "indices.cpp"], "-O1", "-Werror")
    library = ctypes.CDLL(str(link(objects, folder / "indices.so")))
    library.descriptor.restype = ctypes.c_uint64
    library.descriptor.argtypes = [ctypes.c_uint32, ctypes.c_int]
    return library


def ints(count: int) -> ctypes.Array[ctypes.c_int]:
    return (ctypes.c_int * count)()


def test_division_is_exact(lib: ctypes.CDLL) -> None:
    """Around every multiple that a wrong multiplier or shift would round over, up to the largest dividend."""
    largest = 2**31 - 1
    for divisor in [*range(1, 300), *(2**i + j for i in range(9, 31) for j in (-1, 0, 1)), largest]:
        top = largest // divisor * divisor
        for dividend in {0, 1, divisor - 1, divisor, 2 * divisor - 1, top - 1, top, largest}:
            if 0 <= dividend <= largest:
                expected = divmod(dividend, divisor)
                assert (lib.quotient(dividend, divisor), lib.remainder_of(dividend, divisor)) == expected


@pytest.mark.parametrize("name", LAYERS)
def test_pixels_in_order(name: str, lib: ctypes.CDLL) -> None:
    """Pixel after pixel, row after row, image after image: where tap (0, 0) lies."""
    layer = LAYERS[name]
    height, width = layer.out
    at = ints(3)
    for pixel, (image, y, x) in enumerate(product(range(layer.images), range(height), range(width))):
        lib.place(layer.numbers(), pixel, at)
        expected = (x * layer.stride[1] - layer.padding[1], y * layer.stride[0] - layer.padding[0], image)
        assert tuple(at) == expected
    lib.place(layer.numbers(), layer.images * height * width, at)
    assert at[2] == layer.images  # past the end: an image that is not there


@pytest.mark.parametrize("name", LAYERS)
def test_steps_take_every_weight_once(name: str, lib: ctypes.CDLL) -> None:
    layer = LAYERS[name]
    at = ints(4)
    seen = []
    for index in range(lib.steps(layer.numbers())):
        lib.step(layer.numbers(), index, at)
        r, s, channel, k = at
        assert k == (r * layer.kernel[1] + s) * layer.channels + channel
        seen += [(r, s, c) for c in range(channel, min(channel + 64, layer.channels))]
    assert sorted(seen) == list(product(range(layer.kernel[0]), range(layer.kernel[1]), range(layer.channels)))


@pytest.mark.parametrize("name", LAYERS)
def test_the_map_of_pixels(name: str, lib: ctypes.CDLL) -> None:
    """The corners of its bounding box, walked in its steps, give exactly the layer's outputs, in both directions."""
    layer = LAYERS[name]
    out = (ctypes.c_int64 * 17)()
    lib.pixel_map(layer.numbers(), 128, out)
    dims, strides, lower, upper, traversal = out[0:4], out[4:7], out[7:9], out[9:11], out[11:15]
    assert dims == [layer.channels, layer.size[1], layer.size[0], layer.images * (1 + layer.paired)]
    assert strides == [2 * layer.channels, 2 * layer.channels * dims[1], 2 * layer.channels * dims[1] * dims[2]]
    assert (traversal[0], traversal[3], out[15], out[16]) == (1, 1, 64, 128)
    for axis, (map_axis, size) in enumerate(((1, layer.size[1]), (2, layer.size[0]))):
        places = range(lower[axis], size - 1 + upper[axis] + 1, traversal[map_axis])
        side = 1 - axis
        starts = [i * layer.stride[side] - layer.padding[side] for i in range(layer.out[side])]
        assert list(places) == starts


@pytest.mark.parametrize("name", LAYERS)
def test_the_map_of_filters(name: str, lib: ctypes.CDLL) -> None:
    layer = LAYERS[name]
    out = (ctypes.c_int64 * 8)()
    lib.filter_map(layer.numbers(), 128, out)
    taps = layer.kernel[0] * layer.kernel[1]
    assert list(out) == [layer.channels, taps, layer.filters, 2 * layer.channels, 2 * layer.channels * taps, 64, 1, 128]


def test_the_swizzle_is_that_of_128_bytes(lib: ctypes.CDLL) -> None:
    """Bits 4 to 6 of an address are combined with bits 7 to 9; the same column of eight rows meets all banks."""
    taken = set()
    for row, chunk in product(range(64), range(8)):
        address = row * 128 + chunk * 16
        place = lib.swizzled(row, chunk)
        assert place == address ^ ((address >> 7 & 7) << 4)
        taken.add(place)
    assert taken == set(range(0, 64 * 128, 16))
    for chunk in range(8):
        assert len({lib.swizzled(row, chunk) % 128 for row in range(8)}) == 8


@pytest.mark.parametrize(("address", "k16"), [(0, 0), (1024, 0), (1024, 3), (3 * 16384, 2), (220 * 1024, 1)])
def test_the_descriptor(address: int, k16: int, lib: ctypes.CDLL) -> None:
    """Its fields as the PTX manual has them: addresses in units of 16 bytes; swizzle 1 is that of 128 bytes."""
    value = lib.descriptor(address, k16)
    assert value & 0x3FFF == (address + 32 * k16) // 16
    assert value >> 16 & 0x3FFF == 1  # not read with this swizzle
    assert value >> 32 & 0x3FFF == 1024 // 16
    assert value >> 49 & 0x7 == 0  # the tile begins at a multiple of 1024
    assert value >> 62 == 1


def fits(lib: ctypes.CDLL, layer: Layer) -> bool:
    return bool(lib.fits(layer.numbers()))


def test_limits(lib: ctypes.CDLL) -> None:
    base = LAYERS["3x3"]
    assert fits(lib, base)
    cases: Sequence[tuple[Layer, bool]] = (
        (base._replace(channels=76), False),
        (base._replace(stride=(8, 8)), True),
        (base._replace(stride=(9, 1)), False),
        (base._replace(padding=(127, 1)), True),
        (base._replace(padding=(1, 128)), False),
        (base._replace(dilation=(64, 1), padding=(0, 1), size=(200, 9)), True),
        (base._replace(dilation=(65, 1), padding=(0, 1), size=(200, 9)), False),
        (base._replace(dilation=(1, 127), padding=(1, 126), size=(7, 300)), True),
        (base._replace(dilation=(1, 128), padding=(1, 127), size=(7, 300)), False),
    )
    for layer, expected in cases:
        assert fits(lib, layer) is expected, layer
