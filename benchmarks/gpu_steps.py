"""Runs steps one after the other under one budget of time. A step that fails or hangs does not stop the others.

Most steps are done by a worker, a process that does step after step: it imports torch and converts each network once.
If a step crashes or hangs, its worker ends with it, and the next step gets a fresh one. This file needs only the
standard library, because it runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import select
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
_START_SECONDS = 60  # for a worker's imports, which do not count as its first step's

State = Literal["passed", "failed", "timed out", "left out"]


@dataclass(frozen=True)
class Step:
    """What to do.

    Attributes:
        name: For the log and the summary.
        command: The program and its arguments; or, with a worker, the words that it is asked.
        limit: Seconds that it may take.
        after: The step without which this one is left out; "" if there is none.
        worker: The command of the worker that does it; empty if the step is a process of its own.
    """

    name: str
    command: Sequence[str]
    limit: float
    after: str = ""
    worker: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a step ended, after how many seconds, and why if it did not pass."""

    name: str
    state: State
    seconds: float
    detail: str = ""


class _Worker:
    """A process that reads a step's limit and words as one line, and answers with a line when the step has passed.

    It says with a first line that it is ready. A step that fails ends it.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=dict(environment),
                start_new_session=True,
            )
        self.ready = False

    def do(self, words: Sequence[str], limit: float, left: float) -> int | None:
        """Do a step; returns 0, the exit code of the worker if the step ended it, or None after its time.

        Args:
            words: Of the step.
            limit: Seconds that the step may take.
            left: Seconds that the step and the start of the worker may take together.
        """
        end = time.monotonic() + left
        if not self.ready:
            code = self._await_answer(min(_START_SECONDS, left))
            if code != 0:
                return code
            self.ready = True
            limit = min(limit, max(0.0, end - time.monotonic()))
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{limit} {' '.join(words)}\n".encode())
            self.process.stdin.flush()
        return self._await_answer(limit)

    def _await_answer(self, limit: float) -> int | None:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], limit)[0]:
            return None
        return 0 if os.read(self.process.stdout.fileno(), 4096) else self.process.wait()


class _Workers:
    """The workers that run, by their commands."""

    def __init__(self, log: Path, environment: Mapping[str, str]) -> None:
        self._log, self._environment = log, environment
        self._running: dict[tuple[str, ...], _Worker] = {}

    def do(self, step: Step, limit: float, left: float) -> int | None:
        """Do a step by its worker, and end the worker if the step has not passed."""
        worker = self._running.get(step.worker)
        if worker is None:
            worker = self._running[step.worker] = _Worker(step.worker, self._log, self._environment)
        code = worker.do(step.command, limit, left)
        if code != 0:
            _end(self._running.pop(step.worker).process)
        return code

    def end(self) -> None:
        """End all of them."""
        for worker in self._running.values():
            _end(worker.process)


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
    workers = _Workers(folder / LOG, environment)
    try:
        for step in steps:
            left = budget - (time.monotonic() - start)
            passed = {outcome.name for outcome in outcomes if outcome.state == "passed"}
            if step.after and step.after not in passed:
                outcome = Outcome(step.name, "left out", 0, f"{step.after} did not pass")
            elif left < _LEAST_SECONDS:
                outcome = Outcome(step.name, "left out", 0, "no time left")
            else:
                outcome = _run(step, folder / LOG, left, environment, workers)
            outcomes.append(outcome)
            # The summary is complete at any time, with the steps to come, in case somebody ends this early.
            to_come = [Outcome(later.name, "left out", 0, "not begun") for later in steps[len(outcomes) :]]
            (folder / SUMMARY).write_text("\n".join(summarise([*outcomes, *to_come], folder)) + "\n")
    finally:
        workers.end()
    return outcomes


def _run(step: Step, log: Path, left: float, environment: Mapping[str, str], workers: _Workers) -> Outcome:
    limit = min(step.limit, left)
    print(f"--- {step.name} (at most {limit:.0f} s)", flush=True)
    start = time.monotonic()
    with log.open("ab") as stream:
        stream.write(f"\n=== {step.name}: {' '.join(step.command)}\n".encode())
        begin = stream.tell()
    try:
        own = not step.worker
        code = _run_process(step.command, log, limit, environment) if own else workers.do(step, limit, left)
    except OSError as error:
        with log.open("ab") as stream:
            stream.write(f"{error}\n".encode())
        return Outcome(step.name, "failed", 0, str(error))
    seconds = time.monotonic() - start
    _shorten(log, begin)
    if code is None:
        return Outcome(step.name, "timed out", seconds, f"after {seconds:.0f} s")
    return Outcome(
        step.name, "passed" if code == 0 else "failed", seconds, "" if code == 0 else _read_last_line(log, begin, code)
    )


def _run_process(command: Sequence[str], log: Path, limit: float, environment: Mapping[str, str]) -> int | None:
    with log.open("ab") as stream:
        process = subprocess.Popen(
            list(command),
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**environment, LIMIT: str(limit)},
            start_new_session=True,  # so that all that it starts can be ended with it
        )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


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
    """Return the lines of the summary: each result that has a `text`, then each step, those left out last."""
    found = [str(result["text"]) for result in read_results(folder) if "text" in result]
    ordered = sorted(outcomes, key=lambda one: one.state == "left out")
    steps = [f"{one.state:<10}{one.name:<26}{one.seconds:>6.0f} s  {one.detail}".rstrip() for one in ordered]
    return [*found, "", *steps]
