"""Standard streams that are closed, or that nobody reads: right files, and one line where somebody can read it."""

from __future__ import annotations

import csv
import io
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.scenarios import make_crops, make_network

_CLOSED = "cannot write standard output (it is closed); name a file, or open it"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("closed")
    make_network(folder)
    make_crops(folder)
    return folder


def _run(here: Path, arguments: str, redirections: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from prefiqs_ext.cli import main; main(prog_name='prefiqs')", *arguments.split()]
    line = f"{shlex.join(command)} {redirections}"
    return subprocess.run(["sh", "-c", line], cwd=here, capture_output=True, text=True, check=False, timeout=120)


def _score(output: str = "") -> str:
    return f"score crops --aligned --model small.onnx --preset sface --workers 0 {output}"


def test_results_have_nowhere_to_go(here: Path) -> None:
    done = _run(here, _score(), ">&-")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: {_CLOSED}\n")
    done = _run(here, "weights list", ">&-")
    assert (done.returncode, done.stderr) == (1, f"Error: {_CLOSED}\n")
    done = _run(here, "weights list", ">&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_no_message_gets_among_the_results(here: Path) -> None:
    closed = _run(here, _score(), "2>&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    assert [row["status"] for row in csv.DictReader(io.StringIO(closed.stdout))] == ["ok", "unreadable"]
    files = _run(here, _score("-o t.csv"), "<&- >&- 2>&-")
    assert (files.returncode, files.stdout, files.stderr) == (0, "", "")
    assert (here / "t.csv").read_text() == closed.stdout


@pytest.mark.parametrize("arguments", [_score(), "weights list"])
def test_a_reader_that_has_gone_ends_it_quietly(arguments: str, here: Path) -> None:
    done = _run(here, arguments, "2>errors | true")
    assert done.stdout == ""
    errors = (here / "errors").read_text().splitlines()
    assert [line for line in errors if "text.jpg: unreadable" not in line] == []
