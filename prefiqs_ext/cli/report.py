"""`prefiqs report`: the faces of a folder, from best to worst, as one HTML page."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prefiqs_ext.cli.messages import tell, tell_summary
from prefiqs_ext.cli.options import ScoringOptions, scoring_options
from prefiqs_ext.cli.paths import INPUT_FOLDER
from prefiqs_ext.cli.shared_options import aligned_option, rank_by_option, settings_option
from prefiqs_ext.cli.throughput import Throughput, throughput_options
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.text import format_path

if TYPE_CHECKING:
    from prefiqs_ext.scorer import Scorer


@click.command()
@click.argument("folder", metavar="FOLDER", type=INPUT_FOLDER)
@aligned_option
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    default="report.html",
    show_default=True,
    help="The page to write.",
)
@scoring_options
@settings_option
@rank_by_option
@throughput_options
def report(folder: Path, aligned: bool, output: Path, scoring: ScoringOptions, throughput: Throughput) -> None:
    """Score a folder and show it as one HTML page.

    The page shows faces from best to worst with their numbers, a histogram of their scores, and what could not be
    scored; at its foot it says which network scored them and how. It loads nothing from elsewhere, so you can pass it
    on as one file. Of a large folder it shows the 200 best and the 200 worst faces, and counts all. The exit code is 1
    if nothing could be scored.

    \b
    Examples:
      prefiqs report photos/
      prefiqs report crops/ --aligned --output crops.html
      prefiqs report photos/ --model backbone.pth --preset arcface
    """
    from prefiqs_ext.files import InputImages, find_paths
    from prefiqs_ext.report import Selection, render

    images = InputImages(find_paths([str(folder)], tell))
    selection = Selection()
    count = 0
    with atomic_write(str(output)) as file:
        scorer = scoring.make_scorer()
        with closing(throughput.score(images, scorer, aligned=aligned, total=images.total)) as scored_files:
            for scored in scored_files:
                selection.add(scored.records)
                count += 1
        facts = _describe_run(scorer, aligned=aligned)
        file.write(render(selection, str(folder), facts, scorer.rank_by, scorer.settings.calibration).encode())
    if not selection.counts["ok"]:
        raise InputError(f"no face could be scored; {format_path(str(output))} says why")
    tell_summary(count, selection.counts.items(), output)


def _describe_run(scorer: Scorer, *, aligned: bool) -> dict[str, str]:
    """Return what the foot of the page says: label -> text."""
    from prefiqs_ext.models import weights
    from prefiqs_ext.version import __version__

    settings = scorer.settings
    name = settings.model or ""
    known = weights.KNOWN.get(name)
    origin = f"licence {known.licence}" if known is not None else f"SHA-256 of its weights {settings.model_sha256[:12]}"
    pruning, preset = settings.pruning, settings.preset
    layers = pruning.layers if isinstance(pruning.layers, str) else ", ".join(pruning.layers)
    assert preset is not None  # the options see to it
    height, width = preset.size
    size = f"{width} x {height} pixels, preset {preset.name}"
    return {
        "Network": f"{format_path(name)} ({origin}), computed in {settings.dtype} on {settings.device}",
        "Pruning": f"{pruning.method}, {pruning.sparsity:.3g} of the weights; scope {pruning.scope}, layers {layers}",
        "Input": f"aligned crops of {size}" if aligned else f"photos; faces found by YuNet and aligned to {size}",
        "Made with": f"prefiqs_ext {__version__}",
    }
