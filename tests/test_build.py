"""What the built libraries promise: one build for every torch from 2.10 on."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefiqs_ext import _C, ops

PACKAGE = Path(_C.__file__).parent
LIBRARIES = sorted([*PACKAGE.glob("libprefiqs_*.so"), Path(_C.__file__)])
CMAKE = Path(__file__).parents[1] / "cmake"
EXPORTS = Path(__file__).parent / "data" / "torch_2_10_symbols.txt"
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake on PATH")


def configure(
    folder: Path, *options: str, python: Path = Path(sys.executable), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run CMake's first step."""
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    )
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["cmake", "-G", "Ninja", "-S", CMAKE.parent, "-B", folder, "-DCMAKE_BUILD_TYPE=Release"]
    command += [f"-DPython_EXECUTABLE={python}", f"-Dpybind11_DIR={pybind11.stdout.strip()}", *options]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": search, **environment}, check=False
    )


def undefined_symbols(library: Path) -> set[str]:
    listing = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in listing.stdout.splitlines()}


def test_the_operator_libraries_lie_beside_the_module() -> None:
    expected = ["libprefiqs_cuda.so"] * bool(_C.built_with_nvcc) + ["libprefiqs_ops.so"]
    assert [path.name for path in LIBRARIES if path.name.startswith("lib")] == expected


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name.split(".")[0])
def test_needs_nothing_that_torch_2_10_lacks(library: Path) -> None:
    assert_needs_torch_2_10(library)


def assert_needs_torch_2_10(library: Path) -> None:
    symbols = undefined_symbols(library)
    from_torch = {name for name in symbols if name.startswith(("torch_", "aoti_torch_"))}
    exported = set(EXPORTS.read_text().splitlines())
    if library.name == "libprefiqs_cuda.so":
        exported.add(
            "aoti_torch_get_current_cuda_stream"
        )  # of libtorch_cuda.so: see torch 2.10's notes on its stable ABI
    assert from_torch <= exported
    # A mangled name of torch's C++ classes would tie the library to one torch release.
    mangled = ("_ZN5torch", "_ZNK5torch", "_ZN3c10", "_ZNK3c10", "_ZN2at", "_ZNK2at")
    assert not {name for name in symbols if name.startswith(mangled)}
    assert from_torch or library.name.startswith("_C")


@pytest.mark.parametrize("has_torch", [True, False])
def test_torch_is_a_build_requirement_only_of_wheels_and_where_the_target_has_none(
    has_torch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(CMAKE)
    monkeypatch.chdir(CMAKE.parent)
    named = re.search('build-backend = "(.+)"', Path("pyproject.toml").read_text())
    assert named is not None
    backend = importlib.import_module(named[1])
    if not has_torch:  # an interpreter without site-packages
        bare = tmp_path / "python"
        bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        bare.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(bare))
    # What a build's own overlay holds must not count.
    monkeypatch.setenv("PYTHONPATH", str(Path(torch.__file__).parents[1]))
    wanted = set() if has_torch else {"torch>=2.10"}
    for what, of_torch in (("wheel", wanted), ("editable", wanted), ("sdist", set())):
        requirements = getattr(backend, f"get_requires_for_build_{what}")()
        assert {name for name in requirements if name.startswith("torch")} == of_torch, what


def test_a_wheel_of_built_libraries_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CMAKE)
    monkeypatch.setenv("PREFIQS_LIBRARIES", str(PACKAGE))
    monkeypatch.setattr(sys, "executable", "/no/python")
    assert not importlib.import_module("build_backend").missing_torch()


@needs_cmake
def test_wheels_share_the_libraries_of_one_build(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", f"-DPREFIQS_LIBRARIES={PACKAGE}")
    assert done.returncode == 0, done.stderr
    for command in (["--build", tmp_path / "build"], ["--install", tmp_path / "build", "--prefix", tmp_path]):
        subprocess.run(["cmake", *command], check=True, capture_output=True)
    installed = tmp_path / "prefiqs_ext"
    assert sorted(path.name for path in installed.iterdir()) == sorted(path.name for path in LIBRARIES)
    for library in PACKAGE.glob("libprefiqs_*.so"):
        assert (installed / library.name).read_bytes() == library.read_bytes()
    facts = ("built_with_torch", "built_with_nvcc", "cuda_architectures", "cuda_left_out", "cpu_isa()")
    code = f"import sys, torch; sys.path.insert(0, {str(installed)!r}); import _C; print(_C.__file__)\n"
    done = in_fresh_process(code + "".join(f"print(_C.{fact})\n" for fact in facts))
    assert done.returncode == 0, done.stderr
    expected = [getattr(_C, fact) for fact in facts[:-1]]
    assert done.stdout.splitlines() == [str(installed / Path(_C.__file__).name), *expected, _C.cpu_isa()]


@needs_cmake
def test_a_folder_without_libraries_is_refused(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", f"-DPREFIQS_LIBRARIES={tmp_path}")
    assert done.returncode != 0
    message = f"expected PREFIQS_LIBRARIES to be a folder with libprefiqs_ops.so, got {tmp_path}"
    assert message in " ".join(done.stderr.split())


def test_torch_is_found_without_importing_it() -> None:
    code = f"import sys; sys.path.insert(0, {str(CMAKE)!r}); import find_torch; print(find_torch.find())"
    code += "; assert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert str(Path(torch.__file__).parent) in found
    assert torch.__version__ in found


def in_fresh_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )


def test_importing_the_module_registers_the_operators() -> None:
    code = """
import torch
assert not hasattr(torch.ops.prefiqs_ext, "dual_conv2d")
import importlib.machinery, importlib.util, sysconfig, sys
path = %r
loader = importlib.machinery.ExtensionFileLoader("_C", path)
importlib.util.module_from_spec(importlib.util.spec_from_loader("_C", loader))
for name in ("dual_conv2d", "dual_linear", "embedding_distance", "dense_norm"):
    assert hasattr(torch.ops.prefiqs_ext, name), name
assert not any(name.startswith("prefiqs_ext") for name in sys.modules)
"""
    done = in_fresh_process(code % _C.__file__)
    assert done.returncode == 0, done.stderr


def test_the_module_loads_before_torch() -> None:
    done = in_fresh_process("import prefiqs_ext; print(prefiqs_ext.__version__)")
    assert done.returncode == 0, done.stderr


def test_an_unknown_instruction_set_is_named() -> None:
    done = in_fresh_process("from prefiqs_ext import _C, ops; _C.cpu_isa()", PREFIQS_CPU_ISA="sse9")
    assert done.returncode != 0
    assert "PREFIQS_CPU_ISA: expected amx, avx512bf16, avx512, avx2 or scalar" in done.stderr
    assert "'sse9'" in done.stderr


def test_why_cuda_cannot_be_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert ops._load_cuda() == f"torch {torch.__version__} has no CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_C, "__file__", str(tmp_path / "_C.so"))
    monkeypatch.setattr(_C, "cuda_left_out", "PREFIQS_CUDA=OFF")
    assert ops._load_cuda() == "this build of prefiqs_ext has no CUDA kernels (PREFIQS_CUDA=OFF)"
    library = tmp_path / "libprefiqs_cuda.so"
    library.write_text("not a library")
    monkeypatch.setattr(_C, "built_with_nvcc", "13.0.88")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert ops._load_cuda() == (
        f"the CUDA kernels were built with CUDA 13.0.88, and torch {torch.__version__} with CUDA 12.8; install a torch "
        "of CUDA 13, or build prefiqs_ext beside this one"
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert ops._load_cuda() == f"libprefiqs_cuda.so does not load ({library}: file too short)"


@pytest.mark.skipif(ops.cuda_missing is None, reason="CUDA tensors are computed with here")
def test_cuda_tensors_get_the_reason() -> None:
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)  # as the dispatcher does for CUDA tensors
    operators = torch.ops.prefiqs_ext
    image, weight, window = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 1, 1), ([1, 1], [0, 0], [1, 1], 1, False)
    conv = (image, weight, *[None] * 6, *window)
    for op, inputs, named in (
        (operators.dual_conv2d.default, conv, {}),
        (operators.dual_conv2d.out, conv, {"out": image}),
        (operators.dual_linear.default, (weight, weight, None, None, None, False), {}),
        (operators.embedding_distance.default, (torch.randn(2, 1),), {}),
        (operators.dense_norm.default, (torch.randn(2, 1), True), {}),
    ):
        message = (
            f"prefiqs_ext::{op._opname}: expected tensors on the CPU, got some on CUDA, but {ops.cuda_missing}; move"
        )
        with pytest.raises(RuntimeError, match=re.escape(message)):
            op.redispatch(cuda, *inputs, **named)
