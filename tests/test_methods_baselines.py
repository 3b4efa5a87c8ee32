"""The registry of methods, and the simple ones against OpenCV, numpy and the Scorer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from networks import calibrated, pictures

from prefiqs_ext import Preset, Pruning, Scorer, methods
from prefiqs_ext.exceptions import NotFittedError

PRESET = Preset("odd", (32, 32), "bgr", (127.5,) * 3, (128.0,) * 3)
IMAGES = pictures(5, 32)
# The others have tests of their own.
OTHERS = ("grafiqs", "froq", "serfiq", "prefiqs+norm", "prefiqs-recalibrated", "calibrated")
UNFITTED = [name for name in methods.list_methods() if name not in OTHERS]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return calibrated("residual")


@pytest.mark.parametrize("name", UNFITTED)
def test_batch_does_not_matter(name: str, network: torch.nn.Module) -> None:
    method = methods.create(name, network, PRESET)
    assert method.name == name
    assert method.fit_images == 0
    scores = method.score(IMAGES)
    assert scores.dtype == torch.float32
    assert scores.shape == (5,)
    assert torch.equal(scores, torch.cat([method.score(IMAGES[i : i + 1]) for i in range(5)]))
    assert method.score(IMAGES[:0]).shape == (0,)
    with pytest.raises(ValueError, match="expected images"):
        method.score(IMAGES[:, :, 1:])


def test_distance_and_norm_are_the_scorers(network: torch.nn.Module) -> None:
    pruning = Pruning(sparsity=0.3)
    expected = Scorer(network, pruning, preset=PRESET)(IMAGES)
    for name, field, higher in (("prefiqs", expected.distance, False), ("norm", expected.embedding_norm, True)):
        method = methods.create(name, network, PRESET, pruning=pruning)
        assert torch.equal(method.score(IMAGES), field)
        assert method.higher_is_better is higher


def test_sharpness_and_brightness_are_opencvs(network: torch.nn.Module) -> None:
    """Float32 luma in OpenCV against our float64: some 1e-7 of 255, squared differences of it."""
    greys = [cv2.cvtColor(i.permute(1, 2, 0).numpy().astype(np.float32), cv2.COLOR_RGB2GRAY) for i in IMAGES]
    sharp = torch.tensor([float(cv2.Laplacian(g, cv2.CV_32F).astype(np.float64).var()) for g in greys])
    bright = torch.tensor([float(g.astype(np.float64).mean()) for g in greys])
    for name, expected in (("sharpness", sharp), ("brightness", bright)):
        torch.testing.assert_close(methods.create(name, network, PRESET).score(IMAGES), expected, rtol=1e-5, atol=0)


def test_random_goes_by_seed_and_picture(network: torch.nn.Module) -> None:
    first, second = (methods.create("random", network, PRESET, seed=seed).score(IMAGES) for seed in (0, 1))
    assert len({*first.tolist(), *second.tolist()}) == 10
    assert torch.equal(methods.create("random", network, PRESET).score(IMAGES.flip(0)), first.flip(0))


@pytest.mark.filterwarnings("ignore:calibrate. 60 faces make a rough score")
@pytest.mark.parametrize("name", methods.list_methods())
def test_fit_returns_the_method(name: str, network: torch.nn.Module) -> None:
    """Before the fit that a method needs comes NotFittedError, as in scikit-learn."""
    if name == "grafiqs":
        method = methods.GraFIQs(network, PRESET, stages=("stem", "blocks.0", "blocks.1", "blocks.2"))
    else:
        with_dropout = torch.nn.Sequential(network, torch.nn.Dropout(0.5)).eval()
        method = methods.create(name, with_dropout if name == "serfiq" else network, PRESET)
    assert method.name == name
    count = 60 if name == "calibrated" else 20
    images = pictures(count, 32)
    if method.fit_images:
        with pytest.raises(NotFittedError, match=r"call fit\(\) first"):
            method.score(images)
    assert method.fit(images) is method
    assert method.score(images).shape == (count,)


def test_names_are_listed_without_torch() -> None:
    """TAB completion and --help list them. The package's own head is left out: what it imports is its own matter."""
    code = f"""
import importlib.machinery, sys, types
package = types.ModuleType("prefiqs_ext")
package.__path__ = {[str(Path(methods.__path__[0]).parent)]!r}
sys.modules["prefiqs_ext"] = package
import prefiqs_ext.evaluation
from prefiqs_ext import methods
assert "froq" in methods.list_methods() and "create" in dir(methods)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_names_are_refused(network: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=r"expected a method of prefiqs, .*got 'magic'"):
        methods.create("magic", network, PRESET)
