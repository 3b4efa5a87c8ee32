"""Checks and measures the CUDA engine on a machine with a GPU, most valuable first: `benchmarks/on_gpu.sh OUTDIR`.

OUTDIR gets log.txt, results.jsonl (one line for each result, written at once), tests' reports, and summary.txt, which
names what failed and, at the end, what the budget left out. The exit code is 0 if all steps passed. Only the standard
library is needed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_environment import FOLDER, build_variables
from benchmarks.gpu_steps import LOG, RESULTS, SUMMARY, Step, run_steps

_ROOT = Path(__file__).resolve().parents[1]
_OPERATORS = "tests/test_cuda_ops.py"


def list_steps(device: str, pack: Path, outdir: Path) -> list[Step]:
    """List all steps, the most valuable first.

    Two workers do the measurements, because the engine reads once which kernel to use. The kernel for compute
    capability 9.0a may hang, so the first worker must not depend on it. Tests have processes of their own, and so has
    the sanitizer, which slows down all that runs under it.

    Args:
        device: "cuda"; or "cpu", to try all of this with small networks where there is no GPU.
        pack: What pack_gpu.sh made.
        outdir: Gets the reports of the tests.
    """
    large, small, batch = ("iresnet100", "iresnet50", 256) if device == "cuda" else ("wide", "mobile", 4)
    others = sorted(str(file) for file in Path("tests").glob("test_*.py") if "mark.cuda" in file.read_text())
    others.remove(_OPERATORS)
    sface = "sface" if device == "cuda" else "mobile"
    worker = (sys.executable, "-m", "benchmarks.gpu", "--device", device)
    sm90_worker = ("env", "PREFIQS_CUDA_KERNEL=sm90", *worker)

    def measure(name: str, words: str, limit: float) -> Step:
        return Step(name, words.split(), limit, "facts", worker)

    def measure_sm90(name: str, words: str, limit: float, after: str = "sm90 cases") -> Step:
        return Step(name, words.split(), limit, after, sm90_worker)

    return [
        Step("libraries", [sys.executable, "-m", "benchmarks.gpu_environment", "install", str(pack)], 300),
        Step("facts", ["facts"], 60, "libraries", worker),
        measure("cases", "cases", 15),
        measure_sm90("sm90 cases", "cases", 15, "facts"),
        Step("operator tests", _list_test_command([_OPERATORS], device, outdir / "junit.xml"), 120, "facts"),
        measure("accuracy", f"accuracy {sface} 200", 60),
        measure("ceilings", "ceilings", 30),
        measure(f"{large} {batch}", f"network {large} {batch}", 90),
        measure_sm90(f"sm90 {large} {batch}", f"ours {large} {batch}", 40),
        measure("largest layers", f"layers {large} {batch}", 30),
        measure_sm90("sm90 largest layers", f"layers {large} {batch}", 30),
        Step("memcheck", _list_memcheck_command(device), 90, "facts"),
        measure(f"{large} 1", f"network {large} 1", 40),
        measure(f"{small} {batch}", f"network {small} {batch}", 60),
        Step("other tests", _list_test_command(others, device, outdir / "junit-others.xml"), 100, "facts"),
        measure(f"compiled {large} {batch}", f"compiled {large} {batch}", 200),
    ]


def _list_test_command(files: list[str], device: str, report: Path) -> list[str]:
    processes = 12 if device == "cuda" else 0
    # One thread for each: the reference on the CPU would use all cores in every process.
    command = ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-n", str(processes)]
    return [*command, f"--junitxml={report.absolute()}", *files]


def _list_memcheck_command(device: str) -> list[str]:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    # Each tensor is an allocation of its own, with bounds that the sanitizer sees.
    command = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"]
    command += [sanitizer, "--tool", "memcheck", "--error-exitcode", "9"] if device == "cuda" else []
    cases = ["distance", "linear", "stem", "odd-channels", "several-k-blocks", "depthwise"]
    return [*command, sys.executable, "-m", "benchmarks.gpu_cases", "--device", device, *cases]


def prepare_environment(pack: Path, outdir: Path) -> dict[str, str]:
    """Return the environment variables of all steps: where the pack's weights and faces lie, and where results go."""
    given = build_variables(os.environ) | {"PREFIQS_RESULTS": str(outdir.absolute() / RESULTS)}
    if any(pack.glob("*.onnx")):
        given["PREFIQS_HOME"] = str(pack.absolute())
    if (pack / "crops").is_dir():
        given["PREFIQS_TEST_FACES"] = str((pack / "crops").absolute())
    return given


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="on_gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("outdir", type=Path, metavar="OUTDIR")
    parser.add_argument("--budget", type=float, default=420, metavar="SECONDS", help="in all (default: %(default)s)")
    parser.add_argument(
        "--pack", type=Path, default=Path(".gpu_pack"), metavar="DIR", help="of pack_gpu.sh (default: %(default)s)"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to try the script")
    return parser


def run(steps: Sequence[Step], pack: Path, outdir: Path, budget: float) -> int:
    """Run steps, and print the summary; returns the exit code. What an earlier run left is deleted first."""
    outdir.mkdir(parents=True, exist_ok=True)
    for old in (*outdir.glob("junit*.xml"), *FOLDER.glob("*.pt"), *(outdir / name for name in (RESULTS, SUMMARY, LOG))):
        old.unlink(missing_ok=True)
    outcomes = run_steps(steps, outdir, budget, prepare_environment(pack, outdir))
    print((outdir / SUMMARY).read_text(), end="")
    return 0 if all(outcome.state == "passed" for outcome in outcomes) else 1


def main() -> int:
    """Run all steps; returns the exit code."""
    os.chdir(_ROOT)
    parser = build_parser()
    arguments = parser.parse_args()
    pack = arguments.pack.absolute()
    if not pack.is_dir():
        parser.error(f"argument --pack: expected a folder, got '{arguments.pack}': benchmarks/pack_gpu.sh makes it")
    return run(list_steps(arguments.device, pack, arguments.outdir), pack, arguments.outdir, arguments.budget)


if __name__ == "__main__":
    sys.exit(main())
