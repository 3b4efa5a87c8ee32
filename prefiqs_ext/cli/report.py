"""`prefiqs report`: a folder's faces, best to worst, as one HTML page."""

from __future__ import annotations

import os
from contextlib import closing

import click
from tqdm import tqdm

from prefiqs_ext import __version__
from prefiqs_ext.cli.device import device_option
from prefiqs_ext.cli.messages import tell
from prefiqs_ext.files.paths import find_paths
from prefiqs_ext.files.pipeline import score_files
from prefiqs_ext.models import weights
from prefiqs_ext.report import Selection, render
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.text import format_path


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.option("--aligned", is_flag=True, help="The images are ready crops of 112 x 112 pixels: no faces are searched.")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    default="report.html",
    show_default=True,
    help="The page to write.",
)
@device_option
def report(folder: str, aligned: bool, output: str, device: str) -> None:
    """Score a folder and write it as one HTML page.

    Faces best to worst with their numbers, a histogram of quality, and what could not be scored.

    The page has all in itself and loads nothing; pass it on as it is. Of a large folder it shows the best 200 and the
    worst 200 faces, and counts all. Scored with the built-in network; the exit code is 1 if nothing could be scored.

    \b
    Examples:
      prefiqs report photos/
      prefiqs report crops/ --aligned --output crops.html
    """
    paths = find_paths([folder], tell)
    with atomic_write(output) as file:
        scorer = Scorer(device=device, on_bad="nan")
        selection = Selection()
        rows = score_files(paths, scorer, aligned=aligned, workers=_workers(len(paths)))
        with closing(rows):  # ends the workers when this is interrupted
            for scored in tqdm(rows, total=len(paths), unit="file", disable=None, leave=False):
                selection.add(scored.records)
        file.write(render(selection, folder, _facts(aligned)).encode())
    click.echo(format_path(output))
    if not selection.counts["ok"]:
        raise click.ClickException(f"no face could be scored; {format_path(output)} says why")


def _workers(files: int) -> int:
    """Starting processes costs a few seconds, which a handful of images does not repay."""
    return min(2, os.cpu_count() or 1) if files > 100 else 0


def _facts(aligned: bool) -> dict[str, str]:
    return {
        "Network": f"SFace (OpenCV Zoo, {weights.known('sface').licence}), 40 % of each convolution's weights pruned",
        "Input": "aligned crops" if aligned else "photos; faces found by YuNet and aligned to 112 x 112",
        "Made with": f"prefiqs_ext {__version__}",
    }
