"""`prefiqs analyse`: what pruning does to a network's scores on a folder of faces, and what it costs."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from tqdm import tqdm

from prefiqs_ext import __version__
from prefiqs_ext.cli.messages import tell
from prefiqs_ext.cli.scoring import load_subject, model_options
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.files.crops import find_largest_faces
from prefiqs_ext.files.paths import find_paths
from prefiqs_ext.utils.atomic_write import make_output_folder, write_folder
from prefiqs_ext.utils.text import format_csv, format_path

_LEAST = 10  # images, for a rank correlation to mean anything


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--aligned", is_flag=True, help="PATHs are ready crops of exactly the preset's size.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default="analysis",
    show_default=True,
    help="The folder to write to.",
)
@click.option(
    "--images", type=click.IntRange(min=_LEAST), default=200, show_default=True, help="Faces to use, sampled."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample.")
@model_options
def analyse(paths: tuple[str, ...], aligned: bool, output: Path, images: int, seed: int, **options: Any) -> None:
    """Show what pruning does to a network's scores on your own faces.

    Writes to the output folder: variation.csv, D by kind of pruning and sparsity, how it agrees with the paper's
    setting, and the first-order estimate; late.csv, the time and agreement of pruning late layers only, with the names
    for --layers; analysis.png, both as pictures; analysis.json, all settings and numbers. Needs matplotlib and scipy:
    `pip install prefiqs_ext[analysis]`.

    \b
    Example:
      prefiqs analyse photos/ --output analysis
    """
    try:
        from prefiqs_ext.analysis.late_layers import measure_late_layers
        from prefiqs_ext.analysis.plot import plot_variation
        from prefiqs_ext.analysis.variation import Variation, count_variations, vary
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is missing: pip install 'prefiqs_ext[analysis]'") from error
    network, preset = load_subject(options)
    faces = _sample(paths, preset.size, aligned, images, seed)
    make_output_folder(output)
    total, embedding = count_variations(network), options["output_name"]
    variations = list(
        tqdm(vary(network, preset, faces, output=embedding), total=total, unit="setting", disable=None, leave=False)
    )
    costs = measure_late_layers(network, preset, faces, output=embedding)
    title = f"{options['model']}, {len(faces)} faces"
    facts = {
        "prefiqs_ext": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "model": options["model"],
        "preset": asdict(preset),
        "output": embedding,
        "images": len(faces),
        "seed": seed,
        "variations": [asdict(variation) for variation in variations],
        "late": [asdict(cost) for cost in costs],
    }
    picture = io.BytesIO()
    plot_variation(variations, costs, title, picture)
    names = [field.name for field in fields(Variation)]
    columns = ["share", "first", "milliseconds", "of_recognition", "of_full", "agreement", "layers"]
    contents = {
        "variation.csv": format_csv(names, ([getattr(row, name) for name in names] for row in variations)),
        "late.csv": format_csv(columns, (_late_row(cost) for cost in costs)),
        "analysis.png": picture.getvalue(),
        "analysis.json": json.dumps(facts, indent=1, allow_nan=True).encode(),
    }
    write_folder(output, contents)
    click.echo("share  time / recognition   time / all layers   Spearman   from")
    for cost in costs:
        click.echo(_line(cost))
    click.echo(f"{format_path(str(output))}/analysis.png")


def _sample(paths: Sequence[str], size: tuple[int, int], aligned: bool, count: int, seed: int) -> Tensor:
    files = find_paths(paths, tell)
    random.Random(seed).shuffle(files)
    crops: list[Tensor] = []
    bar = tqdm(total=min(count, len(files)), unit="face", disable=None, leave=False)
    with bar:
        for crop in find_largest_faces(files, size, aligned=aligned):
            crops.append(crop)
            bar.update()
            if len(crops) == count:
                break
    if len(crops) < _LEAST:
        raise InputError(f"expected {_LEAST} faces or more in {', '.join(map(format_path, paths))}, found {len(crops)}")
    return torch.stack(crops)


def _late_row(cost: Any) -> list[object]:
    spreads = (" ".join(f"{value:.3f}" for value in ratios) for ratios in (cost.of_recognition, cost.of_full))
    return [cost.share, cost.first, round(cost.milliseconds, 3), *spreads, round(cost.agreement, 4), *cost.layers]


def _line(cost: Any) -> str:
    recognition, full = (f"{m:5.2f} ({low:.2f}-{high:.2f})" for m, low, high in (cost.of_recognition, cost.of_full))
    what = cost.first or "nothing pruned: recognition alone"
    return f"{cost.share:5.0%}  {recognition:<19}  {full:<18}  {cost.agreement:8.3f}   {what}"
