"""Checks and measures the CUDA engine on a machine with a GPU: `benchmarks/on_gpu.sh check|bench OUTDIR`.

check: builds, runs the tests marked `cuda`, compares with float64, and looks for wrong memory accesses and races.
bench: builds, and measures the GPU's ceilings, what people would run in our place, ours, and every layer.

OUTDIR gets log.txt, results.jsonl (one line for each result, written at once), junit.xml, and summary.txt, which names
what failed and what the budget left out. The exit code is 0 if all steps passed. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu_environment import FOLDER, PYTHON, build_variables
from benchmarks.gpu_steps import RESULTS, SUMMARY, Step, run_steps

_SFACE = "face_recognition_sface_2021dec.onnx"
_ROOT = Path(__file__).resolve().parents[1]


def list_build_steps(arguments: argparse.Namespace) -> list[Step]:
    """List the steps that both stages begin with."""
    wheels = ["--wheels", str(arguments.wheels)] if arguments.wheels else []
    return [
        Step("build", [sys.executable, "-m", "benchmarks.gpu_environment", *wheels], 360, needed=True),
        # Where the kernels cannot run, the tests skip; that must not look like success. Peers can still be measured.
        replace(_make_gpu_step("facts", 60), needed=arguments.stage == "check"),
    ]


def list_check_steps(folder: Path) -> list[Step]:
    """List the steps of `check`; `folder` gets the reports of the tests."""
    marked = sorted(str(file) for file in Path("tests").glob("test_*.py") if "mark.cuda" in file.read_text())
    # Four processes; without a limit the reference on the CPU would use all cores in each.
    tests = ["env", "OMP_NUM_THREADS=4", str(PYTHON), "-m", "pytest", "-m", "cuda", "-n", "4", *marked]
    tests.append(f"--junitxml={folder.absolute() / 'junit.xml'}")
    return [
        Step("tests", tests, 200),
        _make_gpu_step("accuracy sface", 120),
        _make_gpu_step("accuracy iresnet50", 120),
        _make_sanitizer_step("memcheck"),
        _make_sanitizer_step("racecheck"),
        # Last, because a wrong barrier in it hangs.
        _use_sm90(Step("tests", [*tests[:-1], f"--junitxml={folder.absolute() / 'junit-sm90.xml'}"], 60)),
    ]


def list_bench_steps() -> list[Step]:
    """List the steps of `bench`, the most important first."""
    return [
        _make_gpu_step("ceilings", 60),
        _make_gpu_step("network iresnet100 256", 120),
        _make_gpu_step("network iresnet50 256", 100),
        _make_gpu_step("network iresnet100 1", 80),
        _make_gpu_step("network sface 256", 80),
        _make_gpu_step("layers iresnet100 256", 100),
        _make_gpu_step("network iresnet50 1", 60),
        _make_gpu_step("compiled iresnet100 256", 300),
        _make_gpu_step("compiled iresnet50 256", 240),
        _make_gpu_step("layers sface 256", 60),
        _use_sm90(_make_gpu_step("network iresnet100 256", 60)),
        _use_sm90(_make_gpu_step("layers iresnet100 256", 60)),
    ]


def _make_gpu_step(what: str, limit: float) -> Step:
    return Step(what, [str(PYTHON), "-m", "benchmarks.gpu", *what.split()], limit)


def _use_sm90(step: Step) -> Step:
    """Make the same step with the kernel for compute capability 9.0a."""
    return replace(step, name=f"sm90 {step.name}", command=["env", "PREFIQS_CUDA_KERNEL=sm90", *step.command])


def _make_sanitizer_step(tool: str) -> Step:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    cases = [str(PYTHON), "-m", "benchmarks.gpu_cases"]
    return Step(tool, [sanitizer, "--tool", tool, "--error-exitcode", "9", *cases], 150)


def prepare_environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the environment variables of all steps; copies the weights to a folder of their own."""
    given = build_variables(os.environ) | {"PREFIQS_RESULTS": str(arguments.outdir.absolute() / RESULTS)}
    if arguments.weights:
        home = (FOLDER / "home").absolute()
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(arguments.weights, home / _SFACE)
        given["PREFIQS_HOME"] = str(home)
    if arguments.crops:
        given["PREFIQS_TEST_FACES"] = str(arguments.crops.absolute())
    return given


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="on_gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("check", "bench"), metavar="check|bench")
    parser.add_argument("outdir", type=Path, metavar="OUTDIR")
    parser.add_argument("--wheels", type=_parse_folder, metavar="DIR", help="packages that this machine may lack")
    parser.add_argument("--weights", type=_parse_file, metavar="FILE", help="SFace's ONNX file")
    parser.add_argument("--crops", type=_parse_folder, metavar="DIR", help="folders of aligned 112 x 112 faces")
    parser.add_argument("--budget", type=float, default=540, metavar="S", help="seconds in all (default: %(default)s)")
    return parser


def main() -> int:
    """Run a stage; returns the exit code."""
    arguments = build_parser().parse_args()
    os.chdir(_ROOT)
    arguments.outdir.mkdir(parents=True, exist_ok=True)
    for old in arguments.outdir.glob("*"):
        if old.name in (RESULTS, SUMMARY, "log.txt", "junit.xml", "junit-sm90.xml"):
            old.unlink()
    steps = list_check_steps(arguments.outdir) if arguments.stage == "check" else list_bench_steps()
    outcomes = run_steps(
        [*list_build_steps(arguments), *steps], arguments.outdir, arguments.budget, prepare_environment(arguments)
    )
    print((arguments.outdir / SUMMARY).read_text(), end="")
    return 0 if all(outcome.state == "passed" for outcome in outcomes) else 1


def _parse_folder(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, got {text!r}")
    return path


def _parse_file(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"expected a file, got {text!r}")
    return path


if __name__ == "__main__":
    sys.exit(main())
