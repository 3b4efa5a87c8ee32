"""Faults of the machine, by real mounts, limits and signals: `make faults`, or `python -m tests.faults.machine`.

Each case runs `prefiqs score` in a shell of its own. Whatever happens, the command ends within two minutes with its
result, or with one line that says why not; and once the fault is gone, --resume gives the bytes of an untroubled run.
Mounts are made in a namespace of the case alone (`unshare -rm`). Where the machine does not allow that, its cases are
named as left out.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from tests.faults.scenarios import make_network

_FILES = 300
_SECONDS = 120
_SCORE = "score crops --aligned --model small.onnx --preset sface --batch-size 4"


class Case(NamedTuple):
    """A shell script that runs "$PREFIQS" with some fault.

    Attributes:
        script: Its text. It writes t.csv, unless the fault hinders it.
        mounts: Whether it mounts something.
        hinders: What the line on standard error says where the fault hinders it; "" if it must not.
    """

    script: str
    mounts: bool = False
    hinders: str = ""


_CASES = {
    "/dev/shm of 64 MB": Case("mount -t tmpfs -o size=64m none /dev/shm; $PREFIQS -o t.csv --workers 2", mounts=True),
    "/dev/shm of 1 MB": Case("mount -t tmpfs -o size=1m none /dev/shm; $PREFIQS -o t.csv --workers 2", mounts=True),
    "/dev/shm that is read-only": Case(
        "mount -t tmpfs -o ro none /dev/shm; $PREFIQS -o t.csv --workers 2", mounts=True
    ),
    **{
        f"a disk of {pages} pages": Case(
            f"mkdir -p disk; mount -t tmpfs -o size={4 * pages}k none disk; cd disk; ln -s ../crops ../small.onnx .;"
            "$PREFIQS -o t.csv --workers 0; code=$?; mount -o remount,size=10m .;"
            "[ $code = 1 ] && $PREFIQS -o t.csv --workers 0 --resume && cp t.csv ..; exit $code",
            mounts=True,
            hinders="No space left on device",
        )
        for pages in range(2, 7)
    },
    "a home that is read-only": Case(
        "mkdir home; mount --bind home home; mount -o remount,bind,ro home; unset PREFIQS_HOME;"
        "HOME=$PWD/home $PREFIQS -o t.csv --workers 0",
        mounts=True,
    ),
    "no HOME": Case("unset HOME PREFIQS_HOME; $PREFIQS -o t.csv --workers 0"),
    "LC_ALL=C": Case("LC_ALL=C $PREFIQS -o t.csv --workers 2"),
    "64 descriptors": Case("ulimit -n 64; $PREFIQS -o t.csv --workers 2"),
    "24 descriptors": Case("ulimit -n 24; $PREFIQS -o t.csv --workers 8", hinders="Too many open files"),
    "SIGTERM": Case(
        "$PREFIQS -o t.csv --workers 2 & while [ ! -e t.csv.part.state ]; do sleep 0.05; done; kill -TERM $!; wait $!",
        hinders="-",
    ),
    "SIGHUP": Case(
        "$PREFIQS -o t.csv --workers 2 & while [ ! -e t.csv.part.state ]; do sleep 0.05; done; kill -HUP $!; wait $!",
        hinders="-",
    ),
    "a worker that is killed": Case(
        "$PREFIQS -o t.csv --workers 1 & while [ ! -e t.csv.part.state ]; do sleep 0.05; done;"
        "server=$(pgrep -P $! -f forkserver); kill -KILL $(pgrep -P $server); wait $!",
        hinders="was killed by signal 9",
    ),
    "two runs at a time": Case(
        "$PREFIQS -o t.csv --workers 0 & first=$!; while [ ! -e t.csv.part ]; do sleep 0.02; done;"
        "kill -STOP $first; $PREFIQS -o t.csv --workers 0 2>other; kill -CONT $first;"
        "grep -q 'written by another run' other && wait $first"
    ),
    "a reader that has gone": Case("$PREFIQS | head -n 1 >head; $PREFIQS -o t.csv --workers 0"),
}


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        make_network(here)
        (here / "crops").mkdir()
        random = np.random.default_rng(0)
        for index in range(6):
            cv2.imwrite(str(here / f"crops/{index}.png"), random.integers(0, 256, (112, 112, 3), dtype=np.uint8))
        for index in range(6, _FILES):
            os.link(here / f"crops/{index % 6}.png", here / f"crops/é{index}.png")
        whole, said = _run(Case("$PREFIQS -o whole.csv --workers 0"), here)
        assert whole == 0, said
        expected = (here / "whole.csv").read_bytes()
        mounts = subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0
        chosen = sys.argv[1:] or list(_CASES)
        failed = [name for name in chosen if not _try(name, _CASES[name], here, expected, mounts=mounts)]
    return min(len(failed), 1)


def _try(name: str, case: Case, here: Path, expected: bytes, *, mounts: bool) -> bool:
    """Runs a case and prints one line. Whether all is as it should be."""
    if case.mounts and not mounts:
        print(f"{name}: left out, since no mount is allowed here")
        return True
    for left in here.glob("t.csv*"):
        left.unlink()
    start = time.monotonic()
    code, said = _run(case, here)
    wrong = []
    lines = [line for line in said.splitlines() if not line.startswith("prefiqs: ")]
    if code == 0 and lines:
        wrong.append(f"it said {lines}")
    if code != 0:
        if case.hinders != "-" and not (case.hinders and len(lines) == 1 and case.hinders in lines[0]):
            wrong.append(f"it ended with {code} and {lines}")
        if not (here / "t.csv").exists():
            again, said = _run(Case("$PREFIQS -o t.csv --workers 0 --resume"), here)
            wrong += [f"going on ended with {again} and {said!r}"] if again else []
    if (here / "t.csv").exists() and (here / "t.csv").read_bytes() != expected:
        wrong.append("other bytes")
    print(
        f"{name}: {'; '.join(wrong) or 'as it should be'} (exit code {code}, {time.monotonic() - start:.0f} s)",
        flush=True,
    )
    return not wrong


def _run(case: Case, here: Path) -> tuple[int, str]:
    program = [sys.executable, "-c", "from prefiqs_ext.cli import main; main(prog_name='prefiqs')"]
    script = case.script.replace("$PREFIQS", shlex.join([*program, *_SCORE.split()]))
    command = ["unshare", "-rm", "sh", "-c", script] if case.mounts else ["sh", "-c", script]
    environment = {**os.environ, "PREFIQS_HOME": str(here / "cache"), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=here, env=environment, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return 124, "it does not end"
    return done.returncode, done.stderr


if __name__ == "__main__":
    sys.exit(main())
