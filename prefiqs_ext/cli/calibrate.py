"""`prefiqs calibrate`: a score of 0 to 100 for your own faces, in one file with what it is for."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prefiqs_ext.cli.messages import describe_counts, describe_number, print_result, tell
from prefiqs_ext.cli.options import ScoringOptions, scoring_options
from prefiqs_ext.cli.paths import ImagesPath
from prefiqs_ext.cli.shared_options import aligned_option, seed_option
from prefiqs_ext.cli.throughput import Throughput, throughput_options
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.pick_evenly import pick_evenly
from prefiqs_ext.utils.text import format_path

if TYPE_CHECKING:
    from prefiqs_ext.calibration.scale import Calibration
    from prefiqs_ext.faces import RGB

_KINDS_PER_LINE = 5


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
@seed_option("the degradations.")
@scoring_options
@throughput_options
def calibrate(
    paths: tuple[str, ...],
    aligned: bool,
    output: Path,
    seed: int,
    scoring: ScoringOptions,
    throughput: Throughput,
) -> None:
    """Fit a score of 0 to 100 to your own faces and your network.

    PATH is an image, a folder, or @LIST as for `prefiqs score`. Give 500 or more faces of many people, mostly good
    ones, as they usually come; nobody has to say who they are. The command recalibrates the pruned network on them,
    degrades them in many ways, and fits the score to what the network still recognises. At most 1,000 files are drawn,
    at even distances.

    Writes the model, preset, pruning, recalibration and calibration to one file. `prefiqs score --settings FILE` then
    scores in the same way, and its column `score` is 0 to 100, HIGHER is better: 100 times the cosine that the network
    is expected to find between the face and a good image of the same face.

    \b
    Example:
      prefiqs calibrate photos/ --output settings.json
      prefiqs score more/ --settings settings.json --output qualities.csv
    """
    import numpy as np

    from prefiqs_ext.calibration.calibrate import MOST_FACES
    from prefiqs_ext.calibration.calibrate import calibrate as fit_score
    from prefiqs_ext.exceptions import InputError
    from prefiqs_ext.files.paths import find_paths

    found = list(find_paths(paths, tell))
    files = [found[index] for index in pick_evenly(len(found), MOST_FACES)]
    preset = scoring.model.get_preset()
    crops: list[RGB] = []
    counts: Counter[str] = Counter()
    with atomic_write(str(output)) as file:
        with closing(throughput.read(files, preset.template, aligned=aligned)) as read:
            for each in read:
                counts[each.status] += max(len(each.crops), 1)
                crops += each.crops
        said = f"{describe_number(len(files), 'file')}: {describe_counts(counts.items())}"
        if not crops:
            raise InputError(f"no face to calibrate on; {said}")
        settings = fit_score(
            np.stack(crops),
            scoring.model.name,
            scoring.make_pruning(),
            preset=preset,
            device=scoring.device,
            dtype=scoring.find_dtype(),
            output=scoring.model.output,
            seed=seed,
        )
        assert settings.calibration is not None
        file.write(settings.to_json().encode())
    _print_calibration(settings.calibration)
    tell(f"{said}; settings written to {format_path(str(output))}")


def _print_calibration(calibration: Calibration) -> None:
    """Print what the score means, and how well it does on what it was not fitted on."""
    for line in calibration.describe().splitlines():
        print_result(line)
    signal = "the embedding's norm" if calibration.prior == "norm" else "D"
    if not calibration.is_corrected:
        print_result(f"It ranks as {signal} does: no correction helped on kinds of degradation left out.")
        return
    print_result(f"It ranks by {signal}, corrected by the norms of {len(calibration.layers)} layers.")
    print_result(
        "Kinds left out of the fit, mean angle of what is kept relative to the uncorrected (below 1 is better):"
    )
    kinds = list(calibration.left_out.items())
    for begin in range(0, len(kinds), _KINDS_PER_LINE):
        print_result("  ".join(f"{kind} {value:.3f}" for kind, value in kinds[begin : begin + _KINDS_PER_LINE]))
