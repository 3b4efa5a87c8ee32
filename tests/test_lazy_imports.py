"""What starts without torch: the package, its version, the tables of known names, the options of a pruning."""

from __future__ import annotations

import subprocess
import sys

import prefiqs_ext
from prefiqs_ext import models

_PROGRAM = """
import sys
import prefiqs_ext
import prefiqs_ext.models
import prefiqs_ext.exceptions
assert prefiqs_ext.__version__
assert prefiqs_ext.Pruning("2:4").sparsity == 0.5
assert prefiqs_ext.Preset.resolve("arcface") is prefiqs_ext.models.PRESETS["arcface"]
assert "sface" in prefiqs_ext.models.BUILT_IN
assert prefiqs_ext.models.weights.KNOWN["sface"].size
heavy = sorted({"torch", "numpy", "cv2", "onnx", "PIL"} & set(sys.modules))
assert not heavy, heavy
"""


def test_no_torch_until_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    for module in (prefiqs_ext, models):
        for name in module.__all__:
            assert getattr(module, name) is not None
    assert callable(prefiqs_ext.sensitivity)  # the function, also once its module is imported
    assert set(dir(prefiqs_ext)) >= {"Scorer", "score", "score_photo", "sensitivity"}
