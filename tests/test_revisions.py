"""The evaluation's cache must not outlive the code: digests of what computes, beside the revisions in its key.

`python tests/test_revisions.py` writes the digests anew.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from onnx_files import floats, make_model, saved
from PIL import Image

from prefiqs_ext import Preset, Pruning, methods
from prefiqs_ext.evaluation import cache
from prefiqs_ext.evaluation import cache_revisions as revisions
from prefiqs_ext.evaluation.datasets.sources import EncodedCrop
from prefiqs_ext.evaluation.image_set import ImageSet
from prefiqs_ext.evaluation.inference import MethodTask, Scoring, embed_images
from prefiqs_ext.methods.prefiqs import ScorerMethod
from prefiqs_ext.methods.registry import load_class
from prefiqs_ext.models import import_onnx

ROOT = Path(__file__).parents[1]
DIGESTS = Path(__file__).parent / "data" / "revisions.json"
PACKAGE = "prefiqs_ext"
_ENGINE = (
    "inputs",
    "default_scorer",
    "device",
    "fake_ops",
    "pruning_masks",
    "ops",
    "output",
    "pruning",
    "recalibration",
    "scorer",
    "utils/torch_defaults",
)
FILES = {
    "ENGINE": [
        "CMakeLists.txt",
        "cmake/cpu.cmake",
        "cmake/cuda.cmake",
        "csrc/**/*",
        *(f"{PACKAGE}/{name}.py" for name in _ENGINE),
        *(f"{PACKAGE}/{folder}/**/*.py" for folder in ("dual", "models")),
        *(f"{PACKAGE}/faces/{name}.py" for name in ("image", "align")),
        f"{PACKAGE}/evaluation/image_set.py",
        f"{PACKAGE}/evaluation/inference.py",
        f"{PACKAGE}/evaluation/datasets/sources.py",
    ],
    "calibrated": [
        f"{PACKAGE}/methods/calibrated.py",
        f"{PACKAGE}/calibration/**/*.py",
        f"{PACKAGE}/faces/degrade.py",
        f"{PACKAGE}/ranking.py",
    ],
    **{name: [f"{PACKAGE}/methods/{name}.py"] for name in ("grafiqs", "froq", "serfiq")},
    **{name: [f"{PACKAGE}/methods/baselines.py"] for name in ("random", "sharpness", "brightness")},
}
"""Of what each revision is, as patterns from the root. All methods share what the engine has, and network_method.py."""


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (112, 112), (90, 140, 30)).save(file, "PNG")
    return file.getvalue()


def code(node: Any) -> Any:
    """What Python runs: without comments, layout and strings that stand alone, as docstrings do. Plain lists, for what
    ast.dump writes differs from one Python to the next."""
    if isinstance(node, ast.AST):
        fields = ((name, code(value)) for name, value in ast.iter_fields(node) if name not in ("kind", "type_params"))
        return [type(node).__name__, *(pair for pair in fields if pair[1] not in (None, []))]
    if isinstance(node, list):
        return [code(one) for one in node if not (isinstance(one, ast.Expr) and _is_text(one.value))]
    return repr(node) if node is not None else None


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def digest(text: str, suffix: str) -> str:
    return hashlib.sha256((repr(code(ast.parse(text))) if suffix == ".py" else text).encode()).hexdigest()


def digests() -> dict[str, str]:
    found = {}
    for name, patterns in FILES.items():
        shared = [] if name == "ENGINE" else [f"{PACKAGE}/methods/network_method.py"]
        matching = {file for pattern in patterns + shared for file in ROOT.glob(pattern) if file.is_file()}
        of_files = [f"{file.relative_to(ROOT)} {digest(file.read_text(), file.suffix)}" for file in sorted(matching)]
        assert len(of_files) >= len(patterns)
        found[name] = hashlib.sha256("\n".join(of_files).encode()).hexdigest()
    return found


def contents() -> dict[str, list[Any]]:
    """Revision and digest of each."""
    numbers = {"ENGINE": revisions.ENGINE, **revisions.METHODS}
    return {name: [numbers[name], value] for name, value in digests().items()}


def check(kept: dict[str, list[Any]], now: dict[str, list[Any]]) -> None:
    for name, (revision, value) in now.items():
        changed = value != kept[name][1]
        assert not changed or revision != kept[name][0], (
            f"the code of {name} changed: raise its revision in prefiqs_ext/evaluation/cache_revisions.py if any "
            "number may come out differently; then, or if none can, run `python tests/test_revisions.py`"
        )
        assert [revision, value] == kept[name], f"{name} has a new revision: run `python tests/test_revisions.py`"


def test_code_has_changed_only_with_its_revision() -> None:
    check(json.loads(DIGESTS.read_text()), contents())


def test_every_method_that_computes_has_a_revision() -> None:
    computing = {name for name in methods.list_methods() if not issubclass(load_class(name), ScorerMethod)}
    assert set(revisions.METHODS) == computing
    assert set(FILES) == {"ENGINE", *computing}


def test_another_revision_computes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "get_cache_folder", lambda: tmp_path)
    images = ImageSet([EncodedCrop(png(), "image 0")])
    scoring = Scoring(torch.nn.Linear(2, 2), Preset.resolve("sface"), Pruning())
    calls = []

    def score(crops: torch.Tensor) -> torch.Tensor:
        calls.append(len(crops))
        return crops.float().mean((1, 2, 3))

    method = SimpleNamespace(name="sharpness", higher_is_better=True, fit_images=0, score=score)
    for expected in (1, 1):
        scoring.compute_qualities([MethodTask(method, images)], images, 0)
        assert len(calls) == expected
    monkeypatch.setitem(revisions.METHODS, "brightness", 99)
    scoring.compute_qualities([MethodTask(method, images)], images, 0)
    assert len(calls) == 1
    monkeypatch.setitem(revisions.METHODS, "sharpness", 99)
    scoring.compute_qualities([MethodTask(method, images)], images, 0)
    assert len(calls) == 2
    monkeypatch.setattr(revisions, "ENGINE", 99)
    scoring.compute_qualities([MethodTask(method, images)], images, 0)
    assert len(calls) == 3


def test_another_network_of_the_same_weights_computes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "get_cache_folder", lambda: tmp_path)
    constants = {"w": floats(8, 3, 4, 4), "g": floats(8, 16, seed=1)}
    found = []
    for kind in ("Relu", "Tanh"):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], strides=[4, 4]),
            helper.make_node(kind, ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "g"], ["y"]),
        ]
        path = saved(make_model(nodes, ("n", 3, 112, 112), constants), tmp_path)
        images = ImageSet([EncodedCrop(png(), "image 0")])
        network, preset = import_onnx(path), Preset.resolve("arcface")
        kept = [
            embed_images(images, network, preset),
            Scoring(network, preset, Pruning()).score_images(images).embeddings,
        ]
        again = embed_images(ImageSet([EncodedCrop(png(), "image 0")], cache.MemoryCache()), import_onnx(path), preset)
        assert np.array_equal(kept[0], again)
        found.append(kept)
    for first, second in zip(*found, strict=True):
        assert not np.allclose(first, second)


SOURCE = 'X = 1\n"""What X is."""\n\n\ndef f(a: int) -> int:\n    """Doc."""\n    return a + X  # why\n'


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        (SOURCE.replace("Doc.", "Another.").replace("  # why", "").replace("a + X", "(a\n        + X)"), True),
        (SOURCE.replace('"""What X is."""\n', ""), True),
        (SOURCE.replace("X = 1", "X = 2"), False),
        (SOURCE.replace("a + X", "a - X"), False),
        (SOURCE.replace("X = 1", "X = '1'"), False),
    ],
)
def test_a_digest_is_of_what_runs(changed: str, same: bool) -> None:
    assert changed != SOURCE
    assert (digest(changed, ".py") == digest(SOURCE, ".py")) == same
    assert digest(changed, ".cpp") != digest(SOURCE, ".cpp")


def test_what_is_said() -> None:
    with pytest.raises(AssertionError, match="the code of froq changed: raise its revision"):
        check({"froq": [1, "a"]}, {"froq": [1, "b"]})
    with pytest.raises(AssertionError, match="froq has a new revision: run"):
        check({"froq": [1, "a"]}, {"froq": [2, "b"]})
    check({"froq": [2, "b"]}, {"froq": [2, "b"]})


if __name__ == "__main__":
    DIGESTS.write_text(json.dumps(contents(), indent=1) + "\n")
