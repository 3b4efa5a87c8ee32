"""The convolution kernel for compute capability 9.0a, emulated: its copies, barriers and products, and the values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.emulated import Kernels, library_of_this_tree
from tests.test_emulated_conv import MODES, assert_close, conv_inputs, epilogue_inputs, expected_conv

# channels, filters, kernel, stride, padding, dilation, groups, image: but for "even", 64 channels, 128 filters and 128
# pixels divide none of them; boxes go across rows, images, and the end of the batch.
SHAPES = {
    "even": (64, 128, (3, 3), (1, 1), (1, 1), (1, 1), 1, (16, 16)),
    "uneven": (72, 136, (3, 3), (1, 1), (1, 1), (1, 1), 1, (13, 15)),
    "stride": (136, 136, (3, 3), (2, 2), (1, 1), (1, 1), 1, (33, 28)),
    "unequal": (40, 77, (3, 3), (2, 1), (0, 3), (2, 3), 1, (17, 17)),
    "1x1": (200, 130, (1, 1), (1, 1), (0, 0), (1, 1), 1, (11, 13)),
    "1x1-stride": (24, 65, (1, 1), (2, 2), (0, 0), (1, 1), 1, (28, 29)),
    "many-tiles": (8, 260, (3, 3), (1, 1), (1, 1), (1, 1), 1, (20, 20)),
}
# Two blocks for all tiles of a layer: each goes through several, and so several times through the ring.
SM90: dict[str, Any] = {"sm90": True, "multiprocessors": 2}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(library_of_this_tree())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_conv2d(kernels: Kernels, shape: str, mode: str) -> None:
    inputs = conv_inputs(shape, mode, shapes=SHAPES)
    assert kernels.plan(**inputs).sm90
    inputs = epilogue_inputs(inputs, torch.float32, shared_residual=mode != "unmasked")
    assert_close(kernels.conv2d(**inputs, **SM90), expected_conv(inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_of_16_bits(kernels: Kernels, dtype: torch.dtype) -> None:
    inputs = epilogue_inputs(conv_inputs("uneven", "paired", dtype=dtype, shapes=SHAPES), dtype, shared_residual=False)
    assert_close(kernels.conv2d(**inputs, dst_dtype=dtype, **SM90), expected_conv(inputs), dtype)


def test_a_row_has_the_same_bits_in_any_batch(kernels: Kernels) -> None:
    inputs = conv_inputs("uneven", "shared", rows=3, shapes=SHAPES)
    together = kernels.conv2d(**inputs, **SM90)
    alone = kernels.conv2d(**inputs | {"src": inputs["src"][2:]}, **SM90)
    assert torch.equal(alone, together[2::3])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"groups": 2, "channels": 128}, "groups"),
        ({"kernel": (5, 5)}, "neither 3x3 nor 1x1"),
        ({"channels": 60}, "channels are no multiple of 16 bytes"),
        ({"channels": 512, "image": (7, 7)}, "sums split into segments"),
        ({"filters": 64}, "half of a tile of filters would be idle"),
        ({"stride": (9, 1), "image": (40, 40)}, "a step of more than 8"),
        ({"padding": (128, 1), "image": (40, 40)}, "a corner of more than seven bits"),
        ({"dilation": (1, 128), "padding": (1, 1), "image": (40, 300)}, "a tap's offset of more than eight bits"),
    ],
)
def test_which_layers_stay_with_the_kernel_for_8_0(kernels: Kernels, change: dict[str, Any], reason: str) -> None:
    shape = {"channels": 64, "filters": 128, "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)}
    shape |= {"dilation": (1, 1), "groups": 1, "image": (56, 56)}
    assert kernels.plan(**conv_inputs("layer", "paired", shapes={"layer": tuple(shape.values())})).sm90
    shape |= change
    assert not kernels.plan(**conv_inputs("layer", "paired", shapes={"layer": tuple(shape.values())})).sm90, reason
