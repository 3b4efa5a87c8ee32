"""The CUDA convolution kernels, emulated, against torch in float64 on the same 16-bit inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from prefiqs_ext.pruning_masks import pack_mask
from tests import oracle
from tests.emulated import TILES, EmulationError, Kernels, library_of_this_tree

# Products of 16-bit numbers are exact in float32; their sum's error grows like sqrt(K) * 6e-8 of the largest sum. K is
# at most 25088 here, in segments of at most 1568: 1e-5 leaves a factor of three. Outputs of 16 bits are rounded once.
TOLERANCE = 1e-5
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

# channels, filters, kernel, stride, padding, dilation, groups, image; unless named "even", nothing divides the tiles
SHAPES = {
    "even": (64, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 8)),
    "uneven": (40, 72, (3, 3), (1, 1), (1, 1), (1, 1), 1, (7, 9)),
    "stem": (3, 24, (3, 3), (1, 1), (1, 1), (1, 1), 1, (9, 11)),
    "odd-channels": (33, 65, (3, 3), (2, 2), (1, 1), (1, 1), 1, (9, 7)),
    "odd-filters": (16, 13, (3, 3), (1, 1), (1, 1), (1, 1), 1, (5, 6)),
    "one-filter": (17, 1, (3, 3), (1, 1), (1, 1), (1, 1), 1, (4, 5)),
    "segments": (320, 70, (3, 3), (1, 1), (1, 1), (1, 1), 1, (5, 4)),
    "1x1": (24, 36, (1, 1), (1, 1), (0, 0), (1, 1), 1, (7, 7)),
    "1x1-stride": (24, 36, (1, 1), (2, 2), (0, 0), (1, 1), 1, (7, 8)),
    "1x1-padding": (8, 5, (1, 1), (1, 1), (2, 2), (1, 1), 1, (3, 3)),
    "7x7-stride-2": (3, 8, (7, 7), (2, 2), (3, 3), (1, 1), 1, (15, 14)),
    "7x7-stride-2-even": (8, 8, (7, 7), (2, 2), (3, 3), (1, 1), 1, (14, 14)),
    "asymmetric": (24, 21, (3, 5), (2, 1), (0, 2), (1, 2), 1, (11, 13)),
    "dilation": (16, 16, (3, 3), (1, 1), (2, 2), (2, 2), 1, (6, 7)),
    "groups": (48, 20, (5, 5), (2, 2), (2, 2), (1, 1), 2, (9, 8)),
    "even-groups": (48, 144, (3, 3), (1, 1), (1, 1), (1, 1), 3, (4, 5)),
    "odd-groups": (35, 21, (3, 3), (1, 1), (1, 1), (1, 1), 7, (6, 7)),
    "small-groups": (24, 36, (1, 1), (1, 1), (0, 0), (1, 1), 12, (6, 7)),
    "depthwise": (37, 37, (3, 3), (1, 1), (1, 1), (1, 1), 37, (9, 8)),
    "depthwise-even": (72, 72, (3, 3), (1, 1), (1, 1), (1, 1), 72, (5, 9)),
    "depthwise-stride": (32, 32, (3, 3), (2, 2), (1, 1), (2, 2), 32, (9, 8)),
    "depthwise-large-kernel": (6, 6, (9, 9), (1, 1), (4, 4), (1, 1), 6, (9, 8)),
    "depthwise-whole-image": (40, 40, (7, 7), (1, 1), (0, 0), (1, 1), 40, (7, 7)),
    "depthwise-multiplier": (8, 24, (3, 3), (1, 1), (1, 1), (1, 1), 8, (6, 5)),
    "kernel-wider-than-image": (8, 6, (5, 5), (1, 1), (2, 2), (1, 1), 1, (1, 2)),
    "one-row": (16, 24, (3, 3), (1, 1), (1, 1), (1, 1), 1, (1, 9)),
    "two-columns": (16, 24, (3, 3), (2, 2), (1, 1), (1, 1), 1, (6, 2)),
    "one-pixel": (16, 9, (3, 3), (2, 2), (1, 1), (1, 1), 1, (1, 1)),
    "linear": (1200, 70, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1)),
    "odd-linear": (1601, 47, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1)),
}
WITHOUT_TOTALS = ("wide", "broad")  # they have no registers for the sum over segments
MODES = {"unmasked": (False, False), "unmasked-pair": (False, True), "shared": (True, False), "paired": (True, True)}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(library_of_this_tree())


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    # Torch's grouped float64 convolutions of small images take a thousand times as long with two threads as with one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def conv_inputs(
    shape: str, mode: str, *, rows: int = 2, dtype: torch.dtype = torch.float16, shapes: Mapping[str, Any] = SHAPES
) -> dict[str, Any]:
    """Sums of unit variance."""
    channels, filters, kernel, stride, padding, dilation, groups, image = shapes[shape]
    masked, paired = MODES[mode]
    weight = torch.randn(filters, channels // groups, *kernel)
    weight = (weight / weight[0].numel() ** 0.5).to(dtype)
    return {
        "src": torch.randn(rows, channels, *image).to(dtype),
        "weight": weight,
        "mask": pack_mask(torch.rand(weight.shape) < 0.6) if masked else None,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "paired": paired,
    }


def epilogue_inputs(inputs: dict[str, Any], dst_dtype: torch.dtype, *, shared_residual: bool) -> dict[str, Any]:
    """Everything an epilogue can have."""
    filters, _, *kernel = inputs["weight"].shape
    out = expected_conv(inputs)
    rows = out.shape[0] // 2 if shared_residual else out.shape[0]
    masked = inputs["mask"] is not None
    return inputs | {
        "pruned_scale": torch.randn(filters) if masked else None,
        "bias": torch.randn(2, filters) if masked else torch.randn(filters),
        "tap_shift": torch.randn(2 if masked else 1, filters, *kernel),
        "slope": torch.rand(filters) - 0.3,
        "residual": torch.randn(rows, *out.shape[1:]).to(dst_dtype),
    }


def expected_conv(inputs: dict[str, Any]) -> Tensor:
    wide = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    return oracle.expected_dual_conv2d(**wide)


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert got.dtype == dtype
    assert got.shape == expected.shape
    allowed = TOLERANCE * expected.abs().max() + ROUNDING[dtype] * expected.abs()
    assert bool(((got.double() - expected).abs() <= allowed).all())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_conv2d(kernels: Kernels, shape: str, mode: str) -> None:
    inputs = conv_inputs(shape, mode)
    assert_close(kernels.conv2d(**inputs), expected_conv(inputs))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in ("linear", "odd-linear")])
@pytest.mark.parametrize("mode", MODES)
def test_epilogue(kernels: Kernels, mode: str, shape: str) -> None:
    inputs = epilogue_inputs(conv_inputs(shape, mode), torch.float32, shared_residual=mode != "unmasked")
    assert_close(kernels.conv2d(**inputs), expected_conv(inputs))


@pytest.mark.parametrize("dst_dtype", [torch.float32, None], ids=["float32", "compute"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", ["uneven", "odd-channels", "odd-filters", "segments", "depthwise", "depthwise-even"])
@pytest.mark.parametrize("mode", ["unmasked", "shared", "paired"])
def test_types(kernels: Kernels, mode: str, shape: str, dtype: torch.dtype, dst_dtype: torch.dtype | None) -> None:
    dst_dtype = dst_dtype or dtype
    inputs = epilogue_inputs(conv_inputs(shape, mode, dtype=dtype), dst_dtype, shared_residual=False)
    assert_close(kernels.conv2d(**inputs, dst_dtype=dst_dtype), expected_conv(inputs), dst_dtype)


@pytest.mark.parametrize("part", ["pruned_scale", "bias", "shared bias", "tap_shift", "slope", "one slope", "residual"])
@pytest.mark.parametrize("shape", ["uneven", "segments", "depthwise"])
def test_each_part_of_the_epilogue_alone(kernels: Kernels, shape: str, part: str) -> None:
    inputs = conv_inputs(shape, "paired")
    parts = epilogue_inputs(inputs, torch.float32, shared_residual=False)
    parts |= {"shared bias": parts["bias"][0], "one slope": parts["slope"][:1]}
    inputs[part.split()[-1]] = parts[part]
    assert_close(kernels.conv2d(**inputs), expected_conv(inputs))


@pytest.mark.parametrize("mode", ["shared", "paired"])
@pytest.mark.parametrize("shape", ["uneven", "odd-channels", "segments", "depthwise"])
def test_a_scale_of_one_and_the_dense_branch_keep_their_bits(kernels: Kernels, shape: str, mode: str) -> None:
    inputs = epilogue_inputs(conv_inputs(shape, mode), torch.float32, shared_residual=False)
    plain = inputs | {"pruned_scale": None, "bias": inputs["bias"][0]}
    ones = plain | {"pruned_scale": torch.ones_like(inputs["pruned_scale"]), "bias": inputs["bias"][:1].repeat(2, 1)}
    expected = kernels.conv2d(**plain)
    assert torch.equal(kernels.conv2d(**ones), expected)
    assert torch.equal(kernels.conv2d(**inputs).chunk(2)[0], expected.chunk(2)[0])


@pytest.mark.parametrize("split", [False, True], ids=["in-block", "split"])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("mode", MODES)
def test_every_tile(kernels: Kernels, mode: str, tile: str, split: bool) -> None:
    # 136 filters and 2 * 45 pixels leave edges in every tile; 11 steps of K end in half a step.
    SHAPES["tiles"] = (40, 136, (3, 3), (1, 1), (1, 1), (1, 1), 1, (5, 9))
    inputs = epilogue_inputs(conv_inputs("tiles", mode), torch.float32, shared_residual=False)
    assert_close(kernels.conv2d(**inputs, tile=tile, split=split), expected_conv(inputs))


@pytest.mark.parametrize("mode", MODES)
def test_a_tile_changes_no_bit(kernels: Kernels, mode: str) -> None:
    inputs = conv_inputs("segments", mode)
    assert kernels.plan(**inputs).segments > 2
    inputs = epilogue_inputs(inputs, torch.float32, shared_residual=False)
    first = kernels.conv2d(**inputs, tile="narrow", split=False)
    for tile in TILES:
        for split in (False, True):
            if tile in WITHOUT_TOTALS and not split:
                continue
            assert torch.equal(kernels.conv2d(**inputs, tile=tile, split=split), first)


@pytest.mark.parametrize("tile", WITHOUT_TOTALS)
@pytest.mark.parametrize("mode", MODES)
def test_a_tile_without_totals_changes_no_bit(kernels: Kernels, mode: str, tile: str) -> None:
    inputs = conv_inputs("uneven", mode)
    assert torch.equal(kernels.conv2d(**inputs, tile=tile), kernels.conv2d(**inputs, tile="narrow"))


@pytest.mark.parametrize("multiprocessors", [1, 4, 132])
@pytest.mark.parametrize("mode", ["unmasked", "shared", "paired"])
@pytest.mark.parametrize("shape", ["uneven", "odd-channels", "segments", "depthwise-even", "linear"])
def test_a_row_has_the_same_bits_in_any_batch(kernels: Kernels, shape: str, mode: str, multiprocessors: int) -> None:
    halves = 2 if mode == "paired" else 1
    inputs = epilogue_inputs(conv_inputs(shape, mode, rows=5 * halves), torch.float32, shared_residual=False)
    together = kernels.conv2d(**inputs, multiprocessors=multiprocessors)
    for row in (0, 3):
        alone = dict(inputs)
        for name in ("src", "residual"):
            count = inputs[name].shape[0] // 5
            alone[name] = inputs[name].view(count, 5, *inputs[name].shape[1:])[:, row]
        expected = together.view(-1, 5, *together.shape[1:])[:, row]
        assert torch.equal(kernels.conv2d(**alone), expected)


@pytest.mark.parametrize("paired", [False, True], ids=["shared", "paired"])
@pytest.mark.parametrize("shape", ["uneven", "odd-channels", "segments", "depthwise"])
def test_masks_of_ones_and_zeros(kernels: Kernels, shape: str, paired: bool) -> None:
    inputs = conv_inputs(shape, "paired" if paired else "shared")
    for kept in (True, False):
        inputs["mask"] = pack_mask(torch.full(inputs["weight"].shape, kept))
        dense, pruned = kernels.conv2d(**inputs).chunk(2)
        assert_close(torch.cat([dense, pruned]), expected_conv(inputs))
        if not paired:
            assert torch.equal(pruned, dense if kept else torch.zeros_like(dense))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["unmasked", "shared"])
@pytest.mark.parametrize("shape", ["stem", "7x7-stride-2", "uneven", "depthwise"])
def test_uint8(kernels: Kernels, shape: str, mode: str, dtype: torch.dtype) -> None:
    inputs = conv_inputs(shape, mode, dtype=dtype)
    inputs["src"] = torch.randint(0, 256, inputs["src"].shape, dtype=torch.uint8)
    inputs = epilogue_inputs(inputs, torch.float32, shared_residual=False)
    assert_close(kernels.conv2d(**inputs), expected_conv(inputs))


@pytest.mark.parametrize("mode", ["shared", "paired"])
def test_the_large_linear_layer(kernels: Kernels, mode: str) -> None:
    SHAPES["large-linear"] = (25088, 64, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1))
    inputs = conv_inputs("large-linear", mode)
    assert kernels.plan(**inputs).segments > 32
    inputs |= {"pruned_scale": torch.randn(64), "bias": torch.randn(2, 64)}
    got = kernels.conv2d(**inputs, split=True)
    assert_close(got, expected_conv(inputs))
    assert torch.equal(kernels.conv2d(**inputs, split=False), got)


@pytest.mark.parametrize("shape", ["uneven", "odd-channels", "depthwise-even"])
def test_nan_and_infinity_pass_on(kernels: Kernels, shape: str) -> None:
    inputs = conv_inputs(shape, "paired", rows=4) | {"slope": torch.zeros(1)}
    inputs["src"][1] = float("nan")
    inputs["src"][2] = 6e4
    inputs["weight"][:] = 1
    inputs["mask"] = pack_mask(torch.ones(inputs["weight"].shape, dtype=torch.bool))
    got = kernels.conv2d(**inputs, dst_dtype=torch.float16)
    assert bool(got[1].isnan().all())
    assert bool(got[2].isposinf().all())
    assert bool(got[[0, 3]].isfinite().all())


@pytest.mark.parametrize("mode", ["unmasked", "shared", "paired"])
@pytest.mark.parametrize("shape", ["uneven", "odd-channels", "stem", "groups", "depthwise"])
def test_a_nan_reaches_only_the_outputs_that_see_it(kernels: Kernels, shape: str, mode: str) -> None:
    inputs = conv_inputs(shape, mode)
    inputs["src"][0, 1, 2, 1] = float("nan")
    assert torch.equal(kernels.conv2d(**inputs).isnan(), expected_conv(inputs).isnan())


def test_sizes_beyond_32_bits_are_refused(kernels: Kernels) -> None:
    one = torch.ones(1, 1, 1, 1, dtype=torch.float16)
    with pytest.raises(EmulationError, match="too large to index"):
        kernels.conv2d(one, one, padding=(19_500, 19_500), stride=(39_000, 39_000))  # 1.5 * 2^30 padded pixels


# IResNet's layers: channels, filters, stride, input size; kernel 3 x 3.
LAYERS = [(64, 64, 1, 112), (64, 128, 2, 56), (128, 128, 1, 28), (256, 256, 1, 14), (256, 512, 2, 14), (512, 512, 1, 7)]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_plans_fill_the_machine_and_cut_sums_alike(kernels: Kernels, layer: tuple[int, int, int, int]) -> None:
    channels, filters, stride, size = layer
    weight = torch.empty(filters, channels, 3, 3, dtype=torch.float16)
    mask = torch.empty(filters, 9 * channels // 32, dtype=torch.int32)
    plans = {}
    for images in (1, 8, 256):
        src = torch.empty(1, dtype=torch.float16).expand(2 * images, channels, size, size)
        plans[images] = kernels.plan(src, weight, mask, paired=True, stride=(stride, stride), padding=(1, 1))
    assert len({plan.segments for plan in plans.values()}) == 1
    # One image: layers of 28 narrow tiles and more are left whole.
    assert plans[1].blocks >= 28
    assert plans[1].blocks >= 64 or size > 7
    assert plans[8].blocks >= 132
    assert plans[256].blocks >= 132
    assert plans[256].tile == ("broad" if filters == 64 else "deep" if plans[1].segments > 1 else "wide")
    assert not plans[256].split


# As SHAPES, with the images of each half: layers that give 132 multiprocessors a block of each tile, but not of a
# larger one. Too much to emulate; tests/test_cuda_ops.py runs them.
FILLING = {
    "wide": (2, (40, 136, (3, 3), (1, 1), (1, 1), (1, 1), 1, (47, 47))),
    "deep": (90, (512, 136, (3, 3), (1, 1), (1, 1), (1, 1), 1, (7, 7))),
    "broad": (2, (40, 60, (3, 3), (1, 1), (1, 1), (1, 1), 1, (92, 92))),
    "middle": (2, (40, 60, (3, 3), (1, 1), (1, 1), (1, 1), 1, (67, 66))),
}


def filling_inputs(tile: str, mode: str) -> dict[str, Any]:
    images, shape = FILLING[tile]
    return conv_inputs(tile, mode, rows=images if mode == "shared" else 2 * images, shapes={tile: shape})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tile", FILLING)
def test_layers_that_fill_the_machine_get_each_tile(kernels: Kernels, tile: str, mode: str) -> None:
    plan = kernels.plan(**filling_inputs(tile, mode))
    assert (plan.tile, plan.split) == (tile, False)
