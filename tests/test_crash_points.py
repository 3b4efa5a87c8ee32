"""Runs that end at any operation on files, or find the disk full there: going on gives the bytes of a whole run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCENARIOS = (
    "csv",
    "csv and embeddings",
    "jsonl and embeddings",
    "txt",
    "parquet",
    "top, csv and embeddings",
    "below, jsonl",
    "settings",
    "cache",
    "weights",
)
_LEAST = {
    "csv": 40,
    "parquet": 40,
    "csv and embeddings": 70,
    "top, csv and embeddings": 90,
    "settings": 8,
    "cache": 16,
    "weights": 8,
}

Report = dict[str, dict[str, list[str]]]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What came of all scenarios, in one process with the library that makes the faults."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, on Linux")
    here = Path(__file__).parent
    library = tmp_path_factory.mktemp("faults") / "files.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", library, here / "faults" / "files.c", "-ldl"], check=True
    )
    memory = Path("/dev/shm")  # where nothing waits for a disk
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults", folder],
            cwd=here.parent,
            env={**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=300,
        )
    found: Report = json.loads(done.stdout)
    return found


def test_every_scenario_was_tried_at_every_operation(report: Report) -> None:
    assert tuple(report) == SCENARIOS
    for name, least in _LEAST.items():
        assert len(report[name]["operations"]) >= least, name


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_run_that_ends_anywhere_goes_on_to_the_same_bytes(scenario: str, report: Report) -> None:
    assert report[scenario]["ended"] == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_full_disk_anywhere_is_one_line_and_the_run_goes_on_later(scenario: str, report: Report) -> None:
    assert report[scenario]["full"] == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_all_bytes_are_on_the_disk_before_a_name_says_so(scenario: str, report: Report) -> None:
    """A file before it is renamed, the folder after that; parts and their names before a state that counts on them."""
    operations = [tuple(line.split("\t")) for line in report[scenario]["operations"]]
    unsynced: set[str] = set()
    unnamed: set[str] = set()
    renamed = 0
    for at, (what, name, other) in enumerate(operations):
        if what == "open" and name not in unnamed and not any(name in before[1:] for before in operations[:at]):
            unnamed.add(name)
        elif what in ("write", "truncate", "pwrite"):
            unsynced.add(name)
        elif what == "fsync":
            unsynced.discard(name)
            unnamed = set() if name == "." else unnamed
        elif what == "rename":
            renamed += 1
            assert name not in unsynced, (at, name)
            if other.endswith(".state"):
                assert not unsynced, (at, unsynced)
                assert unnamed <= {name}, (at, unnamed)
            if scenario not in ("cache", "weights"):  # what is lost of these is made anew
                assert operations[at + 1][:2] == ("fsync", "."), at
    assert renamed
