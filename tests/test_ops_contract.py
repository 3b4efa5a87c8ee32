"""What the operators promise beside their values: errors, native and fake alike; opcheck, compile and export."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from prefiqs_ext import ops
from tests.bad_calls import BAD_CALLS, GOOD, ONLY_CPU, ONLY_CUDA, good_conv, good_linear
from tests.test_ops import random_mask


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# --- errors: one table (bad_calls.py), run through the native kernels and the fake ones -----------------------------

# "fake-cuda": what tracing sees of CUDA tensors, on any machine. "meta" stands for the CPU.
CUDA = ("fake-cuda", pytest.param("cuda", marks=pytest.mark.cuda))
FLOATS = dict.fromkeys(("cpu", "meta"), "float32 or bfloat16") | dict.fromkeys(
    ("fake-cuda", "cuda"), "float32 or float16 or bfloat16"
)


def call_on(device: str, op: Any, inputs: dict[str, Any]) -> Any:
    fake = device == "fake-cuda"

    def place(t: Tensor) -> Tensor:  # Tensor.to would close gaps, and copy what is expanded
        if fake:
            return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
        stored = t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0).to(device)
        return stored.as_strided(t.shape, t.stride(), t.storage_offset())

    with FakeTensorMode() if fake else nullcontext():
        return op(**{k: place(v) if isinstance(v, Tensor) else v for k, v in inputs.items()})


def assert_refused(device: str, op: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        call_on(device, op, GOOD[op]() | change)
    expected = message.replace("{floats}", FLOATS[device])
    assert str(caught.value).splitlines()[0] == f"prefiqs_ext::{op.__name__}: {expected}"


@pytest.mark.parametrize("device", ["cpu", "meta", *CUDA])
@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls(case: str, device: str) -> None:
    assert_refused(device, *BAD_CALLS[case])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", ONLY_CPU)
def test_bad_calls_on_the_cpu(case: str, device: str) -> None:
    assert_refused(device, *ONLY_CPU[case])


@pytest.mark.parametrize("device", CUDA)
@pytest.mark.parametrize("case", ONLY_CUDA)
def test_bad_calls_on_cuda(case: str, device: str) -> None:
    assert_refused(device, *ONLY_CUDA[case])


HALF, BFLOAT16 = torch.float16, torch.bfloat16
# src, weight, result
CUDA_DTYPES = [
    (torch.float32, torch.float32, torch.float32),
    (torch.float32, HALF, torch.float32),
    (torch.float32, BFLOAT16, torch.float32),
    (HALF, HALF, HALF),
    (BFLOAT16, BFLOAT16, BFLOAT16),
    (torch.uint8, torch.float32, torch.float32),
    (torch.uint8, HALF, HALF),
    (torch.uint8, BFLOAT16, BFLOAT16),
]


@pytest.mark.parametrize("device", CUDA)
@pytest.mark.parametrize(("src", "weight", "result"), CUDA_DTYPES)
def test_dtypes_on_cuda(src: torch.dtype, weight: torch.dtype, result: torch.dtype, device: str) -> None:
    conv = good_conv()
    conv |= {"src": conv["src"].to(src), "weight": conv["weight"].to(weight), "residual": conv["residual"].to(result)}
    dst = call_on(device, ops.dual_conv2d, conv)
    assert (dst.dtype, dst.device.type) == (result, "cuda")
    assert dst.is_contiguous(memory_format=torch.channels_last)
    out = torch.empty(dst.shape, dtype=result).to(memory_format=torch.channels_last)
    assert call_on(device, ops.dual_conv2d, conv | {"out": out}).dtype == result
    other = HALF if result == torch.float32 else torch.float32
    with pytest.raises(RuntimeError, match=f"expected out of dtype {str(result).removeprefix('torch.')}, got"):
        call_on(device, ops.dual_conv2d, conv | {"out": out.to(other)})
    if src != torch.uint8:
        linear = good_linear()
        linear |= {"src": linear["src"].to(src), "weight": linear["weight"].to(weight)}
        assert call_on(device, ops.dual_linear, linear).dtype == result
        for t in call_on(device, ops.embedding_distance, {"pair": torch.randn(4, 3).to(src)}):
            assert t.dtype == torch.float32


@pytest.mark.parametrize("change", [{}, {"pruned_scale": None, "bias": torch.randn(6)}], ids=["as they are", "plain"])
@pytest.mark.parametrize("good", [good_conv, good_linear])
def test_good_calls_of_the_bad_table(good: Any, change: dict[str, Any]) -> None:
    op = ops.dual_conv2d if good is good_conv else ops.dual_linear
    inputs = good() | change
    native = op(**inputs)
    fake = op(**{k: v.to("meta") if isinstance(v, Tensor) else v for k, v in inputs.items()})
    assert (fake.shape, fake.dtype, fake.stride()) == (native.shape, native.dtype, native.stride())


def test_inputs_on_another_device() -> None:
    inputs = good_linear() | {"bias": torch.randn(6, device="meta")}
    with pytest.raises((RuntimeError, NotImplementedError), match="expected bias on the device of src"):
        ops.dual_linear(**inputs)


@pytest.mark.parametrize("name", ["src", "weight", "bias"])
def test_an_input_that_requires_grad_is_refused(name: str) -> None:
    inputs = good_conv()
    inputs[name].requires_grad_()
    with pytest.raises(RuntimeError, match=r"prefiqs_ext::dual_conv2d: expected inputs that do not require grad"):
        ops.dual_conv2d(**inputs)
    with torch.no_grad():
        ops.dual_conv2d(**inputs)


BAD_OUT: dict[str, tuple[Callable[..., Tensor], str]] = {
    "dtype": (partial(torch.empty, 4, 6, 5, 5, dtype=torch.float64), "expected out of dtype float32, got float64"),
    "shape": (partial(torch.empty, 2, 6, 5, 5), "expected out of shape [4, 6, 5, 5], got [2, 6, 5, 5]"),
    "layout": (partial(torch.empty, 4, 6, 5, 5), "expected out in channels_last layout without gaps"),
    "gaps": (
        lambda: torch.empty(4, 5, 5, 12)[..., :6].permute(0, 3, 1, 2),
        "expected out in channels_last layout without gaps",
    ),
}


@pytest.mark.parametrize("device", ["cpu", "meta", *CUDA])
@pytest.mark.parametrize("case", BAD_OUT)
def test_bad_out(case: str, device: str) -> None:
    make, message = BAD_OUT[case]
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call_on(device, ops.dual_conv2d, good_conv() | {"out": make()})


def test_out_takes_the_result() -> None:
    inputs = good_conv()
    expected = ops.dual_conv2d(**inputs)
    out = torch.full_like(expected, torch.nan)
    assert ops.dual_conv2d(**inputs, out=out).data_ptr() == out.data_ptr()
    assert torch.equal(out, expected)
    inputs["weight"].requires_grad_()
    with pytest.raises(RuntimeError, match="expected inputs that do not require grad"):
        ops.dual_conv2d(**inputs, out=out)


# --- torch's own checks, compile and export --------------------------------------------------------------------------


def all_arguments(inputs: dict[str, Any]) -> tuple[Any, ...]:
    defaults = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1, "paired": False}
    optional = dict.fromkeys(("mask", "pruned_scale", "bias", "tap_shift", "slope", "residual"))
    names = ("src", "weight", *optional, *defaults)
    return tuple((optional | defaults | inputs)[name] for name in names)


def test_opcheck() -> None:
    for paired in (False, True):
        inputs = good_conv() | {"paired": paired}
        if paired:
            inputs["residual"] = torch.randn(1, 6, 5, 5)
        torch.library.opcheck(torch.ops.prefiqs_ext.dual_conv2d.default, all_arguments(inputs))
    out = {"out": torch.empty(4, 6, 5, 5).to(memory_format=torch.channels_last)}
    torch.library.opcheck(torch.ops.prefiqs_ext.dual_conv2d.out, all_arguments(good_conv()), out)
    linear = good_linear()
    torch.library.opcheck(torch.ops.prefiqs_ext.dual_linear.default, (*linear.values(), False))
    torch.library.opcheck(torch.ops.prefiqs_ext.embedding_distance.default, (torch.randn(6, 5),))


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, tensor in {"conv": torch.randn(6, 3, 3, 3), "linear": torch.randn(7, 6)}.items():
            self.register_buffer(name, tensor)
            self.register_buffer(f"{name}_mask", random_mask(tensor))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pair = ops.dual_conv2d(images, self.conv, self.conv_mask, slope=torch.zeros(1), padding=(1, 1), stride=(2, 2))
        pair = ops.dual_linear(pair.mean((2, 3)), self.linear, self.linear_mask, paired=True)
        return tuple(ops.embedding_distance(pair))


def test_export_with_a_dynamic_batch_and_reload(tmp_path: Any) -> None:
    network, images = Network(), torch.randn(4, 3, 9, 9)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "network.pt2")
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    for rows in (1, 5):
        for got, expected in zip(loaded(images[:1].expand(rows, -1, -1, -1)), network(images[:1]), strict=True):
            assert torch.equal(got, expected.expand_as(got))


@pytest.mark.slow
def test_compile() -> None:
    network, images = Network(), torch.randn(4, 3, 9, 9)
    compiled = torch.compile(network, fullgraph=True)
    with torch.no_grad():
        for got, expected in zip(compiled(images), network(images), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
