"""`prefiqs tune`: which sparsity, scope and layers serve a network best, by a rule stated before looking."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from prefiqs_ext.cli.messages import tell
from prefiqs_ext.cli.people import allow_duplicates_option, no_cache_option
from prefiqs_ext.cli.scoring import load_subject, model_options
from prefiqs_ext.evaluation.cache import load_or_compute, make_memory_cache
from prefiqs_ext.evaluation.datasets.duplicates import refuse_shared
from prefiqs_ext.evaluation.datasets.readers import read_folders
from prefiqs_ext.evaluation.edc import FMRS, LIMIT, TOO_FEW
from prefiqs_ext.evaluation.inference import VERSIONS, ImageSet, Scoring
from prefiqs_ext.evaluation.tuning import (
    FMR,
    HeldOutAreas,
    Rule,
    TuningResult,
    assign_folds,
    measure_held_out,
    tune_settings,
)
from prefiqs_ext.methods.combined import ZScores, log_distance
from prefiqs_ext.models.fingerprint import hash_weights
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.settings import Settings
from prefiqs_ext.utils.atomic_write import make_output_folder, write_folder
from prefiqs_ext.utils.text import format_csv

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_D, _NORM = "D", "norm"


@click.command()
@click.argument("data", type=click.Path(path_type=Path, file_okay=False, exists=True))
@model_options
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Parts of the people.")
@click.option("--resamples", type=click.IntRange(2), default=500, show_default=True, help="Of persons, for intervals.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of folds and resamples.")
@click.option("--output", "-o", type=click.Path(path_type=Path, file_okay=False), default="tune", show_default=True)
@allow_duplicates_option
@no_cache_option
def tune(
    data: Path,
    folds: int,
    resamples: int,
    seed: int,
    output: Path,
    allow_duplicates: bool,
    no_cache: bool,
    **options: Any,
) -> None:
    """Find the sparsity, scope and layers that serve a network best.

    DATA has a folder a person, of aligned crops. In each of the folds a setting is chosen on the people of the others,
    and measured against the default on the fold's own. The default is kept unless that shows it to be worse. Prints a
    table and writes to the output folder: tune.csv (it), tune.json (folds, choices, intervals), settings.json (the
    recommended setting, for `prefiqs score --settings`). Also compares D, the embedding norm and both together.

    \b
    Example:
      prefiqs tune crops/ --model sface --output tune
    """
    images = read_folders(data, tell)
    fold = assign_folds(images.identities, folds, seed)
    network, preset = load_subject(options)
    faces = ImageSet(images.images, make_memory_cache() if no_cache else load_or_compute)
    if not allow_duplicates:
        refuse_shared(images, faces.contents)
    make_output_folder(output)
    settings = grid(network)
    scorer = {"output": options["output_name"]}
    bar = tqdm(settings.items(), unit="setting", disable=None, leave=False)
    passes = {name: Scoring(network, preset, pruning, **scorer).score_images(faces) for name, pruning in bar}
    common: dict[str, Any] = {"resamples": resamples, "seed": seed}
    of_default = passes[next(iter(settings))]
    people = of_default.embeddings, images.identities, fold
    tuned = tune_settings(*people, {name: -each.distance.numpy() for name, each in passes.items()}, **common)
    mixed = measure_held_out(*people, _mixtures(of_default.distance.numpy(), of_default.norm.numpy()), **common)
    weights = hash_weights(network)
    facts = {
        "versions": VERSIONS,
        "weights": weights,
        "preset": asdict(preset),
        "images": faces.hash,
        "options": options | {"data": str(data), "folds": folds, **common},
    }
    rows = [_row(name, pruning, tuned) for name, pruning in settings.items()]
    contents = {
        "tune.csv": format_csv(_COLUMNS, rows),
        "tune.json": json.dumps(facts | _found(tuned, mixed), indent=1).encode(),
    }
    write_folder(output, contents)
    Settings(
        options["model"], weights, preset, settings[tuned.recommended], "cpu", "float32", options["output_name"]
    ).save(output / "settings.json")
    _print(rows, tuned, mixed)


def grid(network: nn.Module) -> dict[str, Pruning]:
    """The settings that differ for this network, by name; the default first."""
    has_linear = any(isinstance(module, nn.Linear) for module in network.modules())
    layers = ("conv", "conv+linear") if has_linear else ("conv",)
    every = [
        Pruning(sparsity=sparsity, scope=scope, layers=kind)  # type: ignore[arg-type]
        for sparsity, scope, kind in product(SPARSITIES, ("layer", "global"), layers)
    ]
    every.sort(key=lambda pruning: pruning != Pruning())
    return {f"{pruning.sparsity:g} {pruning.scope} {pruning.layers}": pruning for pruning in every}


def _mixtures(distance: NDArray[np.floating], norm: NDArray[np.floating]) -> dict[str, Rule]:
    """D by the default setting, the norm, and both together, D as it is and as its logarithm. Without the norm for a
    network that normalises its embeddings itself."""
    rules: dict[str, Rule] = {_D: lambda _: -distance}
    try:
        ZScores.fit(distance, norm)
    except ValueError:
        return rules

    def together(drift: NDArray[np.floating]) -> Rule:
        return lambda seen: ZScores.fit(drift[seen], norm[seen]).quality(drift, norm)

    return rules | {
        _NORM: lambda _: norm,
        "log D + norm": together(log_distance(distance)),
        "D + norm": together(distance),
    }


def _row(name: str, pruning: Pruning, tuned: TuningResult) -> list[Any]:
    overall = _overall(name, tuned)
    times_chosen = tuned.chosen.count(name)
    held_out = float(tuned.testing[name].mean())
    return [pruning.sparsity, pruning.scope, pruning.layers, *overall.values(), held_out, times_chosen]


def _overall(name: str, tuned: TuningResult) -> dict[str, Any]:
    """pAUC over all people by FMR, or that there are too few pairs for it."""
    return {
        f"{fmr:g}": curve.area(LIMIT) if curve.measurable else TOO_FEW for fmr, curve in tuned.overall[name].items()
    }


_COLUMNS = ["sparsity", "scope", "layers", *(f"pauc_{fmr:g}" for fmr in FMRS), "held_out", "chosen"]


def _found(tuned: TuningResult, mixed: HeldOutAreas) -> dict[str, Any]:
    return {
        "fmr": FMR,
        "settings": {
            name: {
                "overall": _overall(name, tuned),
                "training": tuned.training[name].tolist(),
                "held_out": tuned.testing[name].tolist(),
            }
            for name in tuned.overall
        },
        "chosen": tuned.chosen,
        "difference": tuned.difference,
        "recommended": tuned.recommended,
        "together": {
            "held_out": {name: values.tolist() for name, values in mixed.pauc.items()},
            "differences": {f"{a} - {b}": mixed.difference(a, b) for a, b in _contrasts(mixed.pauc)},
        },
    }


def _contrasts(names: Mapping[str, Any]) -> list[tuple[str, str]]:
    mixtures = [name for name in names if name not in (_D, _NORM)]
    return [(mixture, single) for mixture in mixtures for single in (_D, _NORM)]


def _print(rows: list[list[Any]], tuned: TuningResult, mixed: HeldOutAreas) -> None:
    click.echo("  ".join(f"{column:>13}" for column in _COLUMNS))
    for row in rows:
        click.echo("  ".join(f"{value:>13.3f}" if isinstance(value, float) else f"{value:>13}" for value in row))
    default = next(iter(tuned.overall))
    for index, name in enumerate(tuned.chosen):
        own, of_default = tuned.testing[name][index], tuned.testing[default][index]
        click.echo(f"fold {index + 1}: {name} chosen; held out {own:.3f}, the default {of_default:.3f}")
    verdict = "the default is kept" if tuned.recommended == default else f"{tuned.recommended} is recommended"
    click.echo(f"Held out at FMR {FMR:g}, chosen - default is {_interval(tuned.difference)}: {verdict}.")
    for name, values in mixed.pauc.items():
        click.echo(f"{name}: held out {values.mean():.3f}")
    for mixture, single in _contrasts(mixed.pauc):
        click.echo(f"{mixture}, minus {single}: {_interval(mixed.difference(mixture, single))}")


def _interval(difference: tuple[float, float, float]) -> str:
    mean, low, high = difference
    return f"{mean:.3f} (95 % {low:.3f} to {high:.3f})"
