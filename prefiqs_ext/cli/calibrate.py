"""`prefiqs calibrate`: a scale of 0 to 100 from your own faces, in one file with what it is for."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Literal

import click

from prefiqs_ext.cli.messages import describe_counts, describe_files, tell
from prefiqs_ext.cli.options import ScoringOptions, scoring_options
from prefiqs_ext.cli.paths import ImagesPath
from prefiqs_ext.cli.shared_options import aligned_option
from prefiqs_ext.cli.throughput import Throughput, throughput_options
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.text import format_path


@click.command()
@click.argument("paths", nargs=-1, required=True, type=ImagesPath(), metavar="PATH...")
@aligned_option
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    default="settings.json",
    show_default=True,
    help="The settings to write.",
)
@click.option(
    "--kind",
    type=click.Choice(["percentile", "logistic"]),
    default="percentile",
    show_default=True,
    help="percentile: a score says how many per cent of these faces are worse; logistic: an S-curve through their "
    "quartiles.",
)
@scoring_options
@throughput_options
def calibrate(
    paths: tuple[str, ...],
    aligned: bool,
    output: Path,
    kind: Literal["percentile", "logistic"],
    scoring: ScoringOptions,
    throughput: Throughput,
) -> None:
    """Fit a scale of 0 to 100 on your own faces.

    PATH is an image, a folder, or @LIST as for `prefiqs score`. Scores the faces and writes the model, preset, pruning
    and the scale to one file. `prefiqs score --settings FILE` then scores in the same way, and its column `score` is on
    this scale: 0 to 100, HIGHER is better.

    \b
    Example:
      prefiqs calibrate photos/ --output settings.json
      prefiqs score more/ --settings settings.json --output qualities.csv
    """
    import torch

    from prefiqs_ext.calibration import Calibration
    from prefiqs_ext.files.paths import find_paths

    files = find_paths(paths, tell)
    qualities: list[float] = []
    counts: Counter[str] = Counter()
    with atomic_write(str(output)) as file:
        scorer = scoring.make_scorer()
        with closing(throughput.score(files, scorer, aligned=aligned)) as scored_files:
            for scored in scored_files:
                counts.update(record.status for record in scored.records)
                qualities += [record.quality for record in scored.records if record.quality is not None]
        calibration = Calibration.fit(torch.tensor(qualities), kind)
        file.write(scorer.settings.with_calibration(calibration).to_json().encode())
    found = f"{describe_files(len(files))}: {describe_counts(counts.items())}"
    tell(f"{found}; {kind} scale written to {format_path(str(output))}")
