"""Runs steps in processes of their own under one budget of time. A step that fails or hangs does not stop the others.

It needs only the standard library, because it runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LOG, RESULTS, SUMMARY = "log.txt", "results.jsonl", "summary.txt"
LIMIT = "PREFIQS_STEP_SECONDS"  # in the environment of a step: its limit
_LOG_BYTES = 1_000_000  # of one step: its beginning and its end
_LEAST_SECONDS = 5  # a step with less left is not begun

State = Literal["passed", "failed", "timed out", "left out"]


@dataclass(frozen=True)
class Step:
    """A command to run.

    Attributes:
        name: For the log and the summary.
        command: The program and its arguments.
        limit: Seconds that it may take.
        needed: Whether the later steps are left out if this one fails.
    """

    name: str
    command: Sequence[str]
    limit: float
    needed: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a step ended, after how many seconds, and why if it did not pass."""

    name: str
    state: State
    seconds: float
    detail: str = ""


def run_steps(steps: Sequence[Step], folder: Path, budget: float, environment: Mapping[str, str]) -> list[Outcome]:
    """Run steps in order.

    Args:
        steps: What to run.
        folder: Gets the log of all steps and, after each step, a summary of the results so far.
        budget: Seconds for all steps. A step gets its own limit, or what is left of the budget if that is less.
        environment: Environment variables of all steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    outcomes: list[Outcome] = []
    broken = ""
    for step in steps:
        left = budget - (time.monotonic() - start)
        if broken:
            outcome = Outcome(step.name, "left out", 0, f"{broken} failed")
        elif left < _LEAST_SECONDS:
            outcome = Outcome(step.name, "left out", 0, "no time left")
        else:
            outcome = _run(step, folder / LOG, min(step.limit, left), environment)
        outcomes.append(outcome)
        if step.needed and outcome.state != "passed":
            broken = step.name
        # The summary is complete at any time, with the steps to come, in case somebody ends this early.
        to_come = [Outcome(later.name, "left out", 0, "not begun") for later in steps[len(outcomes) :]]
        (folder / SUMMARY).write_text("\n".join(summarise([*outcomes, *to_come], folder)) + "\n")
    return outcomes


def _run(step: Step, log: Path, limit: float, environment: Mapping[str, str]) -> Outcome:
    print(f"--- {step.name} (at most {limit:.0f} s)", flush=True)
    start = time.monotonic()
    with log.open("ab") as stream:
        stream.write(f"\n=== {step.name}: {' '.join(step.command)}\n".encode())
        stream.flush()
        begin = stream.tell()
        try:
            process = subprocess.Popen(
                list(step.command),
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**environment, LIMIT: str(limit)},
                start_new_session=True,  # so that all that it starts can be ended with it
            )
        except OSError as error:
            stream.write(f"{error}\n".encode())
            return Outcome(step.name, "failed", 0, str(error))
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    seconds = time.monotonic() - start
    _shorten(log, begin)
    if code is None:
        return Outcome(step.name, "timed out", seconds, f"after {limit:.0f} s")
    return Outcome(
        step.name, "passed" if code == 0 else "failed", seconds, "" if code == 0 else _read_last_line(log, begin, code)
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _shorten(log: Path, begin: int) -> None:
    """Cut the middle out of the log of a step that wrote very much."""
    with log.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size - begin <= _LOG_BYTES:
            return
        stream.seek(size - _LOG_BYTES // 2)
        end = stream.read()
        stream.truncate(begin + _LOG_BYTES // 2)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\n... (cut) ...\n" + end)


def _read_last_line(log: Path, begin: int, code: int) -> str:
    with log.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(begin, size - 2000))
        lines = stream.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"exit code {code}: {last}"[:160]


def record(kind: str, **values: object) -> None:
    """Print one result and append it to the file that PREFIQS_RESULTS names."""
    line = json.dumps({"kind": kind, **values})
    print(line, flush=True)
    file = os.environ.get("PREFIQS_RESULTS")
    if file:
        with open(file, "a") as stream:
            stream.write(line + "\n")


def read_results(folder: Path) -> list[dict[str, object]]:
    """Read all results that were recorded in a folder."""
    file = folder / RESULTS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def summarise(outcomes: Sequence[Outcome], folder: Path) -> list[str]:
    """Return the lines of the summary: each result that has a `text`, then each step."""
    found = [str(result["text"]) for result in read_results(folder) if "text" in result]
    steps = [f"{one.state:<10}{one.name:<26}{one.seconds:>6.0f} s  {one.detail}".rstrip() for one in outcomes]
    return [*found, "", *steps]
