"""The fuzzers' frame: each way in which an input can be a finding is found, and is told of that input alone."""

import os
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from prefiqs_ext.exceptions import FileFormatError, InputError
from tests.fuzz import files
from tests.fuzz.child import Child


def fill_memory():
    _ = bytearray(b"1") * (1200 << 20)


def raise_error(error):
    raise error


CASES = {
    b"good": (lambda: None, None),
    b"refused": (lambda: raise_error(FileFormatError("expected a, got b")), None),
    b"no file": (Path("/nowhere").read_bytes, None),
    b"hangs": (lambda: time.sleep(60), "more than 5 s"),
    b"dies": (os.abort, "the process died with exit code -6"),
    b"memory": (fill_memory, "too much memory"),
    b"fault": (lambda: raise_error(ValueError("x")), "ValueError at test_fuzz.py line "),
    b"too deep": (lambda: raise_error(RecursionError()), "RecursionError at test_fuzz.py line "),
    b"says nothing": (lambda: raise_error(OSError("")), "a message of 0 characters of OSError"),
    b"says too much": (lambda: raise_error(FileFormatError("a" * 5000)), "a message of 5000 characters of FileFormat"),
    b"moves the cursor": (lambda: raise_error(FileFormatError("\x1b[2J")), "a message with characters that are not"),
}


class Cases:
    name = "cases"

    def run(self, data):
        CASES[data][0]()


def find_cases():
    return {"cases": Cases()}


@pytest.fixture(scope="module")
def child():
    with Child(find_cases, max_seconds=5) as child:
        yield child


@pytest.mark.parametrize("data", CASES)
def test_each_finding_is_told_of_its_input(child, data):
    expected = CASES[data][1]
    outcome = child.run("cases", data)
    assert (outcome.finding is None) == (expected is None)
    assert outcome.finding is None or outcome.finding.startswith(expected)
    # The input after it is run as ever, in another process if need be.
    assert child.run("cases", b"good").finding is None


def test_the_seeds_of_files_are_right(tmp_path, monkeypatch):
    """What is mutated is a file that is read: else nothing behind the first check is reached."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for target in files.TARGETS:
        for seed in target._seeds():
            with pytest.raises(InputError) if target.name == "states" else nullcontext():  # of other files
                target.run(seed)
