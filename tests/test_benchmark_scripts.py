"""The benchmark's arithmetic on invented clocks, and one small run from the command line to the JSON file."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # last: the installed package comes before the source tree

from benchmarks.memory import BATCH_FILE, measure_peak_bytes  # noqa: E402
from benchmarks.timing import Spread, compare_rounds, describe_machine  # noqa: E402
from prefiqs_ext.utils.timing import time_interleaved  # noqa: E402


def test_spread_by_hand() -> None:
    spread = Spread.of([9.0, 1.0, 3.0, 5.0, 2.0])
    assert spread == Spread(median=3.0, low_quartile=2.0, high_quartile=5.0, least=1.0, most=9.0)
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0, 4.0, 4.0)


def test_ratios_are_taken_round_by_round() -> None:
    # Each round is twice as slow as the one before for both: the ratio does not see it.
    assert compare_rounds([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]) == Spread.of([0.5, 0.5, 0.5])


def test_rounds_rotate_and_time_each_contender_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    calls: list[str] = []
    takes = {"a": 1.0, "b": 2.0, "c": 4.0}

    def contender(name: str) -> None:
        calls.append(name)
        clock[0] += takes[name]

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + 100 * seconds))
    seconds = time_interleaved({name: (lambda name=name: contender(name)) for name in takes}, rounds=4, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert seconds == {"a": [1.0] * 4, "b": [2.0] * 4, "c": [4.0] * 4}  # neither warm-up nor sleep is timed


def test_machine_names_what_ran() -> None:
    facts = describe_machine()
    assert facts["torch"]
    assert facts["date"].endswith("+00:00")
    assert "cores" in facts["processor"]


def benchmark(*arguments: str, name: str = "score") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_small_run(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    settings = ["--model", "iresnet18", "--batch", "2", "--rounds", "2", "--threads", "1"]
    run = benchmark(*settings, "--peers", "eager", "--json", str(file))
    assert run.returncode == 0, run.stderr
    record = json.loads(file.read_text())
    assert record["settings"] == {"model": "iresnet18", "batch": 2, "rounds": 2, "threads": 1}
    ours, eager = record["results"]
    assert [ours["name"], eager["name"]] == ["prefiqs_ext", "eager"]
    for result in (ours, eager):
        assert f"\n{result['name']} " in run.stdout
        assert len(result["seconds"]) == 2
        assert result["max_error"] < 1e-5  # float32 against float64, D near 1
        assert result["peak_bytes"] > result["weight_bytes"]
    assert ours["speedup"]["median"] == 1
    # Two float32 networks of 11.2 M convolution and 12.8 M linear weights, and 1 % of norms and slopes.
    assert eager["weight_bytes"] == pytest.approx(2 * 24e6 * 4, rel=0.01)
    assert ours["weight_bytes"] < 0.55 * eager["weight_bytes"]


@pytest.mark.slow
def test_layers_of_a_small_run(tmp_path: Path) -> None:
    file = tmp_path / "layers.json"
    settings = ["--model", "iresnet18", "--batch", "1", "--rounds", "1", "--threads", "1"]
    run = benchmark(*settings, "--json", str(file), name="conv")
    assert run.returncode == 0, run.stderr
    record = json.loads(file.read_text())
    layers = record["layers"]
    # The stem, two a block in eight blocks, one more where a stage narrows the image, and the linear layer.
    assert sum(layer["count"] for layer in layers) == 1 + 16 + 4 + 1
    assert 1e9 < min(record["peak"]) <= max(record["peak"]) < 1e12  # of one core
    for layer in layers:
        chosen, *_, torch_layers = layer["times"]
        assert torch_layers == "two torch layers"
        # At stride 2 only where tiles of 4 x 4 fill the result: 56 x 56 and 28 x 28.
        filled = layer["stride"] == [1, 1] or layer["size"][0] >= 56
        winograd = layer["kernel"] == [3, 3] and layer["channels"] > 3 and filled
        assert (chosen == "winograd") == winograd
    # 2.6 G multiply-adds of IResNet-18's convolutions at 112 x 112, and 12.8 M of its linear layer.
    operations = sum(layer["count"] * layer["operations"] for layer in layers)
    assert operations == pytest.approx(2 * 2.6e9, rel=0.05)
    assert "all layers: ours" in run.stdout


def test_peak_memory_is_that_of_the_contender_alone(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node("Identity", ["batch"], ["distance"])
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [1, 3, 2, 2]) for name in ("batch", "distance")
    ]
    graph = onnx.helper.make_graph([node], "identity", values[:1], values[1:])
    # Older runtimes refuse the newest of ONNX's versions.
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "pair.onnx")
    np.save(tmp_path / BATCH_FILE, np.zeros((1, 3, 2, 2), dtype=np.uint8))
    mine = np.ones(100_000_000)  # 800 MB, which a child's ru_maxrss would start from
    assert 10e6 < measure_peak_bytes(tmp_path, "onnxruntime", 1) < 400e6
    assert mine.nbytes == 800e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "eager,tensorflow"], "got 'tensorflow'"),
        (["--batch", "0"], "invalid"),
        (["--model", "resnet50"], "invalid choice: 'resnet50'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    run = benchmark(*arguments)
    assert run.returncode == 2
    assert message in run.stderr.splitlines()[-1]
