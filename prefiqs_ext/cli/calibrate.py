"""`prefiqs calibrate`: a scale of 0 to 100 from a folder of faces, kept with what it is for."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from prefiqs_ext.calibration import Calibration
from prefiqs_ext.cli.messages import tell
from prefiqs_ext.cli.options import ScoringOptions, scoring_options
from prefiqs_ext.files.paths import find_paths
from prefiqs_ext.files.pipeline import score_files
from prefiqs_ext.utils.atomic_write import atomic_write


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--aligned", is_flag=True, help="PATHs are ready crops of exactly the preset's size.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default="settings.json",
    show_default=True,
    help="The settings to write.",
)
@click.option(
    "--kind",
    type=click.Choice(["percentile", "logistic"]),
    default="percentile",
    show_default=True,
    help="The percentage of these faces that is worse; or an S-curve through their quartiles.",
)
@scoring_options
def calibrate(paths: tuple[str, ...], aligned: bool, output: Path, kind: Any, scoring: ScoringOptions) -> None:
    """Fit a scale of 0 to 100 on faces of your own.

    Scores the faces in PATHs and writes model, preset, pruning and the scale to one file. `prefiqs score --settings
    FILE` then scores just so, and adds a column `score`: an integer of 0 to 100, -1 where a face is not assessable.

    \b
    Example:
      prefiqs calibrate photos/ --output settings.json
      prefiqs score more/ --settings settings.json --output qualities.csv
    """
    files = find_paths(paths, tell)
    qualities: list[float] = []
    with atomic_write(str(output)) as file:
        scorer = scoring.make_scorer()
        workers = min(2, os.cpu_count() or 1) if len(files) > 100 else 0
        with closing(score_files(files, scorer, aligned=aligned, workers=workers)) as rows:
            for scored in tqdm(rows, total=len(files), unit="file", disable=None, leave=False):
                qualities += [row.quality for row in scored.rows if row.quality is not None]
        calibration = Calibration.fit(torch.tensor(qualities), kind)
        file.write(scorer.settings.calibrated(calibration).to_json().encode())
    click.echo(f"{output}: {kind} scale of {len(qualities)} faces")
