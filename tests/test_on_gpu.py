"""What runs the checks and benchmarks on a GPU machine: with steps that stand in for the real ones, and as a whole.

As a whole it runs small networks on the CPU's kernels, which stand in for a GPU's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_environment, gpu_steps, on_gpu
from benchmarks.conv import Layer
from benchmarks.gpu_steps import LOG, RESULTS, SUMMARY, Step, run_steps
from prefiqs_ext import _C
from tests.emulated import Kernels, library_of_this_tree
from tests.test_emulated_conv import conv_inputs

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}


# Answers after what each line asks for: to count the lines, to sleep, to crash, to fail.
WORKER = """
import os, sys, time
print("ready", flush=True)
for count, line in enumerate(sys.stdin):
    limit, what = line.split()
    if what == "sleep": time.sleep(600)
    if what == "crash": os.kill(os.getpid(), 11)
    if what == "fail": sys.exit("it broke")
    print(what, count, file=sys.stderr, flush=True)
    print("passed", flush=True)
"""


def python(name: str, code: str, limit: float = 60, after: str = "") -> Step:
    return Step(name, [sys.executable, "-c", code], limit, after)


def ask(name: str, what: str, limit: float = 60) -> Step:
    return Step(name, [what], limit, worker=(sys.executable, "-c", WORKER))


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


def test_a_budget_that_ends_between_two_steps(tmp_path: Path) -> None:
    steps = [python("first", "import time; time.sleep(1.5)"), ask("second", "count"), python("third", "")]
    assert states(steps, tmp_path, budget=6) == {"first": "passed", "second": "left out", "third": "left out"}
    assert "=== second" not in (tmp_path / LOG).read_text()


def test_what_needs_a_step_that_failed_is_left_out_and_named_last(tmp_path: Path) -> None:
    steps = [python("build", "raise SystemExit(2)"), python("tests", "", after="build"), python("alone", "")]
    assert states(steps, tmp_path) == {"build": "failed", "tests": "left out", "alone": "passed"}
    assert (tmp_path / SUMMARY).read_text().splitlines()[-1].startswith("left out  tests")
    assert "build did not pass" in (tmp_path / SUMMARY).read_text()


def test_a_worker_does_step_after_step_until_one_fails(tmp_path: Path) -> None:
    steps = [ask("one", "count"), ask("two", "count"), ask("fails", "fail"), ask("three", "count")]
    steps += [ask("crashes", "crash"), ask("sleeps", "sleep", limit=1), python("own", ""), ask("four", "count")]
    assert states(steps, tmp_path) == {
        "one": "passed",
        "two": "passed",
        "fails": "failed",
        "three": "passed",
        "crashes": "failed",
        "sleeps": "timed out",
        "own": "passed",
        "four": "passed",
    }
    lines = [line for line in (tmp_path / LOG).read_text().splitlines() if line.startswith("count ")]
    assert lines == ["count 0", "count 1", "count 0", "count 0"]  # a new worker counts anew
    summary = (tmp_path / SUMMARY).read_text()
    assert "exit code 1: it broke" in summary
    assert "exit code -11" in summary


def test_a_worker_that_does_not_start_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps, "_START_SECONDS", 1)
    hangs = (sys.executable, "-c", "import time; time.sleep(600)")
    breaks = (sys.executable, "-c", "raise SystemExit('no torch here')")
    steps = [Step("hangs", ["one"], 60, worker=hangs), Step("breaks", ["one"], 60, worker=breaks), python("next", "")]
    assert states(steps, tmp_path) == {"hangs": "timed out", "breaks": "failed", "next": "passed"}
    assert "exit code 1: no torch here" in (tmp_path / SUMMARY).read_text()


def test_the_start_of_a_worker_is_not_of_its_first_step(tmp_path: Path) -> None:
    slow = (sys.executable, "-c", "import time; time.sleep(1.5)\n" + WORKER)
    assert states([Step("one", ["count"], 1, worker=slow)], tmp_path) == {"one": "passed"}


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
        ([], "the following arguments are required: OUTDIR"),
        (["out", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["out", "--pack", "/no/such"], "expected a folder, got '/no/such': benchmarks/pack_gpu.sh makes it"),
        (["out", "--budget", "long"], "argument --budget: invalid float value: 'long'"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]


def test_without_time_everything_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = run(str(tmp_path / "out"), "--pack", str(tmp_path), "--budget", "1")
    assert result.returncode == 1
    lines = [line for line in result.stdout.splitlines() if line]
    assert all(line.startswith("left out") for line in lines)
    steps = on_gpu.list_steps("cuda", tmp_path, tmp_path)
    assert [line[10:36].strip() for line in lines] == [step.name for step in steps]


def test_the_order_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    steps = {step.name: step for step in on_gpu.list_steps("cuda", Path("pack"), Path("out"))}
    assert list(steps) == [
        "libraries",
        "facts",
        "cases",
        "sm90 cases",
        "operator tests",
        "accuracy",
        "ceilings",
        "iresnet100 256",
        "sm90 iresnet100 256",
        "largest layers",
        "sm90 largest layers",
        "memcheck",
        "iresnet100 1",
        "iresnet50 256",
        "other tests",
        "compiled iresnet100 256",
    ]
    assert steps["cases"].limit == steps["sm90 cases"].limit == 15
    assert "tests/test_cuda_scorer.py" in steps["other tests"].command
    assert "tests/test_cli_score.py" not in steps["other tests"].command  # needs OpenCV, which may not be there
    workers = {step.worker for name, step in steps.items() if step.worker}
    assert len(workers) == 2  # torch is imported once for each kernel
    for name, step in steps.items():
        assert ("PREFIQS_CUDA_KERNEL=sm90" in step.worker) == name.startswith("sm90")
        assert step.after == {"libraries": "", "facts": "libraries", "sm90 cases": "facts"}.get(
            name, "sm90 cases" if name.startswith("sm90") else "facts"
        )


def test_weights_and_faces_of_the_pack_reach_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pack/crops").mkdir(parents=True)
    Path("pack/face_recognition_sface_2021dec.onnx").write_bytes(b"weights")
    environment = on_gpu.prepare_environment(Path("pack"), Path("out"))
    assert environment["PREFIQS_TEST_FACES"] == str(tmp_path / "pack/crops")
    assert environment["PREFIQS_HOME"] == str(tmp_path / "pack")
    assert environment["PREFIQS_RESULTS"] == str(tmp_path / "out" / RESULTS)
    assert environment["PYTHONPATH"].startswith(str(tmp_path / "build/gpu/site"))


def test_only_missing_wheels_are_installed(tmp_path: Path) -> None:
    for name in ("pytest-9.0.0-py3-none-any.whl", "no_such_package-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    assert [wheel.name for wheel in gpu_environment.find_missing(tmp_path)] == ["no_such_package-1.0-py3-none-any.whl"]
    assert gpu_environment.find_missing(tmp_path / "none") == []


def make_native(folder: Path, files: dict[str, bytes], *, digest: str) -> Path:
    """What pack_gpu.sh makes of libraries."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "prefiqs_ext-0.1.0.whl", "w") as archive:
        for name, content in (files | {"__init__.py": b""}).items():
            archive.writestr(f"prefiqs_ext/{name}", content)
    (folder / "sources.sha256").write_text(digest)
    return folder


def read_libraries() -> dict[str, bytes]:
    """Those of this installation, which may lie beside the sources or elsewhere."""
    return {file.name: file.read_bytes() for file in Path(_C.__file__).parent.glob("*.so")}


@pytest.fixture
def libraries_removed() -> Iterator[None]:
    """The script copies libraries beside the sources; those that were not there before go again."""
    before = set((ROOT / "prefiqs_ext").glob("*.so"))
    yield
    for file in set((ROOT / "prefiqs_ext").glob("*.so")) - before:
        file.unlink()


@pytest.mark.parametrize("lacks", ["nothing", "other sources", "own library", "does not load"])
def test_only_what_the_pack_lacks_is_built(lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("csrc", "cmake", "prefiqs_ext"):
        Path(place).mkdir()
    Path("csrc/a.cpp").write_text("int a;")
    own = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    files = {"_C.cpython-30.so" if lacks == "own library" else own: b"glue", "libprefiqs_ops.so": b"operators"}
    digest = "0" if lacks == "other sources" else gpu_environment.digest_sources(*gpu_environment.ENGINE)
    make_native(Path("pack/native"), files, digest=digest)
    built: list[Path | None] = []

    def build(*_: object, libraries: Path | None = None, isolated: bool) -> Path:
        built.append(libraries)
        folder = make_native(tmp_path / "built", {own: b"new", "libprefiqs_ops.so": b"operators"}, digest="")
        return folder / "prefiqs_ext-0.1.0.whl"

    monkeypatch.setattr(gpu_environment, "build_wheel", build)
    monkeypatch.setattr(gpu_environment, "_loads", lambda: lacks != "does not load")
    gpu_environment.install(Path("pack"))
    assert Path("prefiqs_ext", own).read_bytes() == (b"glue" if lacks == "nothing" else b"new")
    if lacks == "own library":
        assert built == [Path("build/gpu/libraries")]  # which are there, so nvcc does not run
    else:
        assert built == ([] if lacks == "nothing" else [None])


@pytest.mark.slow
@pytest.mark.usefixtures("libraries_removed")
def test_the_whole_script_on_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps of a GPU, on small networks; one crashes, one takes too long, and the rest goes on."""
    monkeypatch.chdir(ROOT)
    pack, out = tmp_path / "pack", tmp_path / "out"
    make_native(pack / "native", read_libraries(), digest=gpu_environment.digest_sources(*gpu_environment.ENGINE))
    steps = on_gpu.list_steps("cpu", pack, out)
    steps[-1] = replace(steps[-1], limit=2)  # torch.compile takes a minute
    steps.insert(-3, Step("crash", ["no-such"], 60, "facts", steps[1].worker))
    assert on_gpu.run(steps, pack, out, 300) == 1
    summary = (out / SUMMARY).read_text()
    assert [line.split()[0] for line in summary.splitlines()[-17:]] == [
        *["passed"] * 13,
        "failed",
        *["passed"] * 2,
        "timed",
    ]
    assert "KeyError: 'no-such'" in summary

    results = [json.loads(line) for line in (out / RESULTS).read_text().splitlines()]
    expected = ["facts", "cases", "cases", "accuracy", "accuracy", "ceilings", "peers", "network", "weights"]
    expected += ["kernels", "network", *["layer"] * 10, "cases"] + ["peers", "network", "weights"] * 2
    assert [result["kind"] for result in results] == expected
    found = {kind: [result for result in results if result["kind"] == kind] for kind in expected}
    assert "no GPU" in found["facts"][0]["card"]
    assert [case["left_out"] for case in found["cases"]] == [[], [], []]
    assert [case["kernel"] for case in found["cases"]] == ["sm80", "sm90", "sm80"]
    assert "1x1-stride torch.bfloat16" in found["cases"][1]["done"]
    first = found["network"][0]
    assert set(first["time"]) == {"two models", "prefiqs_ext", "prefiqs_ext, engine alone"}
    assert first["time_over_ours"]["prefiqs_ext"]["median"] == 1
    assert found["kernels"][0]["max_error"] == 0  # the stand-in has one kernel
    layers = found["layer"]
    assert [layer["layer"] for layer in layers[:5]] == [layer["layer"] for layer in layers[5:]]


@pytest.mark.slow
@pytest.mark.usefixtures("libraries_removed")
def test_the_whole_script_with_little_time(tmp_path: Path) -> None:
    native = make_native(
        tmp_path / "pack/native", read_libraries(), digest=gpu_environment.digest_sources(*gpu_environment.ENGINE)
    )
    result = run(str(tmp_path / "out"), "--pack", str(native.parent), "--device", "cpu", "--budget", "7")
    assert result.returncode == 1
    found = [line.split()[0] for line in result.stdout.rpartition("\n\n")[2].splitlines()]
    assert len(found) == 16
    assert found[-8:] == ["left"] * 8
    assert found == sorted(found, key=["passed", "timed", "left"].index)


@pytest.mark.slow
@pytest.mark.usefixtures("sface_file")
def test_accuracy_on_the_cpu(tmp_path: Path) -> None:
    results = tmp_path / "accuracy"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu"]
    environment = os.environ | {"PREFIQS_RESULTS": str(results)}
    subprocess.run(command, input=b"60 accuracy sface 8\n", cwd=ROOT, env=environment, check=True, capture_output=True)
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert [each["pruned"] for each in found] == ["plain", "recalibrated"]
    assert all(each["max_error"] < 1e-5 for each in found)


def test_the_layers_measured_by_both_kernels_are_those_that_both_take() -> None:
    """By the engine's own plan: fits_sm90 in csrc/cuda/dual_conv_sm90.h."""
    kernels = Kernels(library_of_this_tree())
    taken = 0
    # The sums of IResNet's layers on 7 x 7 are cut; 72 is a multiple of 8 but not of 16, and 60 of neither.
    for channels, filters, side, size, stride in product((60, 72, 512), (64, 512), (7, 14, 28), (1, 3, 5), (1, 2)):
        settings = (size, size), (stride, stride), (size // 2, size // 2)
        shape = (channels, filters, *settings, (1, 1), 1, (side, side))
        layer = Layer(channels, (side, side), filters, *settings, 1, True, 0.0)
        plan = kernels.plan(**conv_inputs("layer", "paired", shapes={"layer": shape}))
        assert gpu.fits_sm90(layer) == plan.sm90, shape
        taken += plan.sm90
    assert 20 < taken < 80
