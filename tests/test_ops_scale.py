"""What the branches have of their own beside the mask: the scale of the pruned one, and a bias for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefiqs_ext import ops
from prefiqs_ext.dual import DualConv2d, DualLinear
from prefiqs_ext.dual.modules import DualConv1d
from tests import oracle
from tests.test_ops import assert_close, conv_inputs, expected_conv, random_mask, tolerance

# Of every algorithm, and hardly any channels or pixels divide evenly. "one-pixel-streamed" takes the linear kernel, and
# by gemm several blocks of k.
SHAPES = (
    *("depthwise", "depthwise-stride", "odd-channels", "groups", "1x1"),
    *("parts-of-tiles", "stride-2-parts-of-tiles", "one-pixel-streamed"),
)
# Whether there is a scale, and how many rows the bias has; without a scale, none and one are in test_ops.py.
TERMS = ((False, 2), (True, 0), (True, 1), (True, 2))
LINEAR_SIZES: tuple[tuple[int, int, tuple[int, ...]], ...] = ((70, 33, ()), (601, 447, ()), (31, 5, (3, 2)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_scale(channels: int) -> Tensor:
    """The gains of a recalibration, .2 to 5; the operator takes any number, so one is negative and one is 0."""
    scale = torch.exp(torch.empty(channels).uniform_(-1.6, 1.6))
    scale[-1], scale[channels // 2] = -1.5, 0
    return scale


def add_branch_terms(inputs: dict[str, Any], *, scaled: bool, bias_rows: int) -> dict[str, Any]:
    channels = inputs["weight"].shape[0]
    return inputs | {
        "pruned_scale": random_scale(channels) if scaled else None,
        "bias": (None, torch.randn(channels), torch.randn(2, channels))[bias_rows],
    }


def add_everything(inputs: dict[str, Any]) -> dict[str, Any]:
    """Tap shifts, slopes and a residual: what else an epilogue may have to do."""
    channels, kernel = inputs["weight"].shape[0], inputs["weight"].shape[2:]
    inputs = inputs | {"tap_shift": torch.randn(2, channels, *kernel), "slope": torch.rand(channels)}
    return inputs | {"residual": torch.randn(ops.dual_conv2d(**inputs).shape)}


@pytest.mark.parametrize("paired", [False, True], ids=["shared", "paired"])
@pytest.mark.parametrize(("scaled", "bias_rows"), TERMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_conv2d(
    isa: str, shape: str, scaled: bool, bias_rows: int, paired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = conv_inputs(shape, masked=True, rows=2) | {"paired": paired}
    inputs = add_branch_terms(inputs, scaled=scaled, bias_rows=bias_rows)
    for given in (inputs, add_everything(inputs)):
        expected = expected_conv(given)
        assert_close(ops.dual_conv2d(**given), expected, tolerance(shape))
        with monkeypatch.context() as patch:
            patch.setenv("PREFIQS_CPU_ALGORITHM", "gemm")
            assert_close(ops.dual_conv2d(**given), expected)


@pytest.mark.parametrize("paired", [False, True], ids=["shared", "paired"])
@pytest.mark.parametrize(("scaled", "bias_rows"), TERMS)
@pytest.mark.parametrize("size", LINEAR_SIZES)
def test_linear(isa: str, size: tuple[int, int, tuple[int, ...]], scaled: bool, bias_rows: int, paired: bool) -> None:
    features, outputs, between = size
    weight = torch.randn(outputs, features)
    inputs = {"src": torch.randn(6, *between, features), "weight": weight, "mask": random_mask(weight)}
    inputs = add_branch_terms(inputs, scaled=scaled, bias_rows=bias_rows) | {"paired": paired}
    wide = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    assert_close(ops.dual_linear(**inputs), oracle.expected_dual_linear(**wide))


def make_calls(shape: str) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    if shape != "linear":
        return ops.dual_conv2d, add_everything(conv_inputs(shape, masked=True))
    weight = torch.randn(447, 601)
    return ops.dual_linear, {"src": torch.randn(4, 601), "weight": weight, "mask": random_mask(weight)}


@pytest.mark.parametrize("shape", [*SHAPES, "linear"])
def test_the_dense_branch_keeps_its_bits(isa: str, shape: str) -> None:
    op, inputs = make_calls(shape)
    channels = inputs["weight"].shape[0]
    bias = torch.randn(2, channels)
    plain = op(**inputs, bias=bias[0])
    dense, pruned = op(**inputs, pruned_scale=random_scale(channels), bias=bias).chunk(2)
    assert torch.equal(dense, plain.chunk(2)[0])
    assert not torch.equal(pruned, plain.chunk(2)[1])
    # A scale of ones and two equal rows of bias are the absence of either: multiplying by 1 rounds nothing.
    assert torch.equal(op(**inputs, pruned_scale=torch.ones(channels), bias=bias[:1].expand(2, -1)), plain)


@pytest.mark.parametrize("shape", [*SHAPES, "linear"])
def test_row_bits_do_not_depend_on_batch_or_threads(isa: str, shape: str) -> None:
    op, inputs = make_calls(shape)
    inputs = add_branch_terms(inputs, scaled=True, bias_rows=2) | {"residual": None}
    if shape == "linear":
        del inputs["residual"]
    together = op(**inputs)
    for row in (0, 3):
        alone = op(**(inputs | {"src": inputs["src"][row : row + 1]}))
        assert torch.equal(alone, together.view(2, 4, *together.shape[1:])[:, row])
    paired = inputs | {"src": torch.cat([inputs["src"], inputs["src"]]), "paired": True}
    assert torch.equal(op(**paired), together)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(op(**inputs), together)
    finally:
        torch.set_num_threads(threads)


def test_a_scale_of_0_leaves_the_bias(isa: str) -> None:
    inputs = conv_inputs("odd-channels", masked=True)
    bias = torch.randn(2, 65)
    pruned = ops.dual_conv2d(**inputs, pruned_scale=torch.zeros(65), bias=bias).chunk(2)[1]
    assert torch.equal(pruned, bias[1].view(1, -1, 1, 1).expand_as(pruned))


# --- the layers ------------------------------------------------------------------------------------------------------


def test_layers_compute_what_torch_does() -> None:
    """Against torch's modules: the second one with masked weights, and scale and bias applied to what it gives."""
    for own, ours, names in (
        (nn.Conv2d(5, 7, 3, padding=1, bias=False), DualConv2d, (8, 9)),
        (nn.Conv1d(5, 7, 3, padding=1, bias=False), DualConv1d, (9,)),
        (nn.Linear(5, 7, bias=False), DualLinear, ()),
    ):
        weight = own.weight.detach().clone()
        keep, scale, bias = torch.rand(weight.shape) < 0.6, random_scale(7), torch.randn(2, 7)
        settings: dict[str, Any] = {} if ours is DualLinear else {"padding": (weight.dim() - 3, 1)}
        lift = (lambda t: t.unsqueeze(2)) if ours is DualConv1d else (lambda t: t)
        layer: Any = ours(lift(weight), lift(keep), pruned_scale=scale, bias=bias, **settings)
        src = torch.randn(3, 5, *names)
        dense = own(src)
        own.weight.data *= keep
        over_pixels = (-1, *[1] * len(names))
        expected = torch.cat(
            [
                dense + bias[0].view(over_pixels),
                scale.view(over_pixels) * own(src) + bias[1].view(over_pixels),
            ]
        )
        scale.zero_()  # the layer has its own
        bias.zero_()
        with torch.no_grad():
            torch.testing.assert_close(layer(src), expected.detach(), rtol=1e-5, atol=1e-5)  # sums of 15 products
        assert "with mask, pruned_scale, bias" in repr(layer)
    assert "with weight only" in repr(DualLinear(weight))
