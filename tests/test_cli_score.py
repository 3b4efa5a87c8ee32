"""`prefiqs score`: what it prints where, its exit codes, and runs that are killed."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
import torch
from onnx import helper

import prefiqs_ext.scorer
from prefiqs_ext import Scorer
from prefiqs_ext.cli import main
from prefiqs_ext.faces.detect import MIN_FACE
from tests.calibrations import make_calibration
from tests.command import Command, Result
from tests.onnx_files import floats, make_model

_COLUMNS = "path,face,status,score,quality,distance,embedding_norm,x,y,w,h,detector_score"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fast one; blank images have no direction in it."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", strides=[8, 8]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "g"], ["y"], name="gemm"),
    ]
    constants = {"w": floats(8, 3, 8, 8), "g": floats(8 * 14 * 14, 16, seed=1)}
    file = tmp_path_factory.mktemp("network") / "small.onnx"
    file.write_bytes(make_model(nodes, ("n", 3, 112, 112), constants).SerializeToString())
    return str(file)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `crops` of eight, one of them blank and one no image."""
    monkeypatch.chdir(tmp_path)
    Path("crops").mkdir()
    random = np.random.default_rng(3)
    for index in range(6):
        cv2.imwrite(f"crops/{index}.png", random.integers(0, 40 * (index + 1), (112, 112, 3), dtype=np.uint8))
    cv2.imwrite("crops/blank.png", np.zeros((112, 112, 3), dtype=np.uint8))
    Path("crops/text.jpg").write_text("text")
    return tmp_path


def _arguments(network: str, *more: str) -> list[str]:
    return ["score", "crops", "--aligned", "--model", network, "--preset", "sface", "--workers", "0", *more]


def _records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_to_stdout_and_the_rest_to_stderr(command: Command, network: str) -> None:
    result = command(*_arguments(network))
    assert result.code == 0
    assert result.out.splitlines()[0] == _COLUMNS
    records = _records(result.out)
    names = [*(f"{index}.png" for index in range(6)), "blank.png", "text.jpg"]
    assert [record["path"] for record in records] == [f"crops/{name}" for name in names]
    pixels = np.stack([cv2.imread(f"crops/{index}.png")[..., ::-1] for index in range(6)])
    output = Scorer(network, preset="sface")(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    for name, expected in (("score", output.quality), ("quality", output.quality), ("distance", output.distance)):
        assert [np.float32(record[name]) for record in records[:6]] == list(expected.numpy())
    assert [record["status"] for record in records] == ["ok"] * 6 + ["not_assessable", "unreadable"]
    lines = result.err.splitlines()
    assert lines[0].startswith("prefiqs: crops/blank.png: not_assessable: its embedding has no direction")
    assert lines[1].startswith("prefiqs: crops/text.jpg: unreadable: expected JPEG, PNG")
    assert lines[2:] == ["prefiqs: 8 images: 6 ok, 1 unreadable, 1 not assessable"]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.txt"])
def test_output_files(name: str, command: Command, network: str) -> None:
    result = command(*_arguments(network, "--output", name, "--embeddings", "e.npy", "--batch-size", "3"))
    assert (result.code, result.out) == (0, "")
    said = f"prefiqs: 8 images: 6 ok, 1 unreadable, 1 not assessable; written to {name} and e.npy"
    assert result.err.splitlines()[-1] == said
    rows = 6 if name == "t.txt" else 8
    assert len(Path(name).read_text().splitlines()) == rows + (name == "t.csv")
    assert np.load("e.npy").shape == (rows, 16)
    assert len(Path("e.paths").read_text().splitlines()) == rows
    assert sorted(os.listdir()) == ["crops", "e.npy", "e.paths", name]
    if name == "t.jsonl":
        assert json.loads(Path(name).read_text().splitlines()[6])["quality"] is None


def test_picks(command: Command, network: str) -> None:
    whole = [record for record in _records(command(*_arguments(network)).out) if record["quality"]]
    ranked = sorted(whole, key=lambda record: -float(record["quality"]))
    assert _records(command(*_arguments(network, "--top", "3")).out) == ranked[:3]
    middle = ranked[3]["quality"]
    below = [record for record in whole if float(record["quality"]) < float(middle)]
    assert _records(command(*_arguments(network, "--below", middle)).out) == below
    assert command(*_arguments(network, "--top", "1", "--output", "best.txt")).code == 0
    assert Path("best.txt").read_text() == f"{ranked[0]['path']} {ranked[0]['quality']}\n"


def test_options_reach_the_scorer(command: Command, network: str) -> None:
    more = ["--sparsity", "0.7", "--scope", "global", "--layers", "conv", "--layers", "gemm", "--threads", "1"]
    threads = torch.get_num_threads()
    try:
        result = command(*_arguments(network, *more, "--device", "cpu", "--dtype", "float32"))
    finally:
        torch.set_num_threads(threads)
    assert result.code == 0
    assert _records(result.out)[0]["quality"] != _records(command(*_arguments(network)).out)[0]["quality"]


def _error(result: Result, message: str, code: int = 1) -> None:
    assert result.code == code
    assert message in result.err
    assert result.err.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in result.err


def test_devices(command: Command, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "there is none"
    monkeypatch.setattr("prefiqs_ext.device.why_no_cuda", lambda *_: why)
    assert command(*_arguments(network, "--device", "auto")).out == command(*_arguments(network)).out
    _error(command(*_arguments(network, "--device", "cuda")), "cannot compute on 'cuda': there is none", 2)
    made: list[dict[str, object]] = []
    monkeypatch.setattr("prefiqs_ext.device.why_no_cuda", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    class RecordingScorer(Scorer):
        def __init__(self, *_: object, **given: object) -> None:
            made.append(given)
            super().__init__(network, preset="sface", on_bad="nan")

    monkeypatch.setattr(prefiqs_ext.scorer, "Scorer", RecordingScorer)
    assert command(*_arguments(network, "--device", "auto", "--dtype", "bfloat16")).code == 0
    assert (made[0]["device"], made[0]["dtype"]) == ("cuda", torch.bfloat16)
    assert command(*_arguments(network, "--device", "cuda", "--dtype", "auto")).code == 0
    assert (made[1]["device"], made[1]["dtype"]) == ("cuda", torch.float16)


def test_dtypes(command: Command, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is what it names on standard error; the numbers are those of that type."""
    of = {dtype: command(*_arguments(network, "--dtype", dtype)) for dtype in ("float32", "bfloat16")}
    assert of["float32"] == command(*_arguments(network))
    distances = [[float(row["distance"]) for row in _records(result.out)[:6]] for result in of.values()]
    assert distances[0] != distances[1]
    assert np.allclose(*distances, atol=0.02)  # two layers: some roundings of up to 2**-8
    for native, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("prefiqs_ext.device.multiplies_bfloat16", lambda native=native: native)
        auto = command(*_arguments(network, "--dtype", "auto"))
        said = f"prefiqs: --dtype auto: computing in {dtype} on cpu\n"
        assert (auto.code, auto.out, auto.err) == (0, of[dtype].out, said + of[dtype].err)


def test_settings_say_the_type_to_compute_in(command: Command, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(network, preset="sface", dtype=torch.bfloat16)
    scorer.settings.save("s.json")
    arguments = ["score", "crops", "--aligned", "--workers", "0", "--settings", "s.json"]
    assert command(*arguments).out == command(*_arguments(network, "--dtype", "bfloat16")).out
    # On the command line it goes before that of the settings.
    monkeypatch.setattr("prefiqs_ext.device.multiplies_bfloat16", lambda: False)
    assert command(*arguments, "--dtype", "auto").out == command(*_arguments(network)).out
    scorer.settings.with_calibration(make_calibration()).save("s.json")
    _error(command(*arguments, "--dtype", "auto"), "expected to compute in bfloat16 on cpu")


def test_a_distance_that_rounding_drowns(command: Command, network: str) -> None:
    small = _arguments(network, "--sparsity", "0.01")
    assert command(*small).code == 0
    message = "expected a pruning whose D stands out from rounding in torch.bfloat16"
    _error(command(*small, "--dtype", "bfloat16"), message)


@pytest.mark.parametrize(
    ("more", "message", "code"),
    [
        (["--resume"], "--resume needs --output", 2),
        (["--top", "1", "--below", "0.5"], "two different choices", 2),
        (["--top", "0"], "--top", 2),
        (["--min-face", "40"], "--min-face is for photos: leave it out, or --aligned", 2),
        (["--output", "t.xls"], "expected an output that ends in .csv, .jsonl, .txt or .parquet, got t.xls", 2),
        (["--output", "none/t.csv"], "cannot write none/t.csv.part (No such file or directory); name another place", 1),
        (["--embeddings", "e.bin"], "expected a .npy file for embeddings, got e.bin", 2),
        (["--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda'", 2),
        (["--dtype", "float16"], "expected dtype torch.float32", 2),
        (["--sparsity", "1"], "sparsity must be a number in [0, 1)", 2),
        (["--layers", "none*"], "none*", 1),
    ],
)
def test_wrong_options(more: list[str], message: str, code: int, command: Command, network: str) -> None:
    _error(command(*_arguments(network, *more)), message, code)
    assert os.listdir() == ["crops"]


def test_output_that_cannot_be_written_is_found_before_scoring(
    command: Command, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefiqs_ext.scorer, "Scorer", None)  # calling it would be another error
    Path("file").touch()
    _error(
        command(*_arguments(network, "--output", "file/t.csv")),
        "cannot write file/t.csv.part (Not a directory); name another place",
    )


def test_nothing_to_score(command: Command, network: str) -> None:
    Path("empty").mkdir()
    arguments = _arguments(network)
    arguments[1] = "empty"
    assert command(*arguments) == (1, "", "Error: expected images, found none in empty\n")
    for i in range(12):
        Path(f"empty/{i}.heic").touch()
    said = "12 files passed over: .heic 12; convert photos to JPEG or PNG first"
    assert command(*arguments) == (1, "", f"Error: expected images, found none in empty; {said}\n")
    Path("list.txt").write_text("none.png")
    arguments[1] = "@list.txt"
    result = command(*arguments)
    _error(result, "nothing could be scored: 1 unreadable")
    assert result.out == f"{_COLUMNS}\nnone.png,,unreadable,,,,,,,,,\n"
    arguments[1] = "@none.txt"
    _error(command(*arguments), "cannot read none.txt")
    _error(command("score", "crops", "--model", network), "expected a preset: the file", code=2)


def test_lists_and_names_that_are_not_utf8(command: Command, network: str) -> None:
    name = os.fsdecode(b"crops/caf\xe9.png")
    Path(name).write_bytes(Path("crops/0.png").read_bytes())
    Path("list.txt").write_bytes(b"crops/caf\xe9.png\r\n\r\ncrops/0.png\r\ncrops/0.png")
    arguments = _arguments(network, "-o", "t.txt")
    arguments[1] = "@list.txt"
    result = command(*arguments)
    assert result == (0, "", "prefiqs: 3 images: 3 ok; written to t.txt\n")
    paths, qualities = zip(*(line.rsplit(b" ", 1) for line in Path("t.txt").read_bytes().splitlines()), strict=True)
    assert paths == (b"crops/caf\xe9.png", b"crops/0.png", b"crops/0.png")  # a list is taken line by line
    assert len(set(qualities)) == 1


def _many(count: int) -> None:
    """Hard links to the six crops: many files that take no space."""
    Path("many").mkdir()
    for index in range(count):
        os.link(f"crops/{index % 6}.png", f"many/{index:05}.png")


def _start(
    network: str, *more: str, preexec: Callable[[], None] | None = None, **options: object
) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", "from prefiqs_ext.cli import main; main()"]
    arguments += ["score", "many", "--aligned", "--model", network, "--preset", "sface", *more]
    everything = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(arguments, preexec_fn=preexec, start_new_session=True, **everything)  # type: ignore[call-overload, no-any-return]


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def _workers_of(session: int) -> dict[int, int]:
    """Processes of a session that still run, and their parents."""
    alive = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            alive[int(folder.name)] = int(fields[1])
    return alive


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t.csv", "t.txt"])
def test_killed_and_resumed_gives_the_same_bytes(name: str, network: str) -> None:
    _many(3000)
    more = ["--workers", "1", "--batch-size", "4"]
    whole = _start(network, "-o", f"whole-{name}", "--embeddings", "whole.npy", *more)
    assert whole.communicate()[1] == f"prefiqs: 3,000 images: 3,000 ok; written to whole-{name} and whole.npy\n"
    for end in (signal.SIGKILL, signal.SIGINT, None):
        resume = ["--resume"] if end is not signal.SIGKILL else []
        half = _start(network, "-o", name, "--embeddings", "half.npy", *more, *resume)
        state = Path(f"{name}.part.state")
        before = state.stat().st_mtime_ns if state.exists() else 0
        if end is not None:
            _wait_for(lambda: state.exists() and state.stat().st_mtime_ns != before)  # noqa: B023, ends with the loop
            os.killpg(half.pid, end) if end == signal.SIGINT else half.kill()
        _, errors = half.communicate()
        if end is not None:
            assert half.returncode == (-9 if end == signal.SIGKILL else 130), errors
            # After kill -9 Python's tracker of semaphores says that it cleans up.
            assert errors == "Interrupted.\n" or (end == signal.SIGKILL and "Traceback" not in errors)
            assert 0 < json.loads(state.read_text())["done"]["paths"] < 3000
            assert not Path(name).exists()
        _wait_for(lambda: not _workers_of(half.pid))  # noqa: B023
    assert half.returncode == 0, errors
    assert Path(name).read_bytes() == Path(f"whole-{name}").read_bytes()
    for suffix in ("npy", "paths"):
        assert Path(f"half.{suffix}").read_bytes() == Path(f"whole.{suffix}").read_bytes()
    assert not [file for file in os.listdir() if "part" in file]


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_which_goes_on_later(network: str) -> None:
    _many(2000)
    run = _start(network, "-o", "t.csv", "--workers", "2", "--batch-size", "4")
    _wait_for(Path("t.csv.part.state").exists)
    readers = [process for process, parent in _workers_of(run.pid).items() if parent not in (run.pid, os.getpid())]
    os.kill(readers[0], signal.SIGKILL)
    out, errors = run.communicate(timeout=60)
    assert (run.returncode, out) == (1, "")
    assert errors.startswith("Error: a process that reads files was killed by signal 9 (Killed), and none of its files")
    assert errors.count("\n") == 1
    done = json.loads(Path("t.csv.part.state").read_text())["done"]["paths"]
    assert 0 < done < 2000
    again = _start(network, "-o", "t.csv", "--workers", "0", "--resume")
    assert again.communicate() == ("", "prefiqs: 2,000 images: 2,000 ok; written to t.csv\n")
    assert len(Path("t.csv").read_text().splitlines()) == 2001


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(network: str) -> None:
    _many(600)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    arguments = ["-o", "t.csv", "--workers", "0"]
    full = _start(network, *arguments, preexec=small_files)
    remedy = "make room there, or name another place"
    assert full.communicate() == ("", f"Error: cannot write t.csv.part (File too large); {remedy}\n")
    assert full.returncode == 1
    assert not Path("t.csv").exists()
    again = _start(network, *arguments, "--resume")
    assert again.communicate() == ("", "prefiqs: 600 images: 600 ok; written to t.csv\n")
    assert len(Path("t.csv").read_text().splitlines()) == 601
    with open("/dev/full", "w") as device:
        to_stdout = _start(network, "--workers", "0", stdout=device)
        error = f"Error: cannot write standard output (No space left on device); {remedy}\n"
        assert to_stdout.communicate()[1] == error
    assert to_stdout.returncode == 1


@pytest.mark.slow
def test_a_reader_that_stops_reading(network: str) -> None:
    _many(3000)
    run = _start(network, "--workers", "0")
    assert run.stdout is not None
    assert run.stdout.readline() == _COLUMNS + "\n"
    run.stdout.close()
    assert run.stderr is not None
    assert run.stderr.read() == ""
    assert run.wait() == 1


@pytest.mark.parametrize("name", ["score", "report", "calibrate"])
def test_every_command_that_scores_files_has_the_same_options(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    expected = {"--model", "--preset", "--size", "--output-name", "--pruning", "--sparsity", "--scope", "--layers"}
    assert options >= expected | {"--device", "--dtype", "--workers", "--batch-size", "--threads", "--output", "-o"}


def test_the_default_of_min_face_is_what_the_help_says(command: Command) -> None:
    assert f"[default: {MIN_FACE}]" in " ".join(command("score", "--help").out.split())
