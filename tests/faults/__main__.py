"""Lets each scenario end at each of its operations on files in turn, or makes the disk full there, and goes on then.

It runs with the library of files.c preloaded: `LD_PRELOAD=files.so python -m tests.faults FOLDER [SCENARIO ...]`. A run
that ends is no process that is killed, which would take long, but one whose operations have no effect from there on: it
leaves the same files. The result is a JSON object on standard output.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import prefiqs_ext.files.writer
from tests.faults.scenarios import SCENARIOS, Scenario

_END, _FULL = 1, 2

_faults = ctypes.CDLL(None)
_faults.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
_faults.faults_log.restype = ctypes.c_char_p


def main() -> None:
    here = Path(sys.argv[1])
    chosen = sys.argv[2:] or list(SCENARIOS)
    os.environ["PREFIQS_HOME"] = str(here / "home")
    # After each file, so that there are many states to go on from.
    prefiqs_ext.files.writer._SAVE_S = prefiqs_ext.files.writer._SAVE_SHARE = 0
    (here / "inputs").mkdir()
    report = {name: _try_all(SCENARIOS[name](here / "inputs"), here) for name in chosen}
    print(json.dumps(report))


def _try_all(scenario: Scenario, here: Path) -> dict[str, object]:
    folder, said = here / "whole", here / "said"
    _make(scenario, folder)
    code, operations = _run(scenario.run, folder, said)
    expected = scenario.read(folder)
    assert code == 0, said.read_text()
    wrong: dict[str, list[str]] = {"ended": [], "full": []}
    for name, attempt in (("ended", _end), ("full", _fill_disk)):
        for at, operation in enumerate(operations, 1):
            found = attempt(scenario, here / name, said, at, expected)
            wrong[name] += [f"{at} {operation}: {line}" for line in found]
    return {"operations": operations, **wrong}


def _end(scenario: Scenario, folder: Path, said: Path, at: int, expected: dict[str, bytes]) -> list[str]:
    """Ends a run at an operation, and goes on. Returns what is wrong."""
    before = _make(scenario, folder)
    with suppress(OSError):
        _run(scenario.run, folder, said, at, _END)
    found = scenario.read(folder)
    wrong = [
        f"{name} is neither old nor new" for name in found if found[name] not in (before.get(name), expected[name])
    ]
    if scenario.resume is not scenario.run:
        # The user first gives the same command again, without --resume. It does all, or it refuses and does no harm.
        again = folder.with_name("again")
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(folder, again)
        code, _ = _run(scenario.run, again, said)
        if code == 0:
            wrong += [] if scenario.read(again) == expected else ["the same command again gives other bytes"]
        else:
            wrong += _go_on(scenario, again, said, expected)
    return wrong + _go_on(scenario, folder, said, expected)


def _fill_disk(scenario: Scenario, folder: Path, said: Path, at: int, expected: dict[str, bytes]) -> list[str]:
    """Makes the disk full at an operation, and goes on when there is room again. Returns what is wrong."""
    before = _make(scenario, folder)
    code, _ = _run(scenario.run, folder, said, at, _FULL)
    found = scenario.read(folder)
    wrong = [
        f"{name} is neither old nor new" for name in found if found[name] not in (before.get(name), expected[name])
    ]
    if code == 0:  # it no longer needed room, or can do without
        return wrong if scenario.may_ignore or found == expected else [*wrong, "it ends as if all was well"]
    lines = [line for line in said.read_text().splitlines() if not line.startswith("prefiqs: ")]
    if code != 1 or len(lines) != 1 or not lines[0].startswith("Error: ") or "No space left on device" not in lines[0]:
        wrong.append(f"exit code {code} and {lines}")
    return wrong + _go_on(scenario, folder, said, expected)


def _go_on(scenario: Scenario, folder: Path, said: Path, expected: dict[str, bytes]) -> list[str]:
    code, _ = _run(scenario.resume, folder, said)
    if code == 0 and scenario.read(folder) == expected:
        return []
    return [f"going on ends with {code}, {said.read_text()!r} and {sorted(os.listdir(folder))}"]


def _make(scenario: Scenario, folder: Path) -> dict[str, bytes]:
    """Makes the folder, and returns the results that are there before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    scenario.prepare(folder)
    return scenario.read(folder)


def _run(run: Callable[[], int], folder: Path, said: Path, at: int = 0, fault: int = 0) -> tuple[int, list[str]]:
    """Runs in this folder; returns the exit code and the operations. What it says goes to a file."""
    outputs = [os.dup(1), os.dup(2)]
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.chdir(folder)
    try:
        _faults.faults_arm(os.fsencode(folder), at, fault)
        code = run()
        operations = _faults.faults_log().decode().splitlines()
    finally:
        _faults.faults_arm(b"", 0, 0)
        sys.stdout.flush()
        sys.stderr.flush()
        os.close(file)
        for descriptor, output in enumerate(outputs, 1):
            os.dup2(output, descriptor)
            os.close(output)
    return code, operations


main()
