"""Whole filters and n:m, against torch.nn.utils.prune and plain loops."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from duals import check, randn
from networks import ZOO, calibrated, network_input, pictures
from torch import Tensor, nn
from torch.nn.utils import prune

from prefiqs_ext import Pruning, Scorer, reference


def layers(model: nn.Module, kinds: tuple[type, ...] = (nn.Conv2d, nn.Linear)) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.5, 0.93])
@pytest.mark.parametrize("name", ZOO)
def test_structured_is_torchs(name: str, sparsity: float) -> None:
    model = calibrated(name)
    masks = Pruning(method="structured", sparsity=sparsity, layers="conv+linear").make_masks(model)
    *chosen, last = layers(model)
    assert list(masks) == [name for name in chosen if isinstance(model.get_submodule(name), nn.Conv2d)]
    assert isinstance(model.get_submodule(last), nn.Linear)
    for name, mask in masks.items():
        layer = copy.deepcopy(model.get_submodule(name))
        if round(sparsity * layer.weight.shape[0]):
            prune.ln_structured(layer, "weight", amount=round(sparsity * layer.weight.shape[0]), n=1, dim=0)
            assert torch.equal(mask, layer.weight_mask.bool()), name
        else:
            assert bool(mask.all())


def test_structured_ties_and_the_last_linear_layer() -> None:
    model = nn.Sequential(nn.Conv2d(2, 5, 1), nn.Flatten(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    for parameter in model.parameters():
        nn.init.constant_(parameter, -0.5)
    pruning = Pruning(method="structured", layers="conv+linear")
    masks = pruning.make_masks(model)
    assert list(masks) == ["0", "2"]
    assert pruning.find_dense_layers(model) == ["4"]
    assert masks["0"][:, 0, 0, 0].tolist() == [False, False, True, True, True]  # round(.4 * 5) = 2
    named = Pruning(method="structured", layers=["4"])
    assert named.find_dense_layers(model) == []
    assert named.make_masks(model)["4"][:, 0].tolist() == [False, False, True, True]


def n_of_m(weight: Tensor, n: int, m: int) -> Tensor:
    """By loops over every group of m input channels."""
    mask = torch.ones_like(weight, dtype=torch.bool)
    flat = weight.reshape(*weight.shape[:2], -1)
    kept = mask.view(*weight.shape[:2], -1)
    for out in range(flat.shape[0]):
        for tap in range(flat.shape[2]):
            for begin in range(0, flat.shape[1], m):
                group = [(abs(float(flat[out, begin + i, tap])), i) for i in range(m)]
                for _, i in sorted(group)[: m - n]:
                    kept[out, begin + i, tap] = False
    return mask


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (1, 4), (3, 4), (4, 8), (1, 3)])
def test_n_of_m_by_loops(n: int, m: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(24, 5, 3),
        nn.Conv2d(48, 4, (1, 3), groups=2),
        nn.Conv1d(24, 3, 2),
        nn.Linear(24, 7),
        nn.Conv2d(7, 4, 1),
    )
    for index, parameter in enumerate(model.parameters()):
        parameter.data = randn(*parameter.shape, seed=index).round(decimals=1)  # with ties
    pruning = Pruning(method=f"{n}:{m}", layers="conv+linear")
    assert pruning.sparsity == (m - n) / m
    masks = pruning.make_masks(model)
    assert pruning.find_dense_layers(model) == ["4"]
    assert list(masks) == ["0", "1", "2", "3"]
    for name, mask in masks.items():
        assert torch.equal(mask, n_of_m(model.get_submodule(name).weight.detach(), n, m)), name
        assert float(mask.float().mean()) == pytest.approx(n / m)


@pytest.mark.parametrize("pruning", [Pruning("structured", 0.3), Pruning("2:4"), Pruning("1:4", layers="conv+linear")])
@pytest.mark.parametrize("name", ["mobile", "residual", "groups"])
def test_the_pair(name: str, pruning: Pruning) -> None:
    """What is left dense is shared until the first layer that is pruned."""
    check(calibrated(name), network_input(pictures(3, 32, seed=5)), pruning)


def test_a_scorer() -> None:
    model, x = calibrated("residual"), network_input(pictures(3, 32, seed=5))
    for pruning in (Pruning("structured", 0.2), Pruning("2:4")):
        expected = reference.score(model, x, pruning)
        out = Scorer(model, pruning, example=x)(x)
        torch.testing.assert_close(out.distance.double(), expected.distance, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "filters"}, r"one of magnitude, random, structured, or n:m such as '2:4', got 'filters'"),
        ({"method": "4:2"}, "or n:m such as '2:4', got '4:2'"),
        ({"method": "2:2"}, "got '2:2'"),
        ({"method": "0:4"}, "got '0:4'"),
        ({"method": "1:65"}, "got '1:65'"),
        ({"method": "2:4x"}, "got '2:4x'"),
        ({"method": 24}, "got 24"),
        ({"method": "2:4", "sparsity": 0.3}, r"'2:4' has sparsity 0.5, got 0.3: leave sparsity out"),
        ({"method": "2:4", "sparsity": 0.4}, r"'2:4' has sparsity 0.5, got 0.4"),
        ({"method": "2:4", "scope": "global"}, "'2:4' ranks each layer by itself"),
        ({"method": "structured", "scope": "global"}, "'structured' ranks each layer by itself"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Pruning(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_the_sparsity_that_is_left_out() -> None:
    assert Pruning() == Pruning(sparsity=0.4)
    assert Pruning("structured").sparsity == Pruning("random").sparsity == 0.4
    assert Pruning("2:4") == Pruning("2:4", 0.5)
    assert Pruning("1:4").sparsity == 0.75
    assert Pruning("7:10") == Pruning("7:10", 0.3) == Pruning("7:10", 1 - 7 / 10)
    assert Pruning("1:3") == Pruning("1:3", 2 / 3)
    assert replace(Pruning("2:4"), layers="conv+linear").sparsity == 0.5


def test_nothing_left_to_prune() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(ValueError, match=r"'2:4' can prune none of the chosen layers: 0, 1"):
        Pruning("2:4").make_masks(model)
    with pytest.raises(ValueError, match=r"'structured' can prune none of the chosen layers: 1"):
        Pruning("structured", layers="conv+linear").make_masks(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)))
