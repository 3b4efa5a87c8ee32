"""Runs inputs in a process of its own, so that a crash, a hang or too much memory is known of exactly one input."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from prefiqs_ext.exceptions import PrefiqsError
from tests.fuzz.target import Target, find_targets

MAX_SECONDS = 10.0
"""What one input may take, without the time in which a busy machine did not run it."""

_MAX_MESSAGE = 1000  # characters
_POLL_S = 0.05


class Outcome(NamedTuple):
    """What became of one input.

    Attributes:
        finding: What is wrong, in one line; None if all is well.
        seconds: How long it took.
        memory: How much more memory than before the process needed at its peak, in bytes.
    """

    finding: str | None
    seconds: float
    memory: int


def compute_max_memory(data: bytes) -> int:
    """Computes how many bytes of memory an input may take."""
    return 8 * len(data) + (1 << 30)


class Child:
    """A process that runs inputs. Where it dies or is stopped, the next input gets another.

    Args:
        find: Finds the targets by their names, in that process.
        max_seconds: What one input may take.
    """

    def __init__(self, find: Callable[[], dict[str, Target]] = find_targets, max_seconds: float = MAX_SECONDS) -> None:
        self._find = find
        self._max_seconds = max_seconds
        self._folder = tempfile.TemporaryDirectory(prefix="prefiqs-fuzz-")
        self._process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._ours.close()  # which ends it
            self._process.join()
        self._folder.cleanup()

    def run(self, name: str, data: bytes) -> Outcome:
        """Gives an input to the target of this name."""
        if self._process is None:
            self._start()
        assert self._process is not None
        memory, limit = self._read_memory(), compute_max_memory(data)
        start = self._read_seconds()
        seconds, more, finding = 0.0, 0, None
        try:
            self._ours.send((name, data))
            while not self._ours.poll(_POLL_S):
                seconds, more = self._read_seconds() - start, max(more, self._read_memory() - memory)
                if seconds > self._max_seconds or more > limit:
                    self._stop()
                    break
            else:
                finding, more = self._ours.recv()
                seconds = self._read_seconds() - start
        except (EOFError, ConnectionError):
            self._process.join()
            finding = f"the process died with exit code {self._process.exitcode}"
            self._stop()
        if seconds > self._max_seconds:
            finding = f"more than {self._max_seconds:g} s"
        elif more > limit:
            finding = "too much memory"
        return Outcome(finding, seconds, more)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._find, self._folder.name), daemon=True)
        self._process.start()
        theirs.close()
        self._ours.recv()  # it has imported all it needs

    def _stop(self) -> None:
        if self._process is None:
            return
        if self._process.is_alive():
            os.kill(self._process.pid or 0, signal.SIGABRT)  # faulthandler says where it is
            self._process.join(2)
            self._process.kill()
        self._process.join()
        self._ours.close()
        self._process = None

    def _read_seconds(self) -> float:
        assert self._process is not None
        try:
            waited = int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):  # it has died, or the system does not count
            waited = 0.0
        return time.monotonic() - waited

    def _read_memory(self) -> int:
        assert self._process is not None
        try:
            return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):  # it has died
            return 0


def _serve(connection: Connection, find: Callable[[], dict[str, Target]], folder: str) -> None:
    """What the process does: it takes a target's name and an input, and says what became of it."""
    faulthandler.enable()
    targets = find()
    tempfile.tempdir = folder
    connection.send(None)
    while True:
        try:
            name, data = connection.recv()
        except EOFError:
            return
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = _read_status("VmRSS")
        finding = find_fault(targets[name], data)
        connection.send((finding, _read_status("VmHWM") - before))


def _read_status(field: str) -> int:
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def find_fault(target: Target, data: bytes) -> str | None:
    """Runs an input in this process. Returns what is wrong in one line, or None."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            target.run(data)
        except (PrefiqsError, OSError) as error:
            if fault := _find_fault_of_message(str(error)):
                return f"{fault} of {_describe(error)}"
        except Exception as error:
            return _describe(error)
    return next(
        (f"{fault} of a warning" for text in said if (fault := _find_fault_of_message(str(text.message)))), None
    )


def _find_fault_of_message(text: str) -> str | None:
    if not text or len(text) > _MAX_MESSAGE:
        return f"a message of {len(text)} characters"
    return None if text.isprintable() else "a message with characters that are not printable"


def _describe(error: Exception) -> str:
    """Names an exception by its class and the line of the package that it came through last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/prefiqs_ext/" in frame.filename] or frames
    return f"{type(error).__name__} at {Path(own[-1].filename).name} line {own[-1].lineno}: {str(error)[:200]!r}"
