"""The operators on CUDA against their meaning in plain torch (tests/oracle.py), in float64 on the same numbers.

Inputs are rounded to the format that multiplies before either side sees them: products are then exact, and what is left
is float32 accumulation and the rounding of the result.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prefiqs_ext import ops
from prefiqs_ext.pruning_masks import pack_mask
from tests import oracle
from tests.bad_calls import good_conv, good_linear
from tests.test_emulated_conv import FILLING, MODES, epilogue_inputs, filling_inputs
from tests.test_ops import SHAPES, conv_inputs, expected_conv, random_mask
from tests.test_ops_contract import all_arguments
from tests.test_ops_scale import SHAPES as SCALE_SHAPES
from tests.test_ops_scale import TERMS, add_branch_terms, add_everything, random_scale

pytestmark = pytest.mark.cuda

HALF, BFLOAT16, FLOAT = torch.float16, torch.bfloat16, torch.float32
# src and weight; "float32" has both in float32 and multiplies in float16.
FORMATS = {
    "float16": (HALF, HALF),
    "bfloat16": (BFLOAT16, BFLOAT16),
    "float32": (FLOAT, FLOAT),
    "float32-float16": (FLOAT, HALF),
    "float32-bfloat16": (FLOAT, BFLOAT16),
}
# Of the largest result. A tensor core cuts off, rather than rounds, what float32 cannot hold, once every 16 products:
# up to 1568 steps of half of 2^-23 here, all in one direction, on sums that grow to the result.
ACCUMULATION = 1e-4
# Half a unit in the last place of a result stored in sixteen bits.
ROUNDING = {FLOAT: 0.0, HALF: 2.0**-11, BFLOAT16: 2.0**-8}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert (got.dtype, got.device.type) == (dtype, "cuda")
    assert got.shape == expected.shape
    assert (got.double().cpu() - expected).abs().max() <= (ACCUMULATION + ROUNDING[dtype]) * expected.abs().max()


def result_dtype(inputs: dict[str, Any]) -> torch.dtype:
    dtype: torch.dtype = (inputs["weight"] if inputs["src"].dtype == torch.uint8 else inputs["src"]).dtype
    return dtype


def formatted(inputs: dict[str, Any], name: str) -> dict[str, Any]:
    """The inputs of a call in one of FORMATS, on the CPU, holding only numbers that the format holds."""
    src, weight = FORMATS[name]
    compute = HALF if weight == FLOAT else weight
    inputs = inputs | {"weight": inputs["weight"].to(compute).to(weight)}
    if inputs["src"].dtype != torch.uint8:
        inputs["src"] = inputs["src"].to(compute).to(src)
    if inputs.get("residual") is not None:
        inputs["residual"] = inputs["residual"].to(result_dtype(inputs))
    return inputs


def on_cuda(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.cuda() if isinstance(v, Tensor) else v for k, v in inputs.items()}


def check_conv(inputs: dict[str, Any]) -> None:
    got = ops.dual_conv2d(**on_cuda(inputs))
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_close(got, expected_conv(inputs), result_dtype(inputs))


@pytest.mark.parametrize("paired", [False, True], ids=["shared", "paired"])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_conv2d(shape: str, name: str, masked: bool, paired: bool) -> None:
    check_conv(formatted(conv_inputs(shape, masked=masked) | {"paired": paired}, name))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tile", FILLING)
def test_conv2d_by_tiles_that_fill_the_machine(tile: str, mode: str) -> None:
    check_conv(epilogue_inputs(filling_inputs(tile, mode), HALF, shared_residual=False))


@pytest.mark.parametrize("slopes", ["none", "relu", "prelu-one", "prelu"])
@pytest.mark.parametrize("residual", ["none", "shared", "paired"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", ["odd-channels", "depthwise", "several-k-blocks", "groups", "even-tiles"])
def test_conv2d_epilogue(shape: str, name: str, residual: str, slopes: str) -> None:
    inputs = conv_inputs(shape, masked=True) | {"paired": True}
    filters = inputs["weight"].shape[0]
    inputs["bias"] = torch.randn(filters)
    inputs["slope"] = {
        "none": None,
        "relu": torch.zeros(1),
        "prelu-one": torch.tensor([0.25]),
        "prelu": torch.rand(filters) - 0.5,
    }[slopes]
    if residual != "none":
        inputs["residual"] = torch.randn(expected_conv(inputs).shape)[: 2 if residual == "shared" else 4]
    check_conv(formatted(inputs, name))


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_conv2d_tap_shift(shape: str, name: str, masked: bool) -> None:
    inputs = conv_inputs(shape, masked=masked)
    weight = inputs["weight"]
    inputs["tap_shift"] = torch.randn(2 if masked else 1, weight.shape[0], *weight.shape[2:])
    inputs["bias"] = torch.randn(weight.shape[0])
    check_conv(formatted(inputs, name))


@pytest.mark.parametrize("paired", [False, True], ids=["shared", "paired"])
@pytest.mark.parametrize(("scaled", "bias_rows"), TERMS)
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [*SCALE_SHAPES, "several-k-blocks"])
def test_conv2d_scale(shape: str, name: str, scaled: bool, bias_rows: int, paired: bool) -> None:
    inputs = conv_inputs(shape, masked=True, rows=2) | {"paired": paired}
    inputs = add_branch_terms(inputs, scaled=scaled, bias_rows=bias_rows)
    check_conv(formatted(inputs, name))
    check_conv(formatted(add_everything(inputs), name))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [*SCALE_SHAPES, "several-k-blocks"])
def test_conv2d_scale_keeps_the_bits_of_the_dense_branch(shape: str, name: str) -> None:
    inputs = on_cuda(formatted(add_everything(conv_inputs(shape, masked=True)), name))
    channels = inputs["weight"].shape[0]
    scale, bias = random_scale(channels).cuda(), torch.randn(2, channels).cuda()
    plain = ops.dual_conv2d(**inputs, bias=bias[0])
    dense, pruned = ops.dual_conv2d(**inputs, pruned_scale=scale, bias=bias).chunk(2)
    assert torch.equal(dense, plain.chunk(2)[0])
    assert not torch.equal(pruned, plain.chunk(2)[1])
    ones = ops.dual_conv2d(**inputs, pruned_scale=torch.ones_like(scale), bias=bias[:1].expand(2, -1))
    assert torch.equal(ones, plain)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", ["stem", "7x7-stride-2", "depthwise", "even-tiles"])
def test_conv2d_uint8_source(shape: str, name: str) -> None:
    inputs = conv_inputs(shape, masked=True)
    inputs["src"] = torch.randint(0, 256, inputs["src"].shape, dtype=torch.uint8)
    inputs["tap_shift"] = torch.randn(2, inputs["weight"].shape[0], *inputs["weight"].shape[2:])
    check_conv(formatted(inputs, name))


@pytest.mark.parametrize("kind", ["ones", "zeros", "one-bit"])
@pytest.mark.parametrize("shape", ["odd-channels", "depthwise", "several-k-blocks", "groups"])
def test_conv2d_extreme_masks(shape: str, kind: str) -> None:
    inputs = formatted(conv_inputs(shape, masked=True), "float16")
    keep = torch.full(inputs["weight"].shape, kind == "ones")
    if kind == "one-bit":
        keep[-1, -1, -1, -1] = True
    inputs["mask"] = pack_mask(keep)
    check_conv(inputs)
    dense, pruned = ops.dual_conv2d(**on_cuda(inputs)).chunk(2)
    if kind == "ones":
        assert torch.equal(dense, pruned)
    if kind == "zeros":
        assert torch.equal(pruned, torch.zeros_like(pruned))


def misaligned(t: Tensor) -> Tensor:
    """The same numbers in the same layout, one element past a 16-byte boundary."""
    storage = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
    assert storage.data_ptr() % 16 == 0
    return storage[1:].as_strided(t.shape, t.stride(), 1).copy_(t)


@pytest.mark.parametrize("shape", ["odd-channels", "depthwise", "stem", "even-tiles"])
def test_conv2d_layouts_give_the_same_bits(shape: str) -> None:
    inputs = conv_inputs(shape, masked=True)
    inputs = add_everything(add_branch_terms(inputs, scaled=True, bias_rows=2))
    inputs = on_cuda(formatted(inputs, "float16"))
    expected = ops.dual_conv2d(**inputs)
    for name, t in inputs.items():
        if not isinstance(t, Tensor):
            continue
        gaps = torch.stack([t, t], -1)[..., 0]
        layouts = [gaps, misaligned(t)]
        if t.dim() == 4:
            nhwc = t.contiguous(memory_format=torch.channels_last)
            layouts += [nhwc, misaligned(nhwc)]
        for layout in layouts:
            assert torch.equal(ops.dual_conv2d(**(inputs | {name: layout})), expected), name


@pytest.mark.parametrize("name", FORMATS)
def test_out(name: str) -> None:
    inputs = on_cuda(formatted(conv_inputs("odd-channels", masked=True), name))
    expected = ops.dual_conv2d(**inputs)
    nan = torch.full_like(expected, torch.nan)
    for out in (nan, misaligned(nan)):
        assert ops.dual_conv2d(**inputs, out=out) is out
        assert torch.equal(out, expected)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_conv2d_row_bits_do_not_depend_on_batch_or_place(shape: str, name: str) -> None:
    inputs = on_cuda(formatted(conv_inputs(shape, masked=True, rows=7), name))
    everything = ops.dual_conv2d(**inputs)
    for _ in range(5):
        assert torch.equal(everything, ops.dual_conv2d(**inputs))
    dense, pruned = everything.chunk(2)
    for row in (0, 3, 6):
        alone = ops.dual_conv2d(**(inputs | {"src": inputs["src"][row : row + 1]}))
        assert torch.equal(alone, torch.stack([dense[row], pruned[row]]))
    many = ops.dual_conv2d(**(inputs | {"src": inputs["src"].repeat(19, 1, 1, 1)}))
    assert torch.equal(many, torch.cat([dense.repeat(19, 1, 1, 1), pruned.repeat(19, 1, 1, 1)]))
    paired = ops.dual_conv2d(**(inputs | {"src": torch.cat([inputs["src"], inputs["src"]]), "paired": True}))
    assert torch.equal(paired, everything)


@pytest.mark.parametrize("paired", [False, True], ids=["shared", "paired"])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [(70, 33, ()), (9000, 40, ()), (25088, 37, ()), (5000, 61, (5,)), (31, 5, (3, 2))])
def test_linear(size: tuple[int, int, tuple[int, ...]], name: str, masked: bool, paired: bool) -> None:
    features, outputs, between = size
    weight = torch.randn(outputs, features)
    inputs = formatted({"src": torch.randn(6, *between, features), "weight": weight}, name)
    inputs |= {"mask": random_mask(weight) if masked else None, "paired": paired}
    inputs = add_branch_terms(inputs, scaled=masked, bias_rows=2 if masked else 1)
    got = ops.dual_linear(**on_cuda(inputs))
    assert got.is_contiguous()
    wide = inputs | {"src": inputs["src"].double(), "weight": inputs["weight"].double()}
    assert_close(got, oracle.expected_dual_linear(**wide), result_dtype(inputs))


def test_linear_row_bits_do_not_depend_on_batch() -> None:
    src, weight = torch.randn(17, 5000).half().cuda(), torch.randn(70, 5000).half().cuda()
    mask = random_mask(weight.cpu()).cuda()
    dense, pruned = ops.dual_linear(src, weight, mask).chunk(2)
    for row in (0, 9, 16):
        assert torch.equal(ops.dual_linear(src[row : row + 1], weight, mask), torch.stack([dense[row], pruned[row]]))
    many = ops.dual_linear(src.repeat(19, 1), weight, mask)
    assert torch.equal(many, torch.cat([dense.repeat(19, 1), pruned.repeat(19, 1)]))


@pytest.mark.parametrize("dtype", [FLOAT, HALF, BFLOAT16])
@pytest.mark.parametrize("size", [(1, 1), (3, 128), (37, 512), (300, 777)])
def test_embedding_distance(size: tuple[int, int], dtype: torch.dtype) -> None:
    rows, features = size
    dense = torch.randn(rows, features)
    pair = torch.cat([dense, dense + torch.logspace(-4, 1, rows)[:, None] * torch.randn(rows, features)]).to(dtype)
    expected = oracle.expected_embedding_distance(pair.double())
    for source in (pair.cuda(), misaligned(pair.cuda()), pair.cuda().t().contiguous().t()):
        for got, wanted in zip(ops.embedding_distance(source), expected, strict=True):
            assert (got.dtype, got.device.type) == (FLOAT, "cuda")
            # Differences of unit vectors, in float32: an absolute error of a few 2^-24 a component.
            torch.testing.assert_close(got.double().cpu(), wanted, rtol=2e-6, atol=1e-6)


def test_embedding_distance_of_special_rows() -> None:
    row, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
    dense = torch.stack([row, row, row, zero, row])
    pruned = torch.stack([row, zero, -row, row, torch.tensor([torch.nan, 1.0])])
    got = ops.embedding_distance(torch.cat([dense, pruned]).cuda())
    # .6 and .8 are not float32 numbers: their norm may miss 1 by a rounding.
    torch.testing.assert_close(got.distance[:4].cpu(), torch.tensor([0.0, 1.0, 2.0, 1.0]), rtol=3e-7, atol=0.0)
    assert got.distance[4].isnan()
    assert got.embedding_norm.tolist() == [5.0, 5.0, 5.0, 0.0, 5.0]


def test_empty_batches() -> None:
    weight = torch.randn(5, 3, 3, 3)
    mask = random_mask(weight).cuda()
    src = torch.empty(0, 3, 8, 9, device="cuda", dtype=HALF)
    assert ops.dual_conv2d(src, weight.half().cuda(), mask).shape == (0, 5, 6, 7)
    assert ops.dual_linear(torch.empty(0, 4, device="cuda"), torch.randn(6, 4).half().cuda()).shape == (0, 6)
    assert ops.embedding_distance(torch.empty(0, 4, device="cuda")).embedding.shape == (0, 4)


def test_infinite_and_nan_inputs_are_not_hidden() -> None:
    src = torch.zeros(1, 1, 1, 3)
    src[0, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    weight, slope = torch.ones(1, 1, 1, 1).half().cuda(), torch.tensor([0.5]).cuda()
    got = ops.dual_conv2d(src.half().cuda(), weight, slope=slope)
    assert got.isnan().flatten().tolist() == [True, False, False]
    assert got.isinf().flatten().tolist() == [False, True, True]


def test_inputs_on_another_device() -> None:
    inputs = on_cuda(good_linear())
    for name in ("weight", "mask", "pruned_scale", "bias"):
        with pytest.raises(RuntimeError, match=f"expected {name} on the device of src"):
            ops.dual_linear(**(inputs | {name: inputs[name].cpu()}))


def test_no_memory_for_the_result() -> None:
    src, weight = torch.zeros(1, 1, 1, 1, device="cuda", dtype=HALF), torch.zeros(1, 1, 1, 1, device="cuda", dtype=HALF)
    message = (
        r"expected memory for \d+ numbers of dtype float16 on cuda:0, got none \(CUDA out of memory\): use a smaller"
    )
    with pytest.raises(RuntimeError, match=message):
        ops.dual_conv2d(src, weight, padding=(2_000_000, 2_000_000))  # 32 TB


def test_sizes_beyond_32_bits() -> None:
    src, weight = torch.zeros(1, 1, 1, 1, device="cuda", dtype=HALF), torch.zeros(1, 1, 1, 1, device="cuda", dtype=HALF)
    with pytest.raises(
        RuntimeError, match=r"expected the kernel to launch, got cudaErrorInvalidConfiguration: .* smaller batch"
    ):
        ops.dual_conv2d(src, weight, padding=(19_500, 19_500))  # 1.5 * 2^30 pixels, 3 GB


def test_work_is_queued_on_the_current_stream() -> None:
    inputs = on_cuda(formatted(conv_inputs("several-k-blocks", masked=True), "float16"))
    expected = ops.dual_conv2d(**inputs)
    distance = ops.embedding_distance(expected.flatten(1).float()).distance
    late = torch.full_like(inputs["src"], torch.nan)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # about 10 ms, in which another stream would read the NaN
        late.copy_(inputs["src"])
        got = ops.dual_conv2d(**(inputs | {"src": late}))
        got_distance = ops.embedding_distance(got.flatten(1).float()).distance
    stream.synchronize()
    assert torch.equal(got, expected)
    assert torch.equal(got_distance, distance)


def test_a_cuda_graph_replays_the_operators() -> None:
    inputs = on_cuda(formatted(conv_inputs("several-k-blocks", masked=True), "float16"))
    linear = {"weight": torch.randn(7, 70 * 5 * 6).half().cuda(), "paired": True}

    def run() -> Tensor:
        pair = ops.dual_conv2d(**inputs)
        return ops.embedding_distance(ops.dual_linear(pair.flatten(1), **linear)).distance

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        distance = run()
    for seed in range(3):
        torch.manual_seed(seed)
        inputs["src"].copy_(torch.randn(inputs["src"].shape))
        graph.replay()
        assert torch.equal(distance, run())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device or none")
def test_another_device_than_the_current_one() -> None:
    inputs = formatted(conv_inputs("odd-channels", masked=True), "float16")
    expected = ops.dual_conv2d(**on_cuda(inputs))
    got = ops.dual_conv2d(**{k: v.to("cuda:1") if isinstance(v, Tensor) else v for k, v in inputs.items()})
    assert got.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert torch.equal(got.cpu(), expected.cpu())


def test_opcheck() -> None:
    for paired in (False, True):
        inputs = good_conv() | {"paired": paired}
        inputs |= {"src": inputs["src"].half(), "weight": inputs["weight"].half()}
        inputs["residual"] = torch.randn(1 if paired else 2, 6, 5, 5).half()
        torch.library.opcheck(torch.ops.prefiqs_ext.dual_conv2d.default, all_arguments(on_cuda(inputs)))
    out = {"out": torch.empty(4, 6, 5, 5, device="cuda").to(memory_format=torch.channels_last)}
    torch.library.opcheck(torch.ops.prefiqs_ext.dual_conv2d.out, all_arguments(on_cuda(good_conv())), out)
    linear = on_cuda(good_linear())
    torch.library.opcheck(torch.ops.prefiqs_ext.dual_linear.default, (*linear.values(), False))
    torch.library.opcheck(torch.ops.prefiqs_ext.embedding_distance.default, (torch.randn(6, 5).half().cuda(),))
