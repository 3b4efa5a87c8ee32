"""What runs the checks and benchmarks on a GPU machine, with steps that stand in for the real ones.

And the measurements themselves, on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import gpu_environment, on_gpu
from benchmarks.gpu_steps import LOG, RESULTS, SUMMARY, Step, run_steps

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}


def python(name: str, code: str, limit: float = 60, needed: bool = False) -> Step:
    return Step(name, [sys.executable, "-c", code], limit, needed)


def states(steps: Sequence[Step], folder: Path, budget: float = 60) -> dict[str, str]:
    environment = ENVIRONMENT | {"PREFIQS_RESULTS": str(folder / RESULTS)}
    return {outcome.name: outcome.state for outcome in run_steps(steps, folder, budget, environment)}


def test_a_step_that_fails_does_not_stop_the_rest(tmp_path: Path) -> None:
    steps = [
        python("wrong", "print('one', flush=True); raise SystemExit('it broke')"),
        Step("absent", ["/no/such/tool"], 60),
        python("killed", "import os; os.kill(os.getpid(), 9)"),
        python("right", "from benchmarks.gpu_steps import record; record('copy', speed=3, text='copies: 3 TB/s')"),
    ]
    assert states(steps, tmp_path) == {"wrong": "failed", "absent": "failed", "killed": "failed", "right": "passed"}
    assert json.loads((tmp_path / RESULTS).read_text()) == {"kind": "copy", "speed": 3, "text": "copies: 3 TB/s"}
    summary = (tmp_path / SUMMARY).read_text()
    assert summary.startswith("copies: 3 TB/s\n")
    assert "exit code 1: it broke" in summary
    assert "No such file or directory: '/no/such/tool'" in summary
    assert "exit code -9:\n" in summary
    log = (tmp_path / LOG).read_text()
    assert "=== wrong: " in log
    assert "one\n" in log
    assert len(list(tmp_path.iterdir())) == 3


def test_a_step_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = (
        f"import subprocess, time; p = subprocess.Popen(['sleep', '600']); open({str(child)!r}, 'w').write(str(p.pid))"
    )
    start = time.monotonic()
    found = states([python("hangs", code + "; time.sleep(600)", limit=3), python("next", "")], tmp_path / "out")
    assert found == {"hangs": "timed out", "next": "passed"}
    assert time.monotonic() - start < 30
    stat = Path(f"/proc/{child.read_text()}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_the_budget_is_for_all_and_what_it_leaves_out_is_named(tmp_path: Path) -> None:
    steps = [python("first", "import time; time.sleep(600)", limit=100), python("second", ""), python("third", "")]
    assert states(steps, tmp_path, budget=6) == {"first": "timed out", "second": "left out", "third": "left out"}
    summary = (tmp_path / SUMMARY).read_text()
    assert "timed out first" in summary
    assert "left out  third                          0 s  no time left" in summary


def test_without_a_build_nothing_is_tried(tmp_path: Path) -> None:
    steps = [python("build", "raise SystemExit(2)", needed=True), python("tests", "")]
    assert states(steps, tmp_path) == {"build": "failed", "tests": "left out"}
    assert "build failed" in (tmp_path / SUMMARY).read_text()


def test_the_summary_is_whole_while_a_step_runs(tmp_path: Path) -> None:
    read = f"print(open({str(tmp_path / SUMMARY)!r}).read())"
    states([python("first", ""), python("second", read), python("third", "")], tmp_path)
    seen = (tmp_path / LOG).read_text()
    assert "passed    first" in seen
    assert seen.count("not begun") == 2


def test_a_step_knows_its_limit(tmp_path: Path) -> None:
    code = "import os; assert 0 < float(os.environ['PREFIQS_STEP_SECONDS']) <= 7"
    assert states([python("one", code, limit=7)], tmp_path) == {"one": "passed"}


def test_a_long_log_loses_its_middle(tmp_path: Path) -> None:
    code = "print('begin'); [print('x' * 99) for _ in range(50_000)]; print('end')"
    assert states([python("long", code)], tmp_path) == {"long": "passed"}
    log = (tmp_path / LOG).read_text()
    assert len(log) < 1_100_000
    assert "begin\n" in log
    assert log.endswith("end\n")


def run(*arguments: str, script: str = "on_gpu.sh") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable}
    command = ["sh", str(ROOT / "benchmarks" / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: check|bench, OUTDIR"),
        (["try", "out"], "invalid choice: 'try'"),
        (["check", "out", "--wheels", "/no/such"], "argument --wheels: expected a folder, got '/no/such'"),
        (["check", "out", "--weights", "/no/such"], "argument --weights: expected a file, got '/no/such'"),
        (["check", "out", "--budget", "long"], "argument --budget: invalid float value: 'long'"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]


def test_without_time_everything_is_left_out(tmp_path: Path) -> None:
    result = run("bench", str(tmp_path / "out"), "--budget", "1")
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert all(line.startswith("left out") for line in lines if line)
    assert [line[10:36].strip() for line in lines if line][:3] == ["build", "facts", "ceilings"]


def test_both_stages_build_first_and_peers_come_before_compilers() -> None:
    names = [step.name for step in on_gpu.list_bench_steps()]
    assert names[:2] == ["ceilings", "network iresnet100 256"]
    assert names.index("network sface 256") < names.index("compiled iresnet100 256")
    check = {step.name: step for step in on_gpu.list_check_steps(Path("out"))}
    assert list(check) == ["tests", "accuracy sface", "accuracy iresnet50", "memcheck", "racecheck", "sm90 tests"]
    assert check["sm90 tests"].limit == 60
    assert "tests/test_cuda_scorer.py" in check["tests"].command
    assert "tests/test_cli_score.py" not in check["tests"].command  # needs OpenCV, which may not be there


def test_weights_and_crops_reach_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sface.onnx").write_bytes(b"weights")
    Path("crops").mkdir()
    given = ["check", "out", "--weights", "sface.onnx", "--crops", "crops"]
    environment = on_gpu.prepare_environment(on_gpu.build_parser().parse_args(given))
    assert environment["PREFIQS_TEST_FACES"] == str(tmp_path / "crops")
    assert environment["PREFIQS_RESULTS"] == str(tmp_path / "out" / RESULTS)
    assert environment["PREFIQS_CUDA"] == "ON"
    home = Path(environment["PREFIQS_HOME"])
    assert (home / "face_recognition_sface_2021dec.onnx").read_bytes() == b"weights"


def test_only_missing_wheels_are_installed(tmp_path: Path) -> None:
    for name in ("pytest-9.0.0-py3-none-any.whl", "no_such_package-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    assert [wheel.name for wheel in gpu_environment.find_missing(tmp_path)] == ["no_such_package-1.0-py3-none-any.whl"]
    assert gpu_environment.find_missing(None) == []


def measure(*arguments: str, module: str = "gpu", results: Path) -> list[dict[str, object]]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--device", "cpu"]
    environment = os.environ | {"PREFIQS_RESULTS": str(results)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return [json.loads(line) for line in results.read_text().splitlines()]


@pytest.mark.slow
def test_measurements_on_the_cpu(tmp_path: Path) -> None:
    """That they run, and that what they say adds up; their times mean nothing here."""
    (facts,) = measure("facts", results=tmp_path / "facts")
    assert "no GPU" in str(facts["card"])
    peers, network, weights = measure("network", "iresnet18", "1", results=tmp_path / "network")
    assert (peers["kind"], network["kind"]) == ("peers", "network")  # the peers' before ours are begun
    assert set(network["time"]) == {"two models", "prefiqs_ext", "prefiqs_ext, engine alone"}  # type: ignore[call-overload]
    assert network["time_over_ours"]["prefiqs_ext"]["median"] == 1  # type: ignore[index]
    assert weights["half_bytes"] == pytest.approx(2 * 24e6, rel=0.01)  # type: ignore[arg-type]
    (cases,) = measure(module="gpu_cases", results=tmp_path / "cases")
    assert cases["left_out"] == []


@pytest.mark.slow
@pytest.mark.usefixtures("sface_file")
def test_accuracy_on_the_cpu(tmp_path: Path) -> None:
    found = measure("accuracy", "sface", "8", results=tmp_path / "accuracy")
    assert [each["pruned"] for each in found] == ["plain", "recalibrated"]
    assert all(each["max_error"] < 1e-5 for each in found)  # type: ignore[operator]
