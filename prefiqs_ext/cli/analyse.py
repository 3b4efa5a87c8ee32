"""`prefiqs analyse`: what pruning does to a network's scores on a folder of faces, and what it costs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prefiqs_ext.cli.messages import print_result, tell
from prefiqs_ext.cli.options import ModelOptions, model_options
from prefiqs_ext.cli.paths import ImagesPath
from prefiqs_ext.cli.shared_options import aligned_option, output_folder_option
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.optional_packages import require_packages
from prefiqs_ext.utils.text import format_path

if TYPE_CHECKING:
    from torch import Tensor

    from prefiqs_ext.models.template import CropTemplate

_LEAST = 10  # images, for a rank correlation to mean anything


@click.command()
@click.argument("paths", nargs=-1, required=True, type=ImagesPath(), metavar="PATH...")
@aligned_option
@output_folder_option("analysis")
@click.option(
    "--images",
    type=click.IntRange(min=_LEAST),
    default=200,
    show_default=True,
    metavar="N",
    help="The largest number of faces to use, sampled at random.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the sample.")
@model_options
def analyse(
    *, paths: tuple[str, ...], model: ModelOptions, aligned: bool, output: Path, images: int, seed: int
) -> None:
    """Show what pruning does to a network's scores on your own faces, and what it costs.

    PATH is a photo, a folder of photos, or @LIST, a file with one path per line.

    Prints what pruning only the last layers costs. Writes variation.csv (D by kind of pruning and sparsity, how its
    order agrees with that of the paper's setting, and the first-order estimate of D), late.csv (time and agreement when
    only late layers are pruned, with their names for --layers), analysis.png (both as pictures) and analysis.json (all
    settings and numbers).

    Needs matplotlib and scipy: `pip install prefiqs_ext[analysis]`.

    \b
    Example:
      prefiqs analyse photos/ --output analysis
    """
    require_packages("analysis", "matplotlib", "scipy")
    from prefiqs_ext.analysis.runner import run_analysis
    from prefiqs_ext.files.paths import find_paths
    from prefiqs_ext.utils.atomic_write import make_output_folder

    files = list(find_paths(paths, tell))
    network, preset = model.load()
    faces = _sample(files, preset.template, aligned, images, seed)
    if len(faces) < _LEAST:
        raise InputError(f"expected {_LEAST} faces or more in {', '.join(map(format_path, paths))}, found {len(faces)}")
    make_output_folder(output)
    analysis = run_analysis(network, preset, faces, output=model.output)
    facts = {"model": model.name, "preset": asdict(preset), "output": model.output, "seed": seed}
    analysis.write(output, f"{model.name}, {len(faces)} faces", facts)
    for line in analysis.format():
        print_result(line)
    tell(f"analysed {len(faces)} faces; tables and analysis.png are in {format_path(str(output))}")


def _sample(files: Sequence[str], template: CropTemplate, aligned: bool, count: int, seed: int) -> Tensor:
    """Read faces [n, 3, *template.size], uint8, at most `count` of them, from the files in an order drawn at random."""
    import torch
    from tqdm import tqdm

    from prefiqs_ext.files.crops import find_largest_faces

    shuffled = list(files)
    random.Random(seed).shuffle(shuffled)
    crops: list[Tensor] = []
    with tqdm(total=min(count, len(files)), unit="face", disable=None, leave=False) as bar:
        for crop in find_largest_faces(shuffled, template, aligned=aligned):
            crops.append(crop)
            bar.update()
            if len(crops) == count:
                break
    return torch.stack(crops) if crops else torch.empty(0, 3, *template.size, dtype=torch.uint8)
