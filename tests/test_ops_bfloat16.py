"""The native operators in bfloat16 against their meaning in plain torch (tests/oracle.py), computed in float64.

Where a CPU cannot multiply bfloat16 numbers, the kernels that do so run with those instructions in plain C++
("-emulated"), so that every machine tests them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prefiqs_ext import ops
from prefiqs_ext.pruning_masks import pack_mask
from tests import oracle
from tests.fuzz.operator_cases import ISAS
from tests.test_ops import check_row_bits, random_mask

ROUNDS_SOURCE = ("amx", "amx_linear")
"""The algorithms that round a float32 source to bfloat16."""

# Products of bfloat16 numbers are exact in float32, so sums err as those of test_ops.py do, and Winograd's eight times
# as much. A bfloat16 result is rounded once more: half of its last of eight bits, and a float32 error may tip it over.
SUMS = 1e-5
WINOGRAD_SUMS = 8 * SUMS
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}

# channels, filters, kernel, stride, padding, dilation, groups, image; hardly anything divides the tiles
SHAPES = {
    "stem": (3, 40, (3, 3), (1, 1), (1, 1), (1, 1), 1, (9, 11)),
    "few-channels": (15, 33, (3, 5), (2, 1), (1, 2), (1, 1), 1, (8, 7)),
    "odd-channels": (33, 65, (3, 3), (2, 2), (1, 1), (1, 1), 1, (9, 11)),
    "even-channels": (66, 48, (3, 3), (1, 1), (1, 1), (1, 1), 1, (7, 7)),
    "several-k-blocks": (512, 34, (1, 1), (1, 1), (0, 0), (1, 1), 1, (3, 5)),
    "wide-map": (16, 17, (3, 3), (1, 1), (1, 1), (1, 1), 1, (5, 44)),
    "1x1-stride": (24, 36, (1, 1), (2, 2), (0, 0), (1, 1), 1, (7, 8)),
    "1x1-padding": (5, 5, (1, 1), (1, 1), (2, 2), (1, 1), 1, (3, 3)),
    "5x5-stride-3": (20, 8, (5, 5), (3, 3), (2, 2), (1, 1), 1, (14, 13)),
    "stride-beyond-kernel": (32, 16, (2, 2), (3, 4), (0, 0), (1, 1), 1, (11, 10)),
    "dilation": (19, 21, (3, 5), (2, 1), (0, 2), (1, 2), 1, (9, 9)),
    "groups": (40, 20, (5, 5), (2, 2), (2, 2), (1, 1), 2, (7, 8)),
    "depthwise": (37, 37, (3, 3), (1, 1), (1, 1), (1, 1), 37, (9, 8)),
    "depthwise-stride": (32, 32, (3, 3), (2, 2), (1, 1), (2, 2), 32, (9, 8)),
    "winograd": (37, 70, (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 11)),
    "winograd-stride-2": (33, 40, (3, 3), (2, 2), (1, 1), (1, 1), 1, (15, 24)),
    "one-pixel-streamed": (601, 447, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1)),
    "kernel-wider-than-image": (18, 6, (5, 5), (1, 1), (2, 2), (1, 1), 1, (1, 2)),
}
SOURCES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "uint8": torch.uint8}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


every_isa = pytest.mark.parametrize("isa", ISAS, indirect=True)


def conv_inputs(name: str, source: str = "bfloat16", *, masked: bool = True, rows: int = 2) -> dict[str, Any]:
    channels, filters, kernel, stride, padding, dilation, groups, image = SHAPES[name]
    weight = torch.randn(filters, channels // groups, *kernel).bfloat16()
    src = torch.randn(rows, channels, *image)
    return {
        "src": (src * 50).abs().clamp(max=255).byte() if source == "uint8" else src.to(SOURCES[source]),
        "weight": weight,
        "mask": random_mask(weight) if masked else None,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


def result_dtype(inputs: dict[str, Any]) -> torch.dtype:
    return inputs["src"].dtype if inputs["src"].is_floating_point() else torch.bfloat16


def widen(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def assert_close(got: Tensor, expected: Tensor, sums: float) -> None:
    assert got.shape == expected.shape
    allowed = sums * expected.abs().max() + ROUNDING[got.dtype] * expected.abs()
    assert bool(((got.double() - expected).abs() <= allowed).all())


def check_conv(isa: str, name: str, inputs: dict[str, Any]) -> None:
    got = ops.dual_conv2d(**inputs)
    assert got.dtype == result_dtype(inputs)
    assert got.is_contiguous(memory_format=torch.channels_last)
    taken = dict(inputs)
    if isa.startswith("amx") and name not in ("dilation", "groups", "depthwise", "depthwise-stride"):
        taken["src"] = taken["src"] if taken["src"].dtype == torch.uint8 else taken["src"].bfloat16()
    assert_close(got, oracle.expected_dual_conv2d(**widen(taken)), WINOGRAD_SUMS if "winograd" in name else SUMS)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("shape", SHAPES)
@every_isa
def test_conv2d(isa: str, shape: str, masked: bool, source: str) -> None:
    check_conv(isa, shape, conv_inputs(shape, source, masked=masked))


@pytest.mark.parametrize("source", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", ["even-channels", "odd-channels", "depthwise", "winograd", "groups", "wide-map"])
@every_isa
def test_conv2d_epilogue(isa: str, shape: str, source: str) -> None:
    """A pair with everything that may be folded into a layer."""
    inputs = conv_inputs(shape, source, rows=4) | {"paired": True}
    plain = oracle.expected_dual_conv2d(**widen(inputs))
    filters, kernel = inputs["weight"].shape[0], inputs["weight"].shape[2:]
    inputs |= {
        "pruned_scale": torch.rand(filters) + 0.5,
        "bias": torch.randn(2, filters),
        "tap_shift": torch.randn(2, filters, *kernel),
        "slope": torch.rand(filters) - 0.5,
    }
    for rows in (2, 4):  # a residual that both branches share, and one for each
        check_conv(isa, shape, inputs | {"residual": torch.randn(plain.shape)[:rows].to(result_dtype(inputs))})


@pytest.mark.parametrize("kind", ["ones", "zeros", "one-bit"])
@pytest.mark.parametrize("shape", ["odd-channels", "stem", "several-k-blocks", "one-pixel-streamed"])
@every_isa
def test_conv2d_extreme_masks(isa: str, shape: str, kind: str) -> None:
    inputs = conv_inputs(shape)
    keep = torch.full(inputs["weight"].shape, kind == "ones")
    if kind == "one-bit":
        keep[-1, -1, -1, -1] = True
    inputs["mask"] = pack_mask(keep)
    check_conv(isa, shape, inputs)
    dense, pruned = ops.dual_conv2d(**inputs).chunk(2)
    if kind == "ones":
        assert torch.equal(dense, pruned)
    if kind == "zeros":
        assert torch.equal(pruned, torch.zeros_like(pruned))


@pytest.mark.parametrize(
    "shape", ["stem", "odd-channels", "even-channels", "several-k-blocks", "wide-map", "winograd", "one-pixel-streamed"]
)
@every_isa
def test_conv2d_row_bits_do_not_depend_on_batch_place_or_threads(isa: str, shape: str) -> None:
    """19 rows: AMX lays up to 16 images of a small map side by side."""
    check_row_bits(conv_inputs(shape, rows=19 if shape in ("even-channels", "one-pixel-streamed") else 5))


@pytest.mark.parametrize("source", ["bfloat16", "float32"])
@pytest.mark.parametrize("size", [(70, 33, 6), (2050, 131, 18), (4999, 61, 4)])
@every_isa
def test_linear(isa: str, size: tuple[int, int, int], source: str) -> None:
    features, outputs, rows = size
    src, weight = torch.randn(rows, features).to(SOURCES[source]), torch.randn(outputs, features).bfloat16()
    mask, scale, bias = random_mask(weight), torch.rand(outputs), torch.randn(2, outputs)
    for paired in (False, True):
        got = ops.dual_linear(src, weight, mask, scale, bias, paired=paired)
        taken = src.bfloat16() if isa.startswith("amx") else src
        expected = oracle.expected_dual_linear(
            taken.double(), weight.double(), mask, scale.double(), bias.double(), paired=paired
        )
        assert got.dtype == src.dtype
        assert_close(got, expected, SUMS)
    plain = ops.dual_linear(src, weight)
    assert_close(plain, oracle.expected_dual_linear(taken.double(), weight.double()), SUMS)
    alone = ops.dual_linear(src[2:3], weight, mask, scale, bias)
    assert torch.equal(alone, ops.dual_linear(src, weight, mask, scale, bias)[[2, rows + 2]])


@pytest.mark.parametrize("shape", ["even-channels", "stem", "groups", "depthwise", "several-k-blocks"])
@every_isa
def test_nan_and_infinity_are_carried(isa: str, shape: str) -> None:
    """A NaN reaches the outputs that see its pixel, an infinite weight that is pruned none."""
    inputs = conv_inputs(shape)
    inputs["src"][0, 1, 2, 1] = torch.nan
    expected = oracle.expected_dual_conv2d(**widen(inputs)).isnan()
    got = ops.dual_conv2d(**inputs).isnan()
    if shape == "even-channels" and not isa.startswith("amx"):  # Winograd's tiles of 4 x 4 outputs see it together
        assert bool(got[expected].all())
        assert not bool(got[1::2].any())
    else:
        assert torch.equal(got, expected)
    assert bool(expected.any())
    inputs = conv_inputs(shape)
    inputs["weight"][1, 0, 0, 0] = torch.inf
    keep = torch.ones(inputs["weight"].shape, dtype=torch.bool)
    keep[1, 0, 0, 0] = False
    inputs["mask"] = pack_mask(keep)
    dense, pruned = ops.dual_conv2d(**inputs).chunk(2)
    assert bool(pruned.isfinite().all())
    finite = dense.isfinite().all(3).all(2).all(0)
    assert finite.tolist() == [channel != 1 for channel in range(len(finite))]


@every_isa
def test_results_are_rounded_to_the_nearest_even(isa: str) -> None:
    """As torch rounds: ties, the step to infinity, NaN."""
    numbers = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-9, 3.4e38, torch.nan, -torch.inf, 0.0, -0.0, 1e-30])
    for count in (1, 5, 9):
        bias = numbers[:count].repeat(4)
        weight = torch.zeros(len(bias), 2, 1, 1).bfloat16()
        got = ops.dual_conv2d(torch.ones(1, 2, 1, 3).bfloat16(), weight, bias=bias)
        expected = bias.bfloat16().view(1, -1, 1, 1).expand(1, -1, 1, 3)
        assert torch.equal(got.nan_to_num(7), expected.nan_to_num(7))


@every_isa
def test_empty_batches(isa: str) -> None:
    weight = torch.randn(5, 3, 3, 3).bfloat16()
    assert ops.dual_conv2d(torch.empty(0, 3, 8, 9).bfloat16(), weight, random_mask(weight)).shape == (0, 5, 6, 7)
    assert ops.dual_linear(torch.empty(0, 4).bfloat16(), torch.randn(6, 4).bfloat16()).shape == (0, 6)


@every_isa
def test_out_takes_the_result(isa: str) -> None:
    inputs = conv_inputs("even-channels")
    expected = ops.dual_conv2d(**inputs)
    out = torch.full_like(expected, torch.nan)
    assert ops.dual_conv2d(**inputs, out=out) is out
    assert torch.equal(out, expected)


def test_distance_and_norm_of_bfloat16() -> None:
    pair = torch.randn(6, 129).bfloat16()
    for got, expected in zip(ops.embedding_distance(pair), ops.embedding_distance(pair.float()), strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(ops.dense_norm(pair, paired=True), ops.dense_norm(pair.float(), paired=True))
    gaps = torch.randn(3, 5, 7, 4).bfloat16()[..., ::2]
    assert torch.equal(ops.dense_norm(gaps), ops.dense_norm(gaps.float()))


def multiply_tile(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """TDPBF16PS by Intel's manual (Instruction Set Reference, TDPBF16PS): [16, 32] @ [32, 16] + [16, 16].

    Numbers have 64 bits of fraction here (x87), enough for the one rounding that each step makes.
    """

    def flush(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float32)
        return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)

    a, b = flush(a), flush(b)
    parts = np.zeros((2, 16, 16), np.float32)
    for pair in range(16):
        for odd in range(2):
            k = 2 * pair + odd
            exact = a[:, k, None].astype(np.longdouble) * b[k].astype(np.longdouble)
            parts[odd] = flush(exact + parts[odd].astype(np.longdouble))
    return flush(flush(total) + flush(parts[0] + parts[1]))


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs 80-bit numbers")
@pytest.mark.parametrize("scale", [1.0, 1e-18, 2e17])
def test_tiles_multiply_as_the_manual_says(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 1x1 convolution of 16 pixels, 96 channels and 16 filters is three products of one tile."""
    monkeypatch.setenv("PREFIQS_CPU_ISA", "amx-emulated")
    src = (torch.randn(1, 96, 1, 16) * torch.logspace(-3, 3, 96).view(1, 96, 1, 1) * scale).bfloat16()
    weight = (torch.randn(16, 96, 1, 1) * scale).bfloat16()
    got = ops.dual_conv2d(src.float(), weight)[0, :, 0].T.numpy()
    a, b = src[0, :, 0].T.float().numpy(), weight[:, :, 0, 0].T.float().numpy()
    expected = np.zeros((16, 16), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # large sums overflow
        for k in range(0, 96, 32):
            expected = multiply_tile(a[:, k : k + 32], b[k : k + 32], expected)
    assert np.array_equal(got, expected, equal_nan=True)
    assert bool((np.abs(expected) < 1e-30).any() if scale < 1 else np.isfinite(expected).any())


@pytest.mark.parametrize("scale", [1.0, 1e-19])  # whose products lie around the least normal number
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", ["amx", "avx512bf16"])
def test_instructions_give_the_bits_of_their_twin(
    isa: str, shape: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = conv_inputs(shape, rows=3)
    channels = inputs["weight"].shape[1]
    if shape in ("dilation", "groups", "depthwise", "depthwise-stride") if isa == "amx" else channels % 2:
        pytest.skip("this layer runs without the instruction")
    inputs |= {"src": inputs["src"] * scale, "weight": inputs["weight"] * scale}
    if isa == "avx512bf16":
        monkeypatch.setenv("PREFIQS_CPU_ALGORITHM", "dot")
    results = []
    for name in (isa, f"{isa}-emulated"):
        monkeypatch.setenv("PREFIQS_CPU_ISA", name)
        try:
            results.append(ops.dual_conv2d(**inputs))
        except RuntimeError:
            pytest.skip(f"this CPU has no {isa}")
    assert torch.equal(*results)
    assert bool(results[0].any())
