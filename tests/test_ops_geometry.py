"""The native operators in calls that are drawn at random (tests/fuzz/operators.py says what must hold of them), and
memory that is not there, or not the result's own."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch

from prefiqs_ext import ops
from tests.bad_calls import BAD_CONV, good_conv, good_linear
from tests.fuzz.operator_cases import ISAS, draw_case
from tests.fuzz.operators import check_case
from tests.test_ops import expected_conv, random_mask


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_random_calls(isa: str) -> None:
    """The fuzzer's first, of which the corpus keeps only what once was a finding."""
    outcomes = []
    for seed in range(200):
        case = draw_case(random.Random(f"{isa} {seed}"), isa)
        try:
            outcomes.append(check_case(case))
        except Exception as error:
            raise AssertionError(json.dumps(case)) from error
    assert outcomes.count("result") > 60  # else the draw is of no use
    assert outcomes.count("error") > 40


def test_taps_that_lie_far_apart() -> None:
    torch.manual_seed(0)
    # Only the middle tap meets the image, as at dilation 9. A ring of the rows between taps would need 2**46 bytes.
    window = {"padding": (2**20, 2**20), "dilation": (2**20, 2**20)}
    inputs = {"src": torch.randn(2, 3, 5, 4), "weight": torch.randn(3, 1, 3, 3), "groups": 3, **window}
    inputs["mask"] = random_mask(inputs["weight"])
    want = expected_conv(inputs | {"padding": (9, 9), "dilation": (9, 9)})
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
