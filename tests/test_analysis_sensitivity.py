"""The first-order estimate of D, against finite differences in float64 and against D."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES
from networks import calibrated, network_input, pictures
from scipy.stats import spearmanr
from torch import Tensor, nn

from prefiqs_ext import Preset, Pruning, Scorer, sensitivity


def moved(model: nn.Module, x: Tensor, masks: dict[str, Tensor], step: float) -> Tensor:
    """Normalised embeddings with the pruned weights moved by step * -(1 - m) * weight."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            weight = model.get_parameter(f"{name}.weight")
            weight.sub_(step * weight * ~mask)
        return F.normalize(model(x))


@pytest.mark.parametrize("layers", ["conv", "conv+linear"])
@pytest.mark.parametrize("name", ["mobilefacenet", "weight reuse", "ghostnet", "mobilenet", "vit", "convnext", "audio"])
def test_is_the_derivative(name: str, layers: str) -> None:
    """Central differences in float64 err by the step squared, by rounding over the step, and where a ReLU changes sides
    between the two: the step is small for that."""
    build, inputs = ARCHITECTURES[name]
    model, x = build().double(), inputs(5, seed=3).double()
    pruning = Pruning(sparsity=0.3, layers=layers)
    masks = pruning.make_masks(model)
    step = 1e-7
    difference = (moved(model, x, masks, step) - moved(model, x, masks, -step)) / (2 * step)
    expected = torch.linalg.vector_norm(difference, dim=1)
    network = nn.Sequential(Cast(), model).eval()
    ours = sensitivity(x.float(), network, Pruning(sparsity=0.3, layers=[f"1.{name}" for name in masks]), chunk=2)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


class Cast(nn.Module):
    """A batch is float32; the network of the test is float64."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def test_d_approaches_it() -> None:
    """The less is pruned, the closer."""
    model, x = calibrated("residual"), network_input(pictures(6, 32))
    errors = []
    for sparsity in (0.02, 0.5):
        pruning = Pruning(sparsity=sparsity)
        distance = Scorer(model, pruning, example=x)(x).distance
        errors.append(float((sensitivity(x, model, pruning) / distance - 1).abs().mean()))
    assert errors[0] < 0.05
    assert errors[1] > 5 * errors[0]


def test_images_of_a_preset() -> None:
    model, preset = calibrated("residual"), Preset("small", (32, 32), "bgr", (127.5,) * 3, (127.5,) * 3)
    images = pictures(5, 32)
    ours = sensitivity(images, model, preset=preset, chunk=3)
    assert torch.equal(ours, sensitivity(images, model, preset=preset, chunk=3))
    torch.testing.assert_close(sensitivity(images / 255, model, preset=preset), ours)
    torch.testing.assert_close(sensitivity(network_input(images).flip(1), model), ours)
    torch.testing.assert_close(sensitivity(images[2:3], model, preset=preset), ours[2:3])
    assert sensitivity(images[:0], model, preset=preset).shape == (0,)


def test_bad_calls() -> None:
    model, preset = calibrated("residual"), Preset("small", (32, 32), "bgr", (127.5,) * 3, (127.5,) * 3)
    images = pictures(2, 32)
    part = copy.deepcopy(model)
    next(module for module in part.modules() if isinstance(module, torch.nn.BatchNorm2d)).train()
    for call, message in (
        (lambda: sensitivity(images[:, :2], model, preset=preset), r"expected images \[N, 3, 32, 32\]"),
        (lambda: sensitivity(images.float(), model, preset=preset), r"expected floating images in \[0, 1\]"),
        (lambda: sensitivity(images / torch.zeros(()), model, preset=preset), "got NaN or infinity in rows? 0"),
        (lambda: sensitivity(images, model, preset=preset, chunk=0), "expected chunk of 1 or more"),
        (lambda: sensitivity(images, copy.deepcopy(model).train(), preset=preset), "call model.eval"),
        (lambda: sensitivity(images, part, preset=preset), "call model.eval"),
        (lambda: sensitivity(images, "r50"), "no such model or file: r50"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.slow
def test_spearman_with_d_on_real_faces(sface_file: object, crops: Tensor, faces: tuple[Tensor, list[str]]) -> None:
    """Of 80 faces: the order of the estimate is that of D at sparsity .1, and no longer at .4."""
    images = torch.cat([crops, faces[0]])
    agreements = []
    for sparsity in (0.1, 0.4):
        pruning = Pruning(sparsity=sparsity)
        distance = Scorer("sface", pruning)(images).distance
        agreements.append(spearmanr(sensitivity(images, "sface", pruning), distance).statistic)
    assert agreements[0] >= 0.9
    assert agreements[1] < agreements[0]
