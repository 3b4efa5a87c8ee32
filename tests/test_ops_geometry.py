"""The native operators over odd geometries and layouts, drawn at random, against plain torch in float64: what torch
refuses is refused, all else is right. And memory that is not there, or not the result's own."""

from __future__ import annotations

import random
import re
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from prefiqs_ext import ops
from tests import oracle
from tests.bad_calls import BAD_CONV, good_conv, good_linear
from tests.conftest import ISAS

# Of the largest sum of absolute values that a result adds up. Float32 sums of at most 2000 products round to some
# sqrt(2000) * 6e-8 of that, Winograd's to a few times as much; a wrong pixel or weight is off by 1e-2 or more.
TOLERANCE = 1e-5
HUGE = (2**31, 2**32 + 1, 2**40, 2**61, 2**62, (2**64 + 2) // 3, 2**63 - 1)


class Case(NamedTuple):
    op: str
    inputs: dict[str, Any]


def laid_out(draw: random.Random, t: Tensor) -> Tensor:
    """The same numbers (or, expanded, the first of each row) as callers may keep them."""
    layout = draw.choice(("plain", "channels_last", "gaps", "behind", "transposed", "expanded"))
    if layout == "channels_last" and t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "gaps":
        return torch.stack([t, torch.full_like(t, 7)], dim=-1)[..., 0]
    if layout == "behind":  # in a storage that begins elsewhere, at no round address
        before = draw.randint(1, 5)
        return torch.cat([torch.zeros(before, dtype=t.dtype), t.flatten()])[before:].view(t.shape)
    if layout == "transposed":
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded" and t.numel() > 0:
        return t[:1].expand(t.shape) if draw.random() < 0.5 else t[..., :1].expand(t.shape)
    return t


def randn(*shape: int) -> Tensor:
    return torch.randn(shape)


def packed_mask(rows: int, depth: int) -> Tensor:
    """Bits past the end of a row are set too: they are nobody's."""
    return torch.randint(-(2**31), 2**31, (rows, (depth + 31) // 32)).int()


def scale_and_bias(draw: random.Random, channels: int, masked: bool) -> dict[str, Tensor]:
    inputs = {}
    if masked and draw.random() < 0.3:
        inputs["pruned_scale"] = randn(channels)
    if draw.random() < 0.4:
        inputs["bias"] = randn(2, channels) if masked and draw.random() < 0.5 else randn(channels)
    return inputs


def conv_case(draw: random.Random) -> Case:
    kernel = [draw.choice((1, 1, 2, 3, 3, 4, 5)) for _ in range(2)]
    image = [draw.choice((1, 2, 3, 5, 8, 13, 21, 40)) for _ in range(2)]
    if draw.random() < 0.05:
        image[draw.randrange(2)] = 0
    kind = draw.choice(("dense", "dense", "wide", "groups", "depthwise"))
    groups = draw.randint(2, 40) if kind == "depthwise" else draw.randint(2, 4) if kind == "groups" else 1
    depth = 1 if kind == "depthwise" else draw.randint(32, 70) if kind == "wide" else draw.randint(1, 20)
    filters = groups * (1 if kind == "depthwise" else draw.randint(32, 66) if kind == "wide" else draw.randint(1, 40))
    paired, masked = draw.random() < 0.5, draw.random() < 0.7
    images = draw.choice((0, 1, 1, 1, 2, 2, 3, 3))
    uint8 = not paired and draw.random() < 0.1
    src = randn(images * (2 if paired else 1), depth * groups, *image)
    inputs: dict[str, Any] = {
        "src": src.mul(30).to(torch.uint8) if uint8 else src,
        "weight": randn(filters, depth, *kernel),
        "stride": [draw.choice((1, 1, 2, 3, 7)) for _ in range(2)],
        "padding": [draw.choice((0, 1, 2, 3, 11, 30)) for _ in range(2)],
        "dilation": [draw.choice((1, 1, 2, 3, 9)) for _ in range(2)],
        "groups": groups,
        "paired": paired,
    }
    if draw.random() < 0.1:
        inputs[draw.choice(("stride", "dilation"))][draw.randrange(2)] = draw.choice(HUGE)
    if draw.random() < 0.02:
        inputs["padding"][draw.randrange(2)] = draw.choice((2**62, 2**63 - 1))
    if draw.random() < 0.02:
        inputs[draw.choice(("stride", "padding", "dilation"))][draw.randrange(2)] = draw.choice((-1, 0, -(2**63)))
    if draw.random() < 0.02:
        inputs["groups"] = draw.choice((0, -1, groups + 1, 2**62))
    if masked:
        inputs["mask"] = packed_mask(filters, depth * kernel[0] * kernel[1])
    inputs |= scale_and_bias(draw, filters, masked)
    if draw.random() < 0.3:
        inputs["tap_shift"] = randn(2 if masked else 1, filters, *kernel)
    if draw.random() < 0.3:
        inputs["slope"] = torch.rand(draw.choice((1, filters)))
    return Case("dual_conv2d", inputs)


def linear_case(draw: random.Random) -> Case:
    features, outputs = draw.choice(((1, 1), (33, 5), (40, 66), (700, 400), (2000, 140)))
    paired = draw.random() < 0.5
    between = draw.choice(((), (), (0,), (3,), (2, 2)))
    weight = randn(outputs, features)
    inputs: dict[str, Any] = {"src": randn(draw.randint(0, 9) * (2 if paired else 1), *between, features)}
    inputs |= {"weight": weight, "paired": paired}
    if draw.random() < 0.7:
        inputs["mask"] = packed_mask(outputs, features)
    inputs |= scale_and_bias(draw, outputs, "mask" in inputs)
    return Case("dual_linear", inputs)


def distance_case(draw: random.Random) -> Case:
    return Case("embedding_distance", {"pair": randn(2 * draw.randint(0, 40), draw.choice((1, 3, 128, 511)))})


def case(seed: int) -> Case:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    make = draw.choices((conv_case, linear_case, distance_case), (8, 1, 1))[0]
    op, inputs = make(draw)
    return Case(op, {k: laid_out(draw, v) if isinstance(v, Tensor) else v for k, v in inputs.items()})


def expected(op: str, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    wide = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in bounded(inputs).items()}
    if op == "dual_conv2d" and inputs["src"].numel() == 0:
        wide["tap_shift"] = None  # of an empty result; torch does not convolve one image without pixels
    result = getattr(oracle, f"expected_{op}")(**wide)
    return result if isinstance(result, tuple) else (result,)


def bounded(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same for torch, which counts with overflows itself: all steps beyond the padded image are alike."""
    steps = {name: [min(step, 1000) for step in inputs[name]] for name in ("stride", "dilation") if name in inputs}
    return inputs | steps


def refused_by_torch(inputs: dict[str, Any]) -> bool:
    window = {name: bounded(inputs)[name] for name in ("stride", "padding", "dilation", "groups")}
    if min(*window["stride"], *window["dilation"]) < 1:
        return True  # by most of its kernels, not by all
    try:
        torch.nn.functional.conv2d(inputs["src"].double(), inputs["weight"].double(), **window)
    except RuntimeError:
        return True
    return False


def check(seed: int) -> str:
    """Run a case; returns what became of it."""
    op, inputs = case(seed)
    run = getattr(ops, op)
    if op == "dual_conv2d" and refused_by_torch(inputs):
        with pytest.raises(RuntimeError, match=r"^prefiqs_ext::dual_conv2d: "):
            run(**inputs)
        return "refused"
    wanted = expected(op, inputs)
    if op == "dual_conv2d" and inputs["src"].numel() > 0 and inputs["bias" if "bias" in inputs else "src"].sum() > 0:
        shape = wanted[0].shape
        half = (shape[0] // 2, *shape[1:]) if "mask" in inputs or inputs["paired"] else shape
        inputs["residual"] = torch.randn(half if seed % 2 else shape)
        wanted = expected(op, inputs)
    result = run(**inputs)
    scales = wanted
    if op != "embedding_distance":
        magnitudes = {k: v.abs() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
        scales = expected(op, magnitudes | ({"slope": None} if "slope" in inputs else {}))
    for got, want, scale in zip(result if isinstance(result, tuple) else (result,), wanted, scales, strict=True):
        assert got.shape == want.shape
        assert got.dtype == torch.float32
        if got.numel() > 0:
            assert (got - want).abs().max() <= TOLERANCE * max(float(scale.max()), op == "embedding_distance")
    if op == "dual_conv2d":
        out = torch.full_like(result, torch.nan)
        assert torch.equal(ops.dual_conv2d(**inputs, out=out), result)
    return "empty" if wanted[0].numel() == 0 else "computed"


def test_random_geometries(isa: str) -> None:
    first = 100 * ISAS.index(isa)
    outcomes = []
    for seed in range(first, first + 100):
        try:
            outcomes.append(check(seed))
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    assert outcomes.count("computed") > 40  # else the draw is of no use
    assert outcomes.count("refused") > 10


def test_taps_that_lie_far_apart() -> None:
    torch.manual_seed(0)
    # Only the middle tap meets the image, as at dilation 9. A ring of the rows between taps would need 2**46 bytes.
    window = {"padding": (2**20, 2**20), "dilation": (2**20, 2**20)}
    inputs = {"src": randn(2, 3, 5, 4), "weight": randn(3, 1, 3, 3), "groups": 3, **window}
    inputs["mask"] = packed_mask(3, 9)
    (want,) = expected("dual_conv2d", inputs | {"padding": (9, 9), "dilation": (9, 9)})
    torch.testing.assert_close(ops.dual_conv2d(**inputs).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["stride", "padding", "dilation", "groups", "groups zero", "small image", "stride of 3"]
)
def test_geometry_is_refused_in_the_words_of_torch(name: str) -> None:
    change, message = BAD_CONV[name]
    inputs = good_conv() | change
    names = {"src": "input", "weight": "weight", "stride": "stride", "padding": "padding", "dilation": "dilation"}
    names["groups"] = "groups"
    with pytest.raises(RuntimeError) as caught:
        torch.nn.functional.conv2d(**{theirs: inputs[ours] for ours, theirs in names.items() if ours in inputs})
    words = set(re.findall("[A-Za-z']+", str(caught.value)))
    assert words <= set(re.findall("[A-Za-z']+", message))


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["src", "weight", "mask", "pruned_scale", "bias", "tap_shift", "slope", "residual", "out"]
)
def test_a_tensor_beyond_its_storage_is_refused(name: str) -> None:
    inputs = good_conv() | {"out": torch.empty(4, 6, 5, 5).to(memory_format=torch.channels_last)}
    inputs[name] = inputs[name].clone()  # a mask's memory is numpy's
    storage = inputs[name].untyped_storage()
    needed = storage.nbytes()
    storage.resize_(needed - 1)
    message = f"prefiqs_ext::dual_conv2d: expected {name} with a storage of {needed} bytes or more, got {needed - 1}"
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        ops.dual_conv2d(**inputs)


def test_a_linear_input_or_a_pair_beyond_its_storage_is_refused() -> None:
    inputs, pair = good_linear(), torch.randn(4, 3)
    for t in (inputs["src"], pair):
        t.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"expected src with a storage of 320 bytes or more, got 0$"):
        ops.dual_linear(**inputs)
    with pytest.raises(RuntimeError, match=r"expected pair with a storage of 48 bytes or more, got 0$"):
        ops.embedding_distance(pair)


@pytest.mark.parametrize("name", ["src", "residual", "bias", "pruned_scale"])
def test_a_result_over_an_input_is_refused(name: str) -> None:
    inputs, memory = good_conv(), torch.randn(2000)
    shape, numbers = inputs[name].shape, inputs[name].numel()
    out = memory[700:1300].view(4, 5, 5, 6).permute(0, 3, 1, 2)
    for begin in (700 - numbers + 1, 900, 1299):  # the input's last number is out's first, inside, the other way round
        over = inputs | {name: memory[begin : begin + numbers].view(shape), "out": out}
        with pytest.raises(RuntimeError, match="expected out apart from all inputs: some elements of the input tensor"):
            ops.dual_conv2d(**over)
    for begin in (700 - numbers, 1300):
        beside = inputs | {name: memory[begin : begin + numbers].view(shape)}
        result = ops.dual_conv2d(**beside)
        assert torch.equal(ops.dual_conv2d(**beside, out=out), result)


def test_memory_that_cannot_be_had_is_told() -> None:
    # A result of 2**49 bytes: more than a process can address, so that no machine tries.
    big = {"src": torch.zeros(1, 1, 1, 1), "weight": torch.ones(1, 1, 1, 1), "padding": (2**22, 2**23)}
    message = r"^prefiqs_ext::dual_conv2d: expected memory for \d+ numbers of dtype float32 on cpu, got none: use"
    with pytest.raises(RuntimeError, match=message):
        ops.dual_conv2d(**big)
    few, many = torch.zeros(1).expand(2**46, 4), torch.zeros(1).expand(2**40, 256)
    with pytest.raises(RuntimeError, match=f"dual_linear: expected memory for {2**46} numbers of dtype float32 on cpu"):
        ops.dual_linear(few, torch.ones(1, 4))
    with pytest.raises(RuntimeError, match=f"embedding_distance: expected memory for {2**48} numbers of dtype float32"):
        ops.embedding_distance(many)
