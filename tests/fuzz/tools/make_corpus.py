"""Writes the corpus: `python -m tests.fuzz.tools.make_corpus`. What the fuzzers find is added to it by hand.

The seeds are files that once took hours, gigabytes or a traceback, and one good file of each kind.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz import files
from tests.fuzz.target import FOLDER, find_targets

sys.path.insert(0, str(FOLDER.parent))

import test_checkpoint_costs as checkpoints
import test_onnx_hostile as onnx_files


def list_seeds() -> Iterator[tuple[str, str, bytes]]:
    """Gives the name of a target, that of a seed, and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        for what, (pickled, _) in checkpoints.HOSTILE.items():
            if len(pickled) < 50_000:
                for form in ("zip", "old"):
                    checkpoints.write(form, b"\x80\x04" + pickled + b".", Path(folder) / form)
                    yield f"torch_{form}", what, (Path(folder) / form).read_bytes()
    yield "onnx", "pads", onnx_files.write_pads(8000).SerializeToString()
    yield "onnx", "a map of any size", onnx_files.write_expand(100_000).SerializeToString()
    yield "onnx", "a shared name", onnx_files.write_nodes(3).SerializeToString().replace(b"v0", b"\x1b\n")
    targets = find_targets()
    for name in ("torch_zip", "torch_old", "safetensors", "onnx", *(target.name for target in files.TARGETS)):
        for index in range(100):
            data = targets[name].make(random.Random(f"seed {index}"))
            try:
                targets[name].run(data)
            except Exception:  # only a file that is read without one is wanted
                continue
            yield name, "good", data
            break
    yield "dlib", "cut", next(d for i in range(99) if 99 < len(d := targets["dlib"].make(random.Random(f"{i}"))) < 9000)


if __name__ == "__main__":
    for target, seed, data in list_seeds():
        path = FOLDER / "corpus" / target / re.sub(r"\W+", "_", seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
