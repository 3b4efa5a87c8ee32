"""Fuzzes one target by coverage: `python -m tests.fuzz.tools.guided TARGET [options of libFuzzer]`.

Atheris mutates the target's corpus, and inputs that the target makes, and keeps what reaches new lines of the package.
It is not in the environment: `.venv/bin/python -m pip install atheris==3.0.0`, the last with a wheel for Python 3.11.
The first finding ends it, and lies in build/fuzz.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["prefiqs_ext"]):
    from tests.fuzz.child import MAX_SECONDS, find_fault
    from tests.fuzz.target import FOLDER, find_targets

    _TARGETS = find_targets()


def main() -> None:
    target = _TARGETS[sys.argv[1]]
    found = Path("build/fuzz") / target.name
    grown = found / "grown"
    grown.mkdir(parents=True, exist_ok=True)
    kept = [str(folder) for folder in (grown, FOLDER / "corpus" / target.name) if folder.is_dir()]

    def run(data: bytes) -> None:
        if fault := find_fault(target, data):
            raise AssertionError(fault)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        if seed % 4 == 0:
            return target.make(random.Random(seed))[:most]
        return bytes(atheris.Mutate(data, most))

    bounds = [f"-timeout={MAX_SECONDS:g}", f"-artifact_prefix={found}/", "-max_len=200000", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *bounds, *sys.argv[2:], *kept], run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
