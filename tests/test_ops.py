"""The native operators against their meaning in plain torch (tests/oracle.py), computed in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prefiqs_ext import ops
from prefiqs_ext.pruning_masks import pack_mask
from tests import oracle

# Float32 sums of K products against float64: the error grows like sqrt(K) * 6e-8 of the result's scale; K is at most
# 25088 here, and sums longer than one k block are split. 1e-5 of the largest result leaves a factor of three.
TOLERANCE = 1e-5
# Winograd adds and subtracts numbers up to eight times the result, and so multiplies rounding by about as much.
WINOGRAD_TOLERANCE = 8 * TOLERANCE


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def assert_close(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    scale = expected.abs().max().item() if expected.numel() else 1.0
    assert (got - expected).abs().max().item() <= tolerance * scale if expected.numel() else True


def random_mask(weight: Tensor, keep: float = 0.6) -> Tensor:
    return pack_mask(torch.rand(weight.shape) < keep)


# channels, filters, kernel, stride, padding, dilation, groups, image; unless named "even", nothing divides the tiles
SHAPES = {
    "stem": (3, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, (9, 11)),
    "even-tiles": (64, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, (14, 14)),
    "odd-channels": (33, 65, (3, 3), (2, 2), (1, 1), (1, 1), 1, (9, 11)),
    "several-k-blocks": (512, 70, (3, 3), (1, 1), (1, 1), (1, 1), 1, (5, 6)),
    "one-filter": (17, 1, (3, 3), (1, 1), (1, 1), (1, 1), 1, (4, 5)),
    "1x1": (24, 36, (1, 1), (1, 1), (0, 0), (1, 1), 1, (7, 7)),
    "1x1-stride": (24, 36, (1, 1), (2, 2), (0, 0), (1, 1), 1, (7, 8)),
    "1x1-padding": (5, 5, (1, 1), (1, 1), (2, 2), (1, 1), 1, (3, 3)),
    "7x7-stride-2": (3, 8, (7, 7), (2, 2), (3, 3), (1, 1), 1, (15, 14)),
    "asymmetric": (19, 21, (3, 5), (2, 1), (0, 2), (1, 2), 1, (11, 13)),
    "groups": (40, 20, (5, 5), (2, 2), (2, 2), (1, 1), 2, (9, 8)),
    "small-groups": (24, 36, (1, 1), (1, 1), (0, 0), (1, 1), 12, (6, 7)),
    "depthwise": (37, 37, (3, 3), (1, 1), (1, 1), (1, 1), 37, (9, 8)),
    "depthwise-stride": (32, 32, (3, 3), (2, 2), (1, 1), (2, 2), 32, (9, 8)),
    "depthwise-large-kernel": (6, 6, (9, 9), (1, 1), (4, 4), (1, 1), 6, (9, 8)),
    "depthwise-multiplier": (8, 24, (3, 3), (1, 1), (1, 1), (1, 1), 8, (6, 5)),
    "kernel-wider-than-image": (4, 6, (5, 5), (1, 1), (2, 2), (1, 1), 1, (1, 2)),
    "in-place-rows": (3, 33, (3, 3), (1, 1), (1, 1), (1, 1), 1, (5, 44)),
    "in-place-stride": (16, 40, (3, 3), (2, 2), (1, 1), (1, 2), 1, (5, 73)),
    "in-place-groups": (8, 6, (3, 3), (1, 1), (1, 1), (1, 1), 2, (4, 40)),
    "in-place-pixels": (48, 70, (1, 1), (1, 1), (0, 0), (1, 1), 1, (9, 11)),
    "pixels-far-apart": (300, 20, (1, 1), (1, 1), (0, 0), (1, 1), 1, (9, 5)),
    "one-pixel-streamed": (601, 447, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1)),
    "one-pixel": (16, 9, (3, 3), (2, 2), (1, 1), (1, 1), 1, (1, 1)),
}


WINOGRAD_SHAPES = {
    "whole-tiles": (64, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 12)),
    "parts-of-tiles": (37, 70, (3, 3), (1, 1), (1, 1), (1, 1), 1, (9, 11)),
    "no-padding": (33, 40, (3, 3), (1, 1), (0, 0), (1, 1), 1, (10, 7)),
    "wide-padding": (32, 32, (3, 3), (1, 1), (2, 3), (1, 1), 1, (6, 5)),
    "deep": (512, 33, (3, 3), (1, 1), (1, 1), (1, 1), 1, (7, 7)),
    "stride-2": (33, 40, (3, 3), (2, 2), (1, 1), (1, 1), 1, (15, 24)),
    "stride-2-parts-of-tiles": (37, 70, (3, 3), (2, 2), (1, 1), (1, 1), 1, (21, 24)),
    "stride-2-no-padding": (64, 32, (3, 3), (2, 2), (0, 2), (1, 1), 1, (17, 5)),
    "several-blocks-of-tiles": (32, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1, (30, 29)),
}
SHAPES |= WINOGRAD_SHAPES


def tolerance(shape: str) -> float:
    return WINOGRAD_TOLERANCE if shape in (*WINOGRAD_SHAPES, "even-tiles") else TOLERANCE


def conv_inputs(name: str, *, masked: bool, rows: int = 4) -> dict[str, Any]:
    channels, filters, kernel, stride, padding, dilation, groups, image = SHAPES[name]
    weight = torch.randn(filters, channels // groups, *kernel)
    return {
        "src": torch.randn(rows, channels, *image),
        "weight": weight,
        "mask": random_mask(weight) if masked else None,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


def expected_conv(inputs: dict[str, Any]) -> Tensor:
    wide = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    return oracle.expected_dual_conv2d(**wide)


@pytest.mark.parametrize("paired", [False, True], ids=["shared", "paired"])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("shape", SHAPES)
def test_conv2d(isa: str, shape: str, masked: bool, paired: bool) -> None:
    inputs = conv_inputs(shape, masked=masked) | {"paired": paired}
    assert_close(ops.dual_conv2d(**inputs), expected_conv(inputs), tolerance(shape))


@pytest.mark.parametrize("shape", WINOGRAD_SHAPES)
def test_conv2d_by_either_algorithm(isa: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = conv_inputs(shape, masked=True)
    results = []
    for algorithm in ("winograd", "gemm"):
        monkeypatch.setenv("PREFIQS_CPU_ALGORITHM", algorithm)
        results.append(ops.dual_conv2d(**inputs))
    monkeypatch.delenv("PREFIQS_CPU_ALGORITHM")
    assert torch.equal(ops.dual_conv2d(**inputs), results[0])
    assert not torch.equal(*results)
    assert_close(results[1], expected_conv(inputs))


def test_an_algorithm_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIQS_CPU_ALGORITHM", "winograd")
    message = (
        "PREFIQS_CPU_ALGORITHM: expected amx, amx_linear, depthwise, winograd, linear, dot or gemm, one that fits the "
        "layer; got 'winograd'"
    )
    with pytest.raises(RuntimeError, match=message):
        ops.dual_conv2d(**conv_inputs("1x1", masked=True))


@pytest.mark.parametrize("slopes", ["none", "relu", "prelu-one", "prelu"])
@pytest.mark.parametrize("residual", ["none", "shared", "paired"])
@pytest.mark.parametrize("shape", ["odd-channels", "depthwise", "several-k-blocks", "groups", "parts-of-tiles"])
def test_conv2d_epilogue(isa: str, shape: str, residual: str, slopes: str) -> None:
    inputs = conv_inputs(shape, masked=True) | {"paired": True}
    filters = inputs["weight"].shape[0]
    inputs["bias"] = torch.randn(filters)
    inputs["slope"] = {
        "none": None,
        "relu": torch.zeros(1),
        "prelu-one": torch.tensor([0.25]),
        "prelu": torch.rand(filters) - 0.5,
    }[slopes]
    plain = expected_conv(inputs)
    if residual != "none":
        inputs["residual"] = torch.randn(plain.shape)[: 2 if residual == "shared" else 4]
    assert_close(ops.dual_conv2d(**inputs), expected_conv(inputs), tolerance(shape))


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("shape", SHAPES)
def test_conv2d_tap_shift(isa: str, shape: str, masked: bool) -> None:
    inputs = conv_inputs(shape, masked=masked)
    weight = inputs["weight"]
    inputs["tap_shift"] = torch.randn(2 if masked else 1, weight.shape[0], *weight.shape[2:])
    inputs["bias"] = torch.randn(weight.shape[0])
    assert_close(ops.dual_conv2d(**inputs), expected_conv(inputs), tolerance(shape))


@pytest.mark.parametrize("shape", ["stem", "7x7-stride-2", "depthwise"])
def test_conv2d_uint8_source(isa: str, shape: str) -> None:
    inputs = conv_inputs(shape, masked=True)
    inputs["src"] = torch.randint(0, 256, inputs["src"].shape, dtype=torch.uint8)
    assert_close(ops.dual_conv2d(**inputs), expected_conv(inputs))


@pytest.mark.parametrize("kind", ["ones", "zeros", "one-bit"])
@pytest.mark.parametrize("shape", ["odd-channels", "depthwise", "several-k-blocks", "parts-of-tiles"])
def test_conv2d_extreme_masks(isa: str, shape: str, kind: str) -> None:
    inputs = conv_inputs(shape, masked=True)
    keep = torch.full(inputs["weight"].shape, kind == "ones")
    if kind == "one-bit":
        keep[-1, -1, -1, -1] = True
    inputs["mask"] = pack_mask(keep)
    got = ops.dual_conv2d(**inputs)
    assert_close(got, expected_conv(inputs), tolerance(shape))
    dense, pruned = got.chunk(2)
    if kind == "ones":
        assert torch.equal(dense, pruned)
    if kind == "zeros":
        assert torch.equal(pruned, torch.zeros_like(pruned))


@pytest.mark.parametrize("shape", ["odd-channels", "depthwise", "stem"])
def test_conv2d_layouts_give_the_same_bits(isa: str, shape: str) -> None:
    inputs = conv_inputs(shape, masked=True)
    inputs["residual"] = torch.randn(expected_conv(inputs).shape)
    expected = ops.dual_conv2d(**inputs)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    for name in ("src", "weight", "residual"):
        nhwc = inputs[name].contiguous(memory_format=torch.channels_last)
        strided = torch.randn(*inputs[name].shape[:3], 2 * inputs[name].shape[3])[..., ::2].copy_(inputs[name])
        for layout in (nhwc, strided):
            assert torch.equal(ops.dual_conv2d(**(inputs | {name: layout})), expected)


@pytest.mark.parametrize(
    "shape",
    [
        *("odd-channels", "depthwise", "several-k-blocks", "stem", "groups", "1x1", "one-pixel-streamed"),
        *("in-place-rows", "in-place-pixels", *WINOGRAD_SHAPES),
    ],
)
def test_conv2d_row_bits_do_not_depend_on_batch_place_or_threads(isa: str, shape: str) -> None:
    check_row_bits(conv_inputs(shape, masked=True, rows=7))


def check_row_bits(inputs: dict[str, Any]) -> None:
    """Assert that a row has the same bits alone, in a pair, and with any number of threads."""
    everything = ops.dual_conv2d(**inputs)
    assert torch.equal(everything, ops.dual_conv2d(**inputs))
    dense, pruned = everything.chunk(2)
    for row in (0, 3, len(dense) - 1):
        alone = ops.dual_conv2d(**(inputs | {"src": inputs["src"][row : row + 1]}))
        assert torch.equal(alone, torch.stack([dense[row], pruned[row]]))
    paired = ops.dual_conv2d(**(inputs | {"src": torch.cat([inputs["src"], inputs["src"]]), "paired": True}))
    assert torch.equal(paired, everything)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(ops.dual_conv2d(**inputs), everything)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("paired", [False, True], ids=["shared", "paired"])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("size", [(70, 33, ()), (9000, 40, ()), (25088, 37, ()), (5000, 61, (5,)), (31, 5, (3, 2))])
def test_linear(isa: str, size: tuple[int, int, tuple[int, ...]], masked: bool, paired: bool) -> None:
    features, outputs, between = size
    src, weight, bias = torch.randn(6, *between, features), torch.randn(outputs, features), torch.randn(outputs)
    mask = random_mask(weight) if masked else None
    got = ops.dual_linear(src, weight, mask, bias=bias, paired=paired)
    assert_close(got, oracle.expected_dual_linear(src.double(), weight.double(), mask, bias=bias, paired=paired))


def test_linear_row_bits_do_not_depend_on_batch_or_threads(isa: str) -> None:
    src, weight = torch.randn(17, 5000), torch.randn(70, 5000)
    mask = random_mask(weight)
    dense, pruned = ops.dual_linear(src, weight, mask).chunk(2)
    for row in (0, 9, 16):
        assert torch.equal(ops.dual_linear(src[row : row + 1], weight, mask), torch.stack([dense[row], pruned[row]]))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(ops.dual_linear(src, weight, mask), torch.cat([dense, pruned]))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [(1, 1), (3, 128), (37, 512)])
def test_embedding_distance(size: tuple[int, int]) -> None:
    rows, features = size
    dense = torch.randn(rows, features)
    pair = torch.cat([dense, dense + torch.logspace(-4, 1, rows)[:, None] * torch.randn(rows, features)])
    for got, expected in zip(
        ops.embedding_distance(pair), oracle.expected_embedding_distance(pair.double()), strict=True
    ):
        assert got.dtype == torch.float32
        # Sums are in double: what is left is the rounding of the result.
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-7)


def test_embedding_distance_of_special_rows() -> None:
    row, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
    dense = torch.stack([row, row, row, zero, row])
    pruned = torch.stack([row, zero, -row, row, torch.tensor([torch.nan, 1.0])])
    got = ops.embedding_distance(torch.cat([dense, pruned]))
    assert got.distance[:4].tolist() == [0.0, 1.0, 2.0, 1.0]
    assert got.distance[4].isnan()
    assert got.embedding_norm.tolist() == [5.0, 5.0, 5.0, 0.0, 5.0]


def test_empty_batches() -> None:
    weight = torch.randn(5, 3, 3, 3)
    assert ops.dual_conv2d(torch.empty(0, 3, 8, 9), weight, random_mask(weight)).shape == (0, 5, 6, 7)
    assert ops.dual_linear(torch.empty(0, 4), torch.randn(6, 4)).shape == (0, 6)
    assert ops.embedding_distance(torch.empty(0, 4)).embedding.shape == (0, 4)


def test_infinite_and_nan_inputs_are_not_hidden(isa: str) -> None:
    src = torch.zeros(1, 1, 1, 3)
    src[0, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    got = ops.dual_conv2d(src, torch.ones(1, 1, 1, 1), slope=torch.tensor([0.5]))
    assert got.isnan().flatten().tolist() == [True, False, False]
    assert got.isinf().flatten().tolist() == [False, True, True]
