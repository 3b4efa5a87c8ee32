"""Where a Scorer computes: what is chosen, what is refused and why, on machines with a GPU and without."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prefiqs_ext.device
from prefiqs_ext.device import choose_dtype, multiplies_bfloat16, resolve_device, why_no_cuda

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """torch says that there is one GPU, and the extension that it can compute there."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_name": "NVIDIA H100",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(prefiqs_ext.device, "cuda_missing", None)
    monkeypatch.setattr(prefiqs_ext.device, "embedding_distance", lambda pair: pair)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: None)
    return monkeypatch


def test_defaults(gpu: pytest.MonkeyPatch) -> None:
    model = nn.Linear(1, 1)
    assert resolve_device(None, None, model) == resolve_device("cpu", torch.float32, "sface") == (CPU, torch.float32)
    for device in ("cuda", "cuda:0", GPU):
        assert resolve_device(device, None, model) == (GPU, torch.float16)
    assert resolve_device("cuda", torch.bfloat16, model) == (GPU, torch.bfloat16)
    assert resolve_device(None, torch.bfloat16, model) == (CPU, torch.bfloat16)
    assert why_no_cuda() is None


@pytest.mark.parametrize("native", [False, True])
def test_the_fastest_type_of_a_device(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefiqs_ext.device, "multiplies_bfloat16", lambda: native)
    assert choose_dtype("cpu") == (torch.bfloat16 if native else torch.float32)
    assert choose_dtype("cuda") == choose_dtype(GPU) == torch.float16


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Linux names these instructions of x86-64 only")
def test_whether_the_cpu_multiplies_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFIQS_CPU_ISA", raising=False)
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    if "avx512_bf16" in flags:
        assert multiplies_bfloat16()
    elif "amx_bf16" not in flags:  # which a system may hold back
        assert not multiplies_bfloat16()
    for narrower in ("avx2", "scalar"):
        monkeypatch.setenv("PREFIQS_CPU_ISA", narrower)
        assert not multiplies_bfloat16()
    monkeypatch.setenv("PREFIQS_CPU_ISA", "sse9")
    with pytest.raises(RuntimeError, match=r"PREFIQS_CPU_ISA: expected .* got 'sse9'"):
        multiplies_bfloat16()


def test_a_model_on_a_gpu_is_scored_there(gpu: pytest.MonkeyPatch) -> None:
    class OnGpu:
        device, is_cuda = GPU, True

    model = nn.Linear(1, 1)
    gpu.setattr(model, "parameters", lambda: iter([OnGpu()]))
    assert resolve_device(None, None, model) == (GPU, torch.float16)
    assert resolve_device("cpu", None, model) == (CPU, torch.float32)


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        (
            None,
            torch.float16,
            "torch.float32 or torch.bfloat16 on the CPU, .* got torch.float16: leave dtype out, or use",
        ),
        ("cpu", torch.float64, "expected dtype torch.float32 or torch.bfloat16 on the CPU, .* got torch.float64"),
        ("cuda", torch.float32, "expected dtype torch.float16 or torch.bfloat16 on CUDA, .*, got torch.float32: leave"),
        ("cuda:1", None, "cannot compute on 'cuda:1': there are 1 CUDA devices, the last of them cuda:0"),
        ("meta", None, "expected device 'cpu' or 'cuda', got 'meta'"),
        ("gpu", None, "expected device 'cpu', 'cuda' or 'cuda:0', got 'gpu'"),
        ("cuda:x", None, "expected device 'cpu', 'cuda' or 'cuda:0', got 'cuda:x'"),
    ],
)
def test_refusals(gpu: pytest.MonkeyPatch, device: str | None, dtype: torch.dtype | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        resolve_device(device, dtype, None)
    assert "\n" not in str(caught.value)


def raising(error: Exception) -> Any:
    def call(*_: Any) -> Any:
        raise error

    return call


def test_what_is_missing_is_said(gpu: pytest.MonkeyPatch) -> None:
    # From the last thing that is looked at to the first, each missing in turn.
    broken = RuntimeError("CUDA error: no kernel image is available\nCompile with TORCH_USE_CUDA_DSA")
    gpu.setattr(prefiqs_ext.device, "embedding_distance", raising(broken))
    assert why_no_cuda() == "CUDA error: no kernel image is available Compile with TORCH_USE_CUDA_DSA"
    gpu.setattr(prefiqs_ext.device, "cuda_missing", "this build of prefiqs_ext has no CUDA kernels (no nvcc)")
    assert "has no CUDA kernels (no nvcc); install prefiqs_ext again beside a CUDA toolkit" in str(why_no_cuda())
    gpu.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert why_no_cuda() == "NVIDIA H100 has compute capability 7.5, and the kernels need 8.0"
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert why_no_cuda() == "torch finds no CUDA device; look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    gpu.setattr(torch.version, "cuda", None)
    assert "is built without CUDA; install one with CUDA" in str(why_no_cuda())
