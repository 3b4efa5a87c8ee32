"""What the built libraries promise: one build for every torch from 2.10 on."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefiqs_ext import _C

PACKAGE = Path(_C.__file__).parent
LIBRARIES = sorted([*PACKAGE.glob("libprefiqs_*.so"), Path(_C.__file__)])
CMAKE = Path(__file__).parents[1] / "cmake"
EXPORTS = Path(__file__).parent / "data" / "torch_2_10_symbols.txt"


def undefined_symbols(library: Path) -> set[str]:
    listing = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in listing.stdout.splitlines()}


def test_the_operator_library_lies_beside_the_module() -> None:
    assert [path.name for path in LIBRARIES if path.name.startswith("lib")] == ["libprefiqs_ops.so"]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name.split(".")[0])
def test_needs_nothing_that_torch_2_10_lacks(library: Path) -> None:
    symbols = undefined_symbols(library)
    from_torch = {name for name in symbols if name.startswith(("torch_", "aoti_torch_"))}
    assert from_torch <= set(EXPORTS.read_text().splitlines())
    # A mangled name of torch's C++ classes would tie the library to one torch release.
    mangled = ("_ZN5torch", "_ZNK5torch", "_ZN3c10", "_ZNK3c10", "_ZN2at", "_ZNK2at")
    assert not {name for name in symbols if name.startswith(mangled)}
    assert from_torch or library.name.startswith("_C")


@pytest.mark.parametrize("has_torch", [True, False])
def test_torch_is_a_build_requirement_only_where_the_target_has_none(
    has_torch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(CMAKE)
    requirement = importlib.import_module("torch_requirement")
    if not has_torch:  # an interpreter without site-packages
        bare = tmp_path / "python"
        bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        bare.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(bare))
    # What a build's own overlay holds must not count.
    monkeypatch.setenv("PYTHONPATH", str(Path(torch.__file__).parents[1]))
    assert requirement.get_requires_for_dynamic_metadata({}) == ([] if has_torch else ["torch>=2.10"])


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
for name in ("dual_conv2d", "dual_linear", "embedding_distance"):
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
    assert "PREFIQS_CPU_ISA: expected avx512, avx2 or scalar" in done.stderr
    assert "'sse9'" in done.stderr
