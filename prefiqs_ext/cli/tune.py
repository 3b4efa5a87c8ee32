"""`prefiqs tune`: which sparsity, scope and layers serve a network best, by a rule stated before looking."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import click
from torch import nn
from tqdm import tqdm

from ..evaluation.drifts import Drifts
from ..evaluation.readers import read_folders
from ..models.preset import PRESETS
from ..network import load_network
from ..pruning import Pruning
from .device import device_option
from .scoring import check_scoring

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@click.command()
@click.argument("data", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--model", default="sface", show_default=True, metavar="NAME|FILE", help="The recognition network.")
@click.option("--preset", type=click.Choice(sorted(PRESETS)), help="The input it wants. [default: a built-in's own]")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Parts of the people.")
@click.option("--resamples", type=click.IntRange(2), default=500, show_default=True, help="Of persons, for intervals.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--output", "-o", type=click.Path(path_type=Path, file_okay=False), default="tune", show_default=True)
@device_option
def tune(data: Path, folds: int, resamples: int, seed: int, output: Path, **options: Any) -> None:
    check_scoring(options)
    images = read_folders(data)
    network, preset = load_network(options["model"], options["preset"])
    preset = PRESETS[options["preset"]] if options["preset"] else preset
    if preset is None:
        raise click.UsageError("--model FILE.onnx needs --preset: the file cannot tell the input its network wants")
    drifts = Drifts(network, preset, images.paths)
    settings = grid(network)
    found = {s: drifts.distances(s) for s in tqdm(settings, unit="setting", disable=None, leave=False)}
    print(len(found))


def grid(network: nn.Module) -> list[Pruning]:
    """The settings that differ for this network, the default first."""
    has_linear = any(isinstance(module, nn.Linear) for module in network.modules())
    layers = ("conv", "conv+linear") if has_linear else ("conv",)
    settings = [Pruning(sparsity=s, scope=c, layers=k) for s, c, k in product(SPARSITIES, ("layer", "global"), layers)]  # type: ignore[arg-type]
    return sorted(settings, key=lambda setting: setting != Pruning())
