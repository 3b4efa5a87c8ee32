"""Fuzzes the package: `python -m tests.fuzz [TARGET ...] --seconds N`.

First each target's corpus is run, then inputs that the targets make, until the seconds are over, in equal shares.
Input number i of a target depends on the seed, the target and i alone. An input that is a finding is saved in
build/fuzz; once its cause is mended, it belongs into tests/fuzz/corpus. The exit code is 1 if there is any.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.child import Child
from tests.fuzz.target import Target, find_targets, read_corpus

_FINDINGS = Path("build/fuzz")
_KEPT = 20  # kinds of findings of one target, of which an input is saved


def main() -> int:
    targets = find_targets()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", metavar="TARGET", nargs="*", help=f"one or more of {', '.join(targets)}; else all")
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together, beside the corpus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", action="store_true", help="run the corpus only")
    parser.add_argument("--input", type=Path, help="run this file only, in this process, with its traceback")
    asked = parser.parse_args()
    if unknown := set(asked.targets) - targets.keys():
        parser.error(f"expected targets of {', '.join(targets)}, got {', '.join(sorted(unknown))}")
    chosen = [targets[name] for name in asked.targets or targets]
    if asked.input:
        for target in chosen:
            target.run(asked.input.read_bytes())
        return 0
    seconds, findings = 0.0 if asked.replay else asked.seconds, 0
    with Child() as child:
        for target in chosen:
            findings += _fuzz(child, target, asked.seed, seconds / len(chosen))
    return min(findings, 1)


def _fuzz(child: Child, target: Target, seed: int, seconds: float) -> int:
    """Runs a target's corpus and then made inputs for some time. Prints one line, returns the number of findings."""
    corpus, kinds = read_corpus(target.name), set[str]()
    inputs, findings, slowest, peak, end = 0, 0, 0.0, 0, 0.0
    for data in itertools.chain(corpus, _make_inputs(target, seed)):
        if inputs == len(corpus):
            end = time.monotonic() + seconds
        if inputs >= len(corpus) and time.monotonic() >= end:
            break
        outcome = child.run(target.name, data)
        inputs, slowest, peak = inputs + 1, max(slowest, outcome.seconds), max(peak, outcome.memory)
        if outcome.finding is not None:
            findings += 1
            if (kind := outcome.finding.partition(":")[0]) not in kinds and len(kinds) < _KEPT:
                kinds.add(kind)
                print(f"{target.name}: {outcome.finding}: {_save(target.name, data)}", flush=True)
    what = f"{inputs:,} inputs ({len(corpus)} of the corpus), {findings:,} findings"
    print(f"{target.name}: {what}, slowest {slowest:.2f} s, peak memory {peak / 1e6:.0f} MB", flush=True)
    return findings


def _make_inputs(target: Target, seed: int) -> Iterator[bytes]:
    for index in itertools.count():
        yield target.make(random.Random(f"{seed} {target.name} {index}"))


def _save(name: str, data: bytes) -> Path:
    path = _FINDINGS / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main())
