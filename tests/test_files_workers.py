"""Processes that read ahead: results in order, and an end, however they die."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from onnx import helper

from prefiqs_ext.exceptions import WorkerError
from prefiqs_ext.files.workers import read_ahead
from tests.onnx_files import floats, make_model


class Reader:
    """Names come back in upper case; what is in a name happens."""

    def __init__(self, marks: Path | None = None) -> None:
        self.marks = marks

    def __call__(self, name: str) -> Any:
        kind = name.split("-")[0]
        if kind == "once":  # as the out-of-memory killer may do it
            assert self.marks is not None
            if not (self.marks / name).exists():
                (self.marks / name).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if kind in ("kill", "bus", "term"):
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "bus": signal.SIGBUS, "term": signal.SIGTERM}[kind])
        if kind == "exit":
            os._exit(7)
        if kind == "raise":
            raise TypeError("this is no name")
        if kind == "large":
            return np.full(3_000_000, len(name), dtype=np.uint8)
        return name.upper()


def _run(names: list[str], reader: Any = None, workers: int = 2, ahead: int = 4) -> list[Any]:
    return list(read_ahead(names, reader or Reader(), lambda name: f"lost {name}", workers=workers, ahead=ahead))


@pytest.mark.parametrize(("count", "workers", "ahead"), [(0, 1, 1), (1, 3, 1), (203, 3, 1), (203, 2, 1000)])
def test_in_order(count: int, workers: int, ahead: int) -> None:
    names = [f"a{index}" for index in range(count)]
    assert _run(names, workers=workers, ahead=ahead) == [name.upper() for name in names]


def test_names_and_results_longer_than_a_pipe_holds() -> None:
    names = ["large-a", "x" * 3_000_000, "large-bc", "b"]
    first, second, third, fourth = _run(names)
    assert (len(first), first.max(), len(third), third.min()) == (3_000_000, 7, 3_000_000, 8)
    assert (second, fourth) == ("X" * 3_000_000, "B")


def test_what_ends_its_process_is_lost_and_the_rest_is_not() -> None:
    names = ["a", "kill-1", "b", "c", "d", "e", "bus-2", "exit-3", "f", "g", "h", "i", "j", "term-4"]
    lost = ("kill-1", "bus-2", "exit-3", "term-4")
    assert _run(names) == [f"lost {name}" if name in lost else name.upper() for name in names]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "c", "d", "e", "once", "f"], r"was killed by signal 9 \(Killed\), and none of its files does that"),
        (["kill-1", "kill-2", "kill-3", "kill-4", "a"], r"was killed by signal 9 \(Killed\), and so did one for each"),
    ],
)
def test_a_death_without_a_culprit_ends_the_run(names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=message) as caught:
        _run(names, Reader(tmp_path))
    assert "--workers" in str(caught.value)
    assert "--resume" in str(caught.value)
    assert "\n" not in str(caught.value)


class Stillborn(Reader):
    """Cannot be had in another process."""

    def __setstate__(self, state: object) -> None:
        os._exit(3)


def test_processes_that_do_not_start_end_the_run() -> None:
    with pytest.raises(
        OSError, match=r"ended with exit code 3 before it had one; guard .* `if __name__ == .*memory may be short"
    ):
        _run(["a"], Stillborn())


def test_too_few_descriptors_end_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    """And the server of processes prints no traceback of its own."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 6, limits[1]))
    try:
        with pytest.raises(WorkerError, match=r"cannot start a process that reads files \(.*Too many open files"):
            _run(["a"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert capfd.readouterr().err == ""


def test_threads_that_do_not_start_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where `ulimit -u` has been reached."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(WorkerError, match=r"cannot start a thread .* \(can't start new thread\): out of memory\? Take"):
        _run(["a"])


def test_an_error_travels_with_its_trace() -> None:
    with pytest.raises(RuntimeError, match="reading files failed: TypeError: this is no name") as caught:
        _run(["a", "raise"])
    assert "in __call__" in str(caught.value.__cause__)


def _alive() -> int:
    """Processes whose parent is the server of processes."""
    from multiprocessing import forkserver

    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    tasks = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    return len(tasks)


def test_no_process_stays() -> None:
    results = read_ahead(map(str, range(10**9)), Reader(), str, workers=3, ahead=100)
    assert next(results) == "0"
    assert _alive() >= 3  # and those of other tests, until they have ended
    results.close()
    end = time.monotonic() + 20
    while _alive():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_no_need_of_shared_memory(tmp_path: Path) -> None:
    """Where nothing can be written in /dev/shm, let alone the 4 MB that these crops have."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", strides=[16, 16]),
        helper.make_node("Flatten", ["c"], ["y"], name="flatten"),
    ]
    model = make_model(nodes, ("n", 3, 112, 112), {"w": floats(2, 3, 16, 16)})
    (tmp_path / "small.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "crops").mkdir()
    cv2.imwrite(str(tmp_path / "crops" / "000.png"), np.random.default_rng(0).integers(0, 256, (112, 112, 3)))
    for index in range(1, 120):
        os.link(tmp_path / "crops" / "000.png", tmp_path / "crops" / f"{index:03}.png")
    inside = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"', "sh"]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mounts of one's own: {error}")
    command = [*inside, sys.executable, "-c", "from prefiqs_ext.cli import main; main()", "score", "crops", "--aligned"]
    command += ["--model", "small.onnx", "--preset", "sface", "--workers", "2", "--batch-size", "100", "-o", "t.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    summary = "prefiqs: 120 images: 120 ok; written to t.csv\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "", summary)
    rows = (tmp_path / "t.csv").read_text().splitlines()
    assert len(rows) == 121
    assert len({row.split(",", 1)[1] for row in rows[1:]}) == 1
