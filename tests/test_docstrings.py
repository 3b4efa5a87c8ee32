"""The examples in docstrings do what they show: each module's are run, as doctests.

They find the names `crops` (uint8 [40, 3, 112, 112]), `prefiqs_ext` and `torch`, and in the working folder `photo.jpg`,
which shows one face, and `crop.png`, an aligned one.
"""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import prefiqs_ext

ROOT = Path(prefiqs_ext.__file__).parents[1]
# Only modules with examples are imported, and none while tests are collected.
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "prefiqs_ext").rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.usefixtures("sface_file")
@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, crops: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} needs what is not installed: {error}")
    names: dict[str, Any] = {"crops": crops.clone(), "prefiqs_ext": prefiqs_ext, "torch": torch}
    examples = [found for found in doctest.DocTestFinder().find(module, globs=names) if found.examples]
    assert examples, f"{name} has '>>>' outside of docstrings"
    monkeypatch.chdir(tmp_path)
    Image.fromarray(crops[0].permute(1, 2, 0).numpy()).save("crop.png")
    if any("photo.jpg" in example.source for found in examples for example in found.examples):
        Image.fromarray(pytest.importorskip("skimage.data").astronaut()).save("photo.jpg", quality=95)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for found in examples:
        runner.run(found, out=said.append)
    assert not runner.failures, "".join(said)


def test_this_module_finds_examples() -> None:
    assert {"prefiqs_ext", "prefiqs_ext.scorer", "prefiqs_ext.photo"} <= set(MODULES)
