"""`prefiqs info`, and shell completion."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import prefiqs_ext
from prefiqs_ext import ops
from prefiqs_ext.cli import main
from prefiqs_ext.models import weights


def _facts() -> dict[str, str]:
    result = CliRunner().invoke(main, ["info"])
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    return {line[:17].rstrip(): line[17:] for line in lines[: lines.index("weights")]}


def test_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFIQS_CPU_ISA", raising=False)
    monkeypatch.setenv("PREFIQS_HOME", str(tmp_path))
    facts = _facts()
    assert facts["prefiqs_ext"].startswith(f"{prefiqs_ext.__version__} ")
    assert facts["torch"] == f"{torch.__version__}; this build was made with {ops._C.built_with_torch}"
    assert Path(facts["library"]).is_file()
    assert facts["instruction set"] == f"{ops._C.cpu_isa()} (the best here)"
    assert facts["bfloat16"].startswith("multiplied by" if ops._C.cpu_multiplies_bfloat16() else "not multiplied by")
    assert facts["threads"].startswith(f"{torch.get_num_threads()} of ")
    if torch.version.cuda is None:
        assert facts["CUDA"].startswith(f"not used: the installed torch {torch.__version__} is built without CUDA; ")
    assert facts["CUDA kernels"].startswith("not built: " if ops._C.cuda_left_out else "sm_80 ")
    assert facts["cache folder"] == f"{tmp_path} (from PREFIQS_HOME)"


@pytest.mark.parametrize(("forced", "fact"), [("scalar", "scalar (forced by PREFIQS_CPU_ISA)"), ("sse9", "none: ")])
def test_forced_instruction_set(forced: str, fact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIQS_CPU_ISA", forced)
    assert _facts()["instruction set"].startswith(fact)
    assert _facts()["bfloat16"].startswith("none: " if fact == "none: " else "not multiplied by this CPU")


def test_refused_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFIQS_CPU_ISA", raising=False)
    monkeypatch.setattr(ops._C, "cpu_tiles_refused", lambda: True)
    assert _facts()["instruction set"].endswith("(the best here, as the system refuses the memory for AMX tiles)")


def test_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefiqs_ext.device.why_no_cuda", lambda: "libprefiqs_cuda.so does not load (no such file)")
    assert _facts()["CUDA"] == "not used: libprefiqs_cuda.so does not load (no such file)"
    monkeypatch.setattr("prefiqs_ext.device.why_no_cuda", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert _facts()["CUDA"] == "in use: NVIDIA H200 (compute capability 9.0)"


def test_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops._C, "built_with_nvcc", "13.0.88")
    monkeypatch.setattr(ops._C, "cuda_architectures", "sm_80 sm_90a compute_90")
    assert _facts()["CUDA kernels"] == "sm_80 sm_90a compute_90, compiled by nvcc 13.0.88"
    monkeypatch.setattr(ops._C, "built_with_nvcc", "")
    monkeypatch.setattr(ops._C, "cuda_left_out", "PREFIQS_CUDA=OFF")
    assert _facts()["CUDA kernels"] == "not built: PREFIQS_CUDA=OFF"


def test_weights_with_licence_and_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFIQS_HOME", str(tmp_path))
    (tmp_path / weights.KNOWN["yunet"].file).write_bytes(b"damaged")
    info = CliRunner().invoke(main, ["info"]).stdout
    listed = CliRunner().invoke(main, ["weights", "list"]).stdout
    assert [line.split()[:5] for line in info.partition("weights\n")[2].splitlines()] == [
        ["sface", "recogniser", "38,696,353", "Apache-2.0", "missing"],
        ["yunet", "detector", "232,589", "MIT", "damaged"],
        ["facexzoo", "recogniser", "4,990,751", "Apache-2.0", "missing"],
        ["dlib", "recogniser", "22,466,066", "CC0-1.0", "missing"],
        ["w600k_mbf", "recogniser", "13,616,099", "non-commercial", "missing"],
    ]
    assert [line.strip() for line in info.partition("weights\n")[2].splitlines()] == listed.splitlines()


# What pip installs as `prefiqs`, under the name that completion looks for.
_PROGRAM = "import sys; from prefiqs_ext.cli import main; main(prog_name='prefiqs')"


def _complete(words: str, position: int) -> list[str]:
    environment = {
        **os.environ,
        "_PREFIQS_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(position),
    }
    done = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_completion_knows_commands_and_options() -> None:
    assert _complete("prefiqs re", 1) == ["plain,report"]
    assert "plain,--aligned" in _complete("prefiqs report --al", 2)
    assert _complete("prefiqs report ", 2) == ["dir,"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_what_the_shell_takes(shell: str) -> None:
    environment = {**os.environ, "_PREFIQS_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert "prefiqs" in done.stdout
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    check = subprocess.run([program, "-n"], input=done.stdout, capture_output=True, text=True, check=False)
    assert (check.returncode, check.stderr) == (0, "")
