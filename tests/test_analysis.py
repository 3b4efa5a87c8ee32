"""What an analysis measures, against Scorers made by hand; and the command."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import calibrated, pictures
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn

from prefiqs_ext import Preset, Pruning, Scorer, sensitivity
from prefiqs_ext.analysis import runner
from prefiqs_ext.analysis.late_layers import Cost, _choose_latest, _list_by_execution, measure_late_layers
from prefiqs_ext.analysis.pruning_variation import Variation, count_variations, measure_variations
from prefiqs_ext.cli import main

PRESET = Preset("small", (32, 32), "rgb", (127.5,) * 3, (127.5,) * 3)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return calibrated("residual")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return pictures(24, 32, seed=2)


def test_variations(network: nn.Module, images: Tensor) -> None:
    rows = list(measure_variations(network, PRESET, images, (0.1, 0.4)))
    assert len(rows) == count_variations(network, (0.1, 0.4)) == 12
    assert [row.sparsity for row in rows] == [0.1, 0.4] * 6
    by_hand = {
        0: Pruning(sparsity=0.1),
        2: Pruning(sparsity=0.1, scope="global"),
        5: Pruning(sparsity=0.4, layers="conv+linear"),
        7: Pruning("random", 0.4),
        8: Pruning("structured", 0.1),
    }
    base = Scorer(network, preset=PRESET)(images).distance
    for index, pruning in by_hand.items():
        distance = Scorer(network, pruning, preset=PRESET)(images).distance.numpy()
        row = rows[index]
        assert (row.low, row.median, row.high) == pytest.approx(np.quantile(distance, [0.05, 0.5, 0.95]).tolist())
        assert row.agreement == pytest.approx(spearmanr(distance, base).statistic)
        assert row.ratio is None
    assert rows[1].agreement == pytest.approx(1)
    estimate = sensitivity(images, network, preset=PRESET)
    distance = Scorer(network, Pruning(sparsity=0.1), preset=PRESET)(images).distance
    assert rows[10].with_d == pytest.approx(spearmanr(estimate, distance).statistic)
    assert rows[10].ratio == pytest.approx(
        float((estimate / distance).median()), rel=0.05
    )  # numpy's median, of an even number


def test_kinds_without_linear_layers() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    kinds = [row.kind for row in measure_variations(network.eval(), PRESET, pictures(10, 32), (0.3,))]
    assert "magnitude, linear layers too" not in kinds
    assert len(kinds) == 5


def test_layers_in_the_order_they_run(network: nn.Module) -> None:
    names = list(Pruning().make_masks(network))
    order = _list_by_execution(network, PRESET, names[::-1])
    assert [name for name, _ in order] == [
        "stem.0",
        *(f"blocks.0.{name}" for name in ("downsample.0", "conv1", "conv2")),
        *(f"blocks.1.{name}" for name in ("conv1", "conv2")),
        *(f"blocks.2.{name}" for name in ("downsample.0", "conv1", "conv2")),
        *(f"blocks.3.{name}" for name in ("conv1", "conv2")),
        "conv1",
        "conv2",
    ]
    operations = dict(order)
    assert operations["stem.0"] == 32 * 32 * 16 * 3 * 9
    assert operations["conv2"] == 8 * 8 * 32 * 32 * 9
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("operations", "chosen"), [(10, "abcd"), (9.9, "bcd"), (7, "bcd"), (6.9, "cd"), (3, "cd"), (2, "d"), (0.1, "d")]
)
def test_the_latest_layers(operations: float, chosen: str) -> None:
    assert "".join(_choose_latest([("a", 3), ("b", 4), ("c", 1), ("d", 2)], operations)) == chosen


def test_late_layers(network: nn.Module, images: Tensor) -> None:
    costs = measure_late_layers(network, PRESET, images, shares=(1.0, 0.3), rounds=2, batch=4)
    assert [cost.share for cost in costs] == [1.0, 0.3, 0.0]
    full, late, none = costs
    assert full.layers[0] == full.first == "stem.0"
    assert late.layers == full.layers[-len(late.layers) :]
    assert (full.agreement, full.of_full) == (pytest.approx(1), (1, 1, 1))
    assert (none.layers, none.of_recognition) == ((), (1, 1, 1))
    assert math.isnan(none.agreement)
    distance = Scorer(network, Pruning(layers=late.layers), preset=PRESET)(images).distance
    whole = Scorer(network, preset=PRESET)(images).distance
    assert late.agreement == pytest.approx(spearmanr(distance, whole).statistic)
    for shares in ((1.0, 0.0), (0.5,), (1.0, 2.0)):  # 0 would be taken for recognition alone
        with pytest.raises(ValueError, match="shares above 0 and up to 1"):
            measure_late_layers(network, PRESET, images, shares=shares)
    assert all(cost.milliseconds > 0 and cost.of_recognition[1] <= cost.of_recognition[2] for cost in costs)


@pytest.mark.slow
def test_the_command(sface_file: Path, crops: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefiqs_ext.analysis.pruning_variation.SPARSITIES", (0.1, 0.4))
    monkeypatch.setattr("prefiqs_ext.analysis.pruning_variation.measure_variations.__defaults__", ((0.1, 0.4),))
    monkeypatch.setattr("prefiqs_ext.analysis.pruning_variation.count_variations.__defaults__", ((0.1, 0.4),))
    monkeypatch.setattr(
        "prefiqs_ext.analysis.late_layers.measure_late_layers.__kwdefaults__",
        {"shares": (1.0, 0.1), "rounds": 1, "batch": 4},
    )
    folder = tmp_path / "faces"
    folder.mkdir()
    for index, crop in enumerate(crops[:14]):
        Image.fromarray(crop.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    (folder / "broken.jpg").write_bytes(b"none")
    output = tmp_path / "out" / "analysis"
    command = ["analyse", str(folder), "--aligned", "--output", str(output), "--images", "12"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in output.iterdir()) == [
        "analysis.json",
        "analysis.png",
        "late.csv",
        "variation.csv",
    ]
    with (output / "variation.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12
    facts = json.loads((output / "analysis.json").read_text())
    assert (facts["images"], facts["model"]) == (12, "sface")
    assert len(facts["late"]) == 3
    assert Image.open(output / "analysis.png").size > (900, 600)
    assert "recognition alone" in result.output


def test_the_command_refuses(sface_file: Path, tmp_path: Path) -> None:
    for index in range(9):
        Image.fromarray(pictures(1)[0].permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    result = CliRunner().invoke(main, ["analyse", str(tmp_path), "--aligned", "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "expected 10 faces or more in" in result.stderr
    assert not (tmp_path / "out").exists()


def test_estimates_need_no_gradients(network: nn.Module, images: Tensor) -> None:
    before = [parameter.requires_grad for parameter in network.parameters()]
    assert not sensitivity(images[:2], network, preset=PRESET).requires_grad
    assert [parameter.requires_grad for parameter in network.parameters()] == before
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.is_grad_enabled()


def test_an_analysis_from_python(
    network: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured comes back, and goes to files only when it is written."""
    variations = [Variation("magnitude", 0.1, 0.2, 0.1, 0.3, 0.9), Variation("estimate", 0.1, 0.2, 0.1, 0.3, 0.9, 1, 1)]
    costs = [
        Cost(1.0, "a", ("a", "b"), 5, (2, 1, 3), (1, 1, 1), 1),
        Cost(0.0, "", (), 3, (1, 1, 1), (0.5, 0.4, 0.6), 0),
    ]
    monkeypatch.setattr(runner, "measure_variations", lambda *_, **__: iter(variations))
    monkeypatch.setattr(runner, "measure_late_layers", lambda *_, **__: costs)
    analysis = runner.run_analysis(network, PRESET, images)
    assert analysis == runner.Analysis(24, variations, costs)
    assert [line.split()[0] for line in analysis.format()] == ["share", "100%", "0%"]
    assert not list(tmp_path.iterdir())
    analysis.write(tmp_path / "out", "a network", {"model": "residual"})
    facts = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert (facts["model"], facts["images"], len(facts["variations"])) == ("residual", 24, 2)
    with (tmp_path / "out" / "late.csv").open() as file:
        assert next(csv.DictReader(file))["of_recognition"] == "2.000 1.000 3.000"
