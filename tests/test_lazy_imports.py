"""What starts without torch: the package, its version, the tables of known names, the options of a pruning."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import prefiqs_ext

STUBS = {
    "prefiqs_ext": {"Scorer", "score", "score_photo", "sensitivity", "faces", "files"},
    "prefiqs_ext.models": {"load", "weights", "PRESETS"},
    "prefiqs_ext.methods": {"FROQ", "create"},
    "prefiqs_ext.evaluation": {"run_evaluation", "read_embeddings"},
    "prefiqs_ext.files": {"find_paths", "score_files", "Writer"},
}
"""The packages whose names are imported at their first use, and some of these names."""

_PROGRAM = f"""
import sys
import prefiqs_ext
import {", ".join(STUBS)}
import prefiqs_ext.exceptions
assert prefiqs_ext.__version__
assert prefiqs_ext.Pruning("2:4").sparsity == 0.5
assert prefiqs_ext.Preset.resolve("arcface") is prefiqs_ext.models.PRESETS["arcface"]
assert "sface" in prefiqs_ext.models.BUILT_IN
assert prefiqs_ext.models.weights.KNOWN["sface"].size
heavy = sorted({{"torch", "numpy", "cv2", "onnx", "PIL"}} & set(sys.modules))
assert not heavy, heavy
"""


def test_no_torch_until_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", STUBS)
def test_every_public_name_is_there(package: str) -> None:
    module = import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) >= STUBS[package]
    assert set(dir(module)) >= STUBS[package]


def test_every_stub_is_known() -> None:
    root = Path(prefiqs_ext.__file__).parent
    assert {".".join(stub.relative_to(root.parent).parent.parts) for stub in root.rglob("__init__.pyi")} == set(STUBS)


def test_a_function_stays_one_once_its_module_is_imported() -> None:
    import_module("prefiqs_ext.analysis.sensitivity")
    assert callable(prefiqs_ext.sensitivity)


def read_messages() -> Iterator[str]:
    """Yields the text constants of the package's code that are no docstrings."""
    for file in sorted(Path(prefiqs_ext.__file__).parent.rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                yield node.value


def test_every_name_in_a_message_is_there_after_import_prefiqs_ext() -> None:
    """A remedy can be typed as it stands, after no other import than that of the package."""
    found = {name for text in read_messages() for name in re.findall(r"\bprefiqs_ext(?:\.[A-Za-z]\w*)+", text)}
    assert {"prefiqs_ext.faces.decode_rgb", "prefiqs_ext.score_photo"} <= found
    program = "import prefiqs_ext\n" + "\n".join(sorted(found))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
