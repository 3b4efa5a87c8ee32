"""The CUDA library where there is an nvcc, GPU or not: it compiles without a warning or a spilled register, holds code
for the GPUs it names, and loads beside a torch with CUDA, which a stand-in for libtorch_cuda.so plays."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefiqs_ext import _C
from tests.test_build import assert_needs_torch_2_10, configure, in_fresh_process

ROOT = Path(__file__).parents[1]
NVCC, CMAKE = shutil.which("nvcc"), shutil.which("cmake")
BUILD = ROOT / "build" / "cuda"  # kept: a second run compiles only what changed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NVCC is None or CMAKE is None, reason="no nvcc or no cmake on PATH"),
]

# A register that does not fit is kept in memory: slower, and so an error here. (Not for a library to be used: the PTX
# keeps these options and would pass them on to newer drivers.)
NO_SPILLS = "-Xptxas=--warn-on-spills,--warning-as-error"
STRICT = ("-DCMAKE_CXX_FLAGS=-Werror", f"-DCMAKE_CUDA_FLAGS=-Werror=all-warnings -Xcompiler=-Werror {NO_SPILLS}")


@pytest.fixture(scope="module")
def library() -> Path:
    done = configure(BUILD, "-DPREFIQS_CUDA=ON", *STRICT)
    assert done.returncode == 0, done.stderr
    command = [CMAKE or "", "--build", BUILD, "--target", "prefiqs_cuda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / "libprefiqs_cuda.so"


def test_a_spilled_register_fails_the_build(tmp_path: Path) -> None:
    source = tmp_path / "spill.cu"
    source.write_text("""
__global__ void __launch_bounds__(1024, 2) reverse(float* x) {
  float a[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) a[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) x[i * 1024 + threadIdx.x] = a[i] * a[127 - i];
}
""")
    command = [NVCC or "", "-arch=sm_80", "-cubin", "-o", tmp_path / "spill.cubin", source]
    assert subprocess.run(command, check=False).returncode == 0
    done = subprocess.run([*command, NO_SPILLS], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Registers are spilled" in done.stdout + done.stderr


def test_products_that_wait_for_each_other_are_seen(tmp_path: Path) -> None:
    source = tmp_path / "serialized.cu"
    source.write_text("""
#include "cuda/ptx/wgmma.cuh"
using namespace prefiqs::cuda;
__global__ void product(float* x, uint64_t b) {
  float sums[64] = {};
  uint32_t a[4] = {threadIdx.x, 1, 2, 3};
  wgmma_fence();
  wgmma_m64n128k16<Float16>(sums, a, b);
  sums[5] += 1;  // before the wait
  wgmma_m64n128k16<Float16>(sums, a, b);
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < 64; ++i) x[i * 128 + threadIdx.x] = sums[i];
}
""")
    assert any("instructions are serialized" in remark for remark in remarks_on_products(source, tmp_path))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_run_side_by_side(dtype: str, tmp_path: Path) -> None:
    assert not remarks_on_products(ROOT / "csrc" / "cuda" / f"dual_conv_sm90_{dtype}.cu", tmp_path)


def remarks_on_products(source: Path, folder: Path) -> list[str]:
    """What ptxas says of wgmma, above all that it waits after each: only information to ptxas, never a warning."""
    command = [NVCC or "", "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", f"-I{ROOT / 'csrc'}", "-cubin"]
    command += ["-o", str(folder / "products.cubin"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in (done.stdout + done.stderr).splitlines() if "(C75" in line]


# The linker exchanges these functions of the runtime: each fails, and leaves its error to be asked for.
_ERRORS = """
#include <cstdio>
#include "cuda/launch.h"
#include "cuda/ptx/tma.cuh"
using namespace prefiqs::cuda;

static cudaError_t last = cudaSuccess;
static bool old_driver = true;

extern "C" {
cudaError_t __wrap_cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return last = cudaErrorInvalidValue; }
cudaError_t __wrap_cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
cudaError_t __wrap_cudaGetDriverEntryPointByVersion(
    const char*, void** found, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
  if (old_driver) return last = cudaErrorInsufficientDriver;
  *found = reinterpret_cast<void*>(+[] { return CUDA_ERROR_NOT_PERMITTED; });
  *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
}

__global__ void nothing(int) {}

template <class Map>
void encode_once() {
  TensorMap map;
  const int status = encode<Float16>(map, Map{});
  std::printf("%d %d\\n", status, last);
}

int main() {
  const int status = launch(nothing, 1, 32, 64 * 1024, nullptr, 0);
  std::printf("%d %d\\n", status, last);
  encode_once<Im2colMap>();
  old_driver = false;
  encode_once<TiledMap>();
}
"""


def test_a_failed_call_is_reported_once_and_by_its_own_error(tmp_path: Path) -> None:
    source, program = tmp_path / "errors.cu", tmp_path / "errors"
    source.write_text(_ERRORS)
    wrapped = ("cudaFuncSetAttribute", "cudaGetLastError", "cudaGetDriverEntryPointByVersion")
    options = [f"-Xlinker=--wrap={name}" for name in wrapped]
    command = [NVCC or "", "-std=c++17", "-arch=sm_80", f"-I{ROOT / 'csrc'}", *options, "-o", str(program), str(source)]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    invalid_value, not_supported, not_permitted = 1, 801, 800
    assert done.stdout.split() == [str(n) for n in (invalid_value, 0, not_supported, 0, not_permitted, 0)]


def test_holds_code_for_every_gpu_it_names(library: Path) -> None:
    wheel = importlib.metadata.files("nvidia-cuda-cuobjdump") or []
    cuobjdump = next(Path(str(file.locate())) for file in wheel if file.name == "cuobjdump")
    kinds = {"-lelf": {"sm_80.cubin", "sm_90a.cubin"}, "-lptx": {"sm_90.ptx"}}
    sources = list((ROOT / "csrc" / "cuda").glob("*.cu"))
    hopper = len(list((ROOT / "csrc" / "cuda").glob("dual_conv_sm90_*.cu")))
    everywhere = len(sources) - hopper
    for option, expected in kinds.items():
        listing = subprocess.run([cuobjdump, option, library], capture_output=True, text=True, check=True).stdout
        found = [line.split(".", 2)[-1] for line in listing.splitlines()]
        assert set(found) == expected
        assert len(found) == len(expected) * everywhere + (hopper if option == "-lelf" else 0)


def test_needs_nothing_that_torch_2_10_lacks(library: Path) -> None:
    assert_needs_torch_2_10(library)
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "[libtorch_cuda.so]" in dynamic
    assert "cudart" not in dynamic
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    assert not [line for line in exported.splitlines() if line.split()[-1].startswith(("cuda", "__cuda"))]


# What prefiqs_ext does beside a torch with CUDA, up to the first kernel.
_USE = """
import ctypes, os, pathlib, sys, torch
ctypes.CDLL(sys.argv[1])
torch.version.cuda = "13.0"
import importlib.machinery, importlib.util
loader = importlib.machinery.ExtensionFileLoader("prefiqs_ext._C", sys.argv[2])
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("prefiqs_ext._C", loader))
module.__file__ = sys.argv[3]
module.built_with_nvcc = "13.0.88"  # of a library that was built apart
sys.modules["prefiqs_ext._C"] = module
import prefiqs_ext
prefiqs_ext._C = module
from prefiqs_ext import ops
assert ops.cuda_missing is None, ops.cuda_missing
cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
for op in ("dual_conv2d", "dual_conv2d.out", "dual_linear", "embedding_distance", "dense_norm"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"prefiqs_ext::{op}", "CUDA"), op
torch.ops.prefiqs_ext.embedding_distance.default.redispatch(cuda, torch.randn(3, 2))
"""


def test_registers_beside_a_torch_with_cuda(library: Path) -> None:
    stand_in = library.parent / "stand-in" / "libtorch_cuda.so"
    arguments = [str(stand_in), _C.__file__, str(library)]
    done = in_fresh_process(f"import sys; sys.argv = ['', *{arguments!r}]" + _USE)
    # The last line reached the operator's own checks.
    assert done.stderr.splitlines()[-1].endswith(
        "prefiqs_ext::embedding_distance: expected an even number of rows in pair, got 3"
    ), done.stderr


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def python_with_torch(folder: Path, version: str, cuda: str) -> Path:
    found = f'{{"root": "{Path(torch.__file__).parent}", "version": "{version}", "cuda": "{cuda}"}}'
    return script(
        folder / "python", f'case "$*" in *find_torch.py) echo \'{found}\';; *) exec {sys.executable} "$@";; esac'
    )


@pytest.mark.parametrize(
    ("torch_cuda", "option", "nvcc", "fails", "message"),
    [
        ("", "AUTO", "13.0", False, "CUDA kernels: not built (torch 2.13.0, which it was built beside, has no CUDA)"),
        ("13.0", "AUTO", "13.0", False, "CUDA kernels: sm_80 sm_90a compute_90, by nvcc 13.0"),
        ("13.0", "OFF", "13.0", False, "CUDA kernels: not built (PREFIQS_CUDA=OFF)"),
        ("13.0", "AUTO", "", False, "CUDA kernels: not built (no working nvcc was found: install the CUDA toolkit"),
        ("13.0", "ON", "", True, "PREFIQS_CUDA=ON, but no working nvcc was found: install the CUDA toolkit"),
        ("12.8", "AUTO", "12.4", False, "CUDA kernels: not built (nvcc 12.4 ("),
        ("", "ON", "12.4", True, "PREFIQS_CUDA=ON, but nvcc 12.4 ("),
        ("12.8", "AUTO", "13.0", True, "expected an nvcc of CUDA 12, which torch 2.13.0 was built with, got 13.0 ("),
        ("13.1", "AUTO", "13.0", False, "nvcc 13.0 compiles the CUDA kernels; torch 2.13.0 was built with CUDA 13.1"),
        ("", "YES", "13.0", True, "expected PREFIQS_CUDA to be AUTO, ON or OFF, got 'YES'"),
    ],
)
def test_configure(torch_cuda: str, option: str, nvcc: str, fails: bool, message: str, tmp_path: Path) -> None:
    compiler = tmp_path / "nvcc"  # missing where nvcc is ""
    if nvcc:
        script(compiler, f'case "$*" in --version) echo "release {nvcc}, V{nvcc}";; *) exec {NVCC} "$@";; esac')
    python = python_with_torch(tmp_path, "2.13.0", torch_cuda)
    done = configure(tmp_path / "build", f"-DPREFIQS_CUDA={option}", python=python, CUDACXX=str(compiler))
    said = " ".join((done.stdout + done.stderr).split())
    assert (done.returncode != 0) == fails, said
    assert message in said
