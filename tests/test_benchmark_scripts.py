"""The benchmark's arithmetic on invented clocks, and one small run from the command line to the JSON file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # last: the installed package comes before the source tree

from benchmarks import conv, cycles, peaks, score  # noqa: E402
from benchmarks.fidelity import Fidelity, make_batches, measure_fidelity  # noqa: E402
from benchmarks.memory import BATCH_FILE, measure_peak_bytes  # noqa: E402
from benchmarks.timing import Spread, compare_rounds, describe_machine, read_cpuinfo  # noqa: E402
from prefiqs_ext import _C  # noqa: E402
from prefiqs_ext.exceptions import InputError  # noqa: E402
from prefiqs_ext.models import PRESETS  # noqa: E402
from prefiqs_ext.utils.timing import time_interleaved  # noqa: E402
from tests.networks import ZOO_SIZE, calibrated  # noqa: E402


def test_spread_by_hand() -> None:
    spread = Spread.of([9.0, 1.0, 3.0, 5.0, 2.0])
    assert spread == Spread(median=3.0, low_quartile=2.0, high_quartile=5.0, least=1.0, most=9.0)
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0, 4.0, 4.0)


def test_cycles_by_hand() -> None:
    layer = conv.Layer(256, (14, 14), 256, (3, 3), (1, 1), (1, 1), 1, True, 2.0 * 196 * 256 * 9 * 256)
    found = cycles.predict_cycles(layer, 256, cycles.SM90)
    # Six tiles. Each has 36 steps of 16 products of 64 cycles, 8 warps with 159 instructions, and 48 KiB; and finishes
    # 128 times by 220 instructions.
    steps = 6 * 36
    assert found.products == steps * 16 * 64
    assert found.instructions == steps * 8 * 159 / 4
    assert found.feeding == pytest.approx(steps * 48 * 1024 * 132 / 5120)
    assert found.epilogue == 6 * 128 * 220 / 4
    assert found.total == found.feeding + found.epilogue
    assert cycles.choose_kernels(layer) == {"sm80": cycles.WIDE, "sm90": cycles.SM90}


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


def test_fidelity_by_hand() -> None:
    exact = np.array([0.1, 0.2, 0.3, 0.4]), np.array([[1.0, 0.0]] * 4)
    # Ranks 1, 3, 2, 4: Spearman is 1 - 6 * 2 / (4 * 15). The last embedding's cosine is .6; lengths do not count.
    found = np.array([0.1, 0.3, 0.25, 0.4], np.float32), np.array([[1, 0], [2, 0], [1, 0], [0.6, 0.8]], np.float32)
    assert measure_fidelity(found, exact) == Fidelity(*(pytest.approx(v, abs=1e-7) for v in (0.1, 0.8, 0.9, 0.6)))


def test_batches_of_faces_are_whole_and_drawn_evenly(tmp_path: Path) -> None:
    for person in range(9):
        (tmp_path / str(person)).mkdir()
        Image.new("RGB", (112, 112), (person, 7, 8)).save(tmp_path / str(person) / "face.png")
    first, second = make_batches(PRESETS["arcface"], batch=2, images=3, faces=tmp_path)
    assert first.shape == (2, 3, 112, 112)
    assert [list(image[:, 5, 5]) for image in (*first, *second)] == [[person, 7, 8] for person in (0, 2, 4, 6)]
    assert len(make_batches(PRESETS["arcface"], batch=4, images=100, faces=tmp_path)) == 2  # 9 faces fill two
    with pytest.raises(InputError, match=r"expected 10 faces or more of 112 x 112 .*got an array of \(9, 3"):
        make_batches(PRESETS["arcface"], batch=10, images=10, faces=tmp_path)
    Image.new("RGB", (96, 112)).save(tmp_path / "0" / "narrow.png")
    with pytest.raises(InputError, match=r"one size .*got \[\(112, 96\), \(112, 112\)\]"):
        make_batches(PRESETS["arcface"], batch=2, images=10, faces=tmp_path)


@pytest.mark.skipif(not read_cpuinfo("flags"), reason="the peaks are those of x86 on Linux")
def test_peaks_of_what_this_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = read_cpuinfo("flags").split()
    functions = {name: peaks.compile_peak(instruction) for name, instruction in peaks.INSTRUCTIONS.items()}
    if "amx_bf16" not in flags:  # Linux refuses, so no tile instruction is met
        assert functions["tiles"](0.01) == functions["tiles, cache"](0.01) == 0
    if "avx2" in flags:
        assert 1e9 < peaks.Peaks().measure(1, 0.01)["fma 256"] < 1e12  # of one core
    monkeypatch.setattr(peaks, "read_cpuinfo", lambda key: "avx sse2")
    assert peaks.Peaks().measure(1, 0.01) == {}
    assert {line.split(": ")[1].strip() for line in conv.format_peaks([{}])} == {"not available here"}


@pytest.mark.parametrize(
    ("isa", "known", "expected"),
    [
        ("avx2", ["fma 256"], ["fma 256", "fma 256", None, None, "fma 256"]),
        # Another set than the widest is in use; torch takes the widest all the same.
        ("avx2", ["fma 256", "fma 512", "dot"], ["fma 256", "fma 512", None, "dot", "dot"]),
        ("amx", ["fma 256", "fma 512", "dot", "tiles"], ["fma 512", "fma 512", "tiles", "dot", "tiles"]),
        ("scalar", [], [None] * 5),
    ],
)
def test_instruction_that_an_algorithm_multiplies_by(
    isa: str, known: list[str], expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_C, "cpu_isa", lambda: isa)
    rates = dict.fromkeys(known, 1.0)
    single = [conv.name_instruction(name, torch.float32, rates) for name in ("gemm", conv.TORCH)]
    half = [conv.name_instruction(name, torch.bfloat16, rates) for name in ("amx", "dot", conv.TORCH)]
    assert single + half == expected


@pytest.mark.parametrize("kernel", [(3, 3), (0, 0)])
def test_layers_are_timed_in_bfloat16(kernel: tuple[int, int]) -> None:
    layer = conv.Layer(32, (9, 9) if kernel[0] else (1, 1), 48, kernel, (1, 1), (kernel[0] // 2,) * 2, 1, True, 1.0)
    calls = conv.build_contenders(layer, 1, torch.bfloat16)
    assert {"gemm", conv.TORCH} <= calls.keys() <= {*conv.ALGORITHMS, conv.TORCH}
    mine, theirs = calls["gemm"](), calls[conv.TORCH]()
    assert isinstance(mine, torch.Tensor)
    assert mine.dtype == theirs[0].dtype == torch.bfloat16  # type: ignore[index]
    # Both round the same float32 sums, added in another order: one step of bfloat16, 2^-8 of the value, and what
    # float32 loses where the sum cancels.
    torch.testing.assert_close(mine[:1], theirs[0], rtol=2**-7, atol=1e-4)  # type: ignore[index]


def benchmark(*arguments: str, name: str = "score") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_small_run(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    settings = ["--model", "iresnet18", "--batch", "2", "--rounds", "2", "--threads", "1"]
    run = benchmark(*settings, "--images", "5", "--peers", "eager", "--json", str(file))
    assert run.returncode == 0, run.stderr
    record = json.loads(file.read_text())
    images = "6 pictures made by chance" if "PREFIQS_TEST_FACES" not in os.environ else "6 faces"
    assert record["settings"] == {
        "model": "iresnet18",
        "dtype": "float32",
        "batch": 2,
        "rounds": 2,
        "threads": 1,
        "images": images,
    }
    ours, eager = record["results"]
    assert [ours["name"], eager["name"]] == ["prefiqs_ext", "eager"]
    for result in (ours, eager):
        assert f"\n{result['name']} " in run.stdout
        assert len(result["seconds"]) == 2
        assert result["precision"] == "float32"
        assert result["fidelity"]["max_error"] < 1e-5  # float32 against float64, D near 1
        assert result["fidelity"]["least_cosine"] == pytest.approx(1, abs=1e-6)
        assert result["peak_bytes"] > result["weight_bytes"]
    assert ours["speedup"]["median"] == 1
    # Two float32 networks of 11.2 M convolution and 12.8 M linear weights, and 1 % of norms and slopes.
    assert eager["weight_bytes"] == pytest.approx(2 * 24e6 * 4, rel=0.01)
    assert ours["weight_bytes"] < 0.55 * eager["weight_bytes"]


def test_contenders_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "measure_peak_bytes", lambda *_: 0)  # takes a process each
    preset = replace(PRESETS["arcface"], size=(ZOO_SIZE, ZOO_SIZE))
    batches = make_batches(preset, batch=3, images=12, faces=None)
    chosen, threads = ["channels_last", "ours_float32"], torch.get_num_threads()
    found = score.compare(
        calibrated("residual"), preset, batches, dtype="bfloat16", rounds=1, threads=threads, chosen=chosen
    )
    assert [result.precision for result in found] == ["bfloat16", "bfloat16", "float32"]
    for result, line in zip(found, score.format_table(found, 3)[1:], strict=True):
        assert line.split()[:2] == [result.name, result.precision]
        single = result.precision == "float32"
        # 2^-24 and 2^-8 of each value, in ten layers whose errors add up by chance; neither is free of rounding.
        assert (1e-9 if single else 1e-4) < result.fidelity.max_error < (1e-5 if single else 3e-2)
        assert result.fidelity.least_cosine > (1 - 1e-6 if single else 0.999)


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
    for layer in layers:
        chosen, *_, torch_layers = layer["times"]
        assert torch_layers == "two torch layers"
        assert all(1e9 < rate < 1e13 for rate in layer["peaks"].values())  # of one core
        instruction, share = layer["shares"][chosen]
        rate = 2 * layer["operations"] / layer["times"][chosen]["median"]
        assert share == pytest.approx(rate / layer["peaks"][instruction])
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
    results = ["distance", "embedding"]
    nodes = [onnx.helper.make_node("Identity", ["batch"], [name]) for name in results]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [1, 3, 2, 2]) for name in ("batch", *results)
    ]
    graph = onnx.helper.make_graph(nodes, "identity", values[:1], values[1:])
    # Older runtimes refuse the newest of ONNX's versions.
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "pair.onnx")
    np.save(tmp_path / BATCH_FILE, np.zeros((1, 3, 2, 2), dtype=np.uint8))
    mine = np.ones(100_000_000)  # 800 MB, which a child's ru_maxrss would start from
    assert 10e6 < measure_peak_bytes(tmp_path, "onnxruntime", 1, "float32") < 400e6
    assert mine.nbytes == 800e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "eager,tensorflow"], "got 'tensorflow'"),
        (["--dtype", "bfloat16", "--peers", "onnxruntime"], "in bfloat16, got 'onnxruntime'"),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
        (["--model", "iresnet18", "--faces", "/no/such/folder"], "argument --faces: cannot read /no/such/folder"),
        (["--batch", "0"], "invalid"),
        (["--model", "resnet50"], "invalid choice: 'resnet50'"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["score", *arguments])
    with pytest.raises(SystemExit) as caught:
        score.main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
