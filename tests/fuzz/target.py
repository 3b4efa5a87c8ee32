"""What a fuzzer of one reader or operator is, and where its corpus lies."""

from __future__ import annotations

import importlib
import pkgutil
import random
from pathlib import Path
from typing import Protocol

FOLDER = Path(__file__).parent


class Target(Protocol):
    """Something that takes input from outside, and inputs that are made for it.

    Attributes:
        name: Its name on the command line, and that of its folder in tests/fuzz/corpus.
    """

    name: str

    def make(self, random: random.Random) -> bytes:
        """Makes one input, which depends on `random` alone. An input that is no file is given as JSON text."""

    def run(self, data: bytes) -> None:
        """Gives the input to the package, as a user would.

        A user may see a PrefiqsError, or an OSError with a message. Any other exception is a finding.
        """


def find_targets() -> dict[str, Target]:
    """Finds the targets of all files in this folder, by their names in order."""
    found: dict[str, Target] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules([str(FOLDER)]) if info.name != "__main__"):
        for target in getattr(importlib.import_module(f"tests.fuzz.{module}"), "TARGETS", ()):
            assert target.name not in found, f"two targets have the name {target.name}"
            found[target.name] = target
    return dict(sorted(found.items()))


def read_corpus(name: str) -> list[bytes]:
    """Reads the inputs that are kept for a target: its seeds, and all that once was a finding."""
    folder = FOLDER / "corpus" / name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []
