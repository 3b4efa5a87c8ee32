"""Single options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from prefiqs_ext.cli.paths import INPUT_FILE
from prefiqs_ext.ranking import RANKINGS

_P = ParamSpec("_P")
_T = TypeVar("_T")

aligned_option = click.option(
    "--aligned", is_flag=True, help="The images are ready crops of exactly the preset's size."
)
allow_duplicates_option = click.option(
    "--allow-duplicates",
    is_flag=True,
    help="Accept files with the same content in two people's folders; without this they are refused.",
)
no_cache_option = click.option(
    "--no-cache", is_flag=True, help="Compute everything anew, and keep nothing for the next run."
)
settings_option = click.option(
    "--settings",
    type=INPUT_FILE,
    metavar="FILE",
    help="A file of `prefiqs calibrate` or `prefiqs tune`: model, preset, pruning and, if calibrated, the scale of the "
    "score.",
)
rank_by_option = click.option(
    "--rank-by",
    type=click.Choice(RANKINGS),
    help="Which number is the score that ranks. [default: calibrated, if --settings has a scale; else what ranks best "
    "with a known network; else quality]",
)


def seed_option(what: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Add --seed N, 0 or more.

    Args:
        what: What it is the seed of, as a sentence.
    """
    return click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help=f"Seed of {what}"
    )


def resamples_option(least: int, what: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Add --resamples N, the draws for intervals.

    Args:
        least: The smallest N.
        what: What is drawn, and for which intervals, as a sentence.
    """
    return click.option(
        "--resamples",
        type=click.IntRange(least),
        default=500,
        show_default=True,
        metavar="N",
        help=f"Number of bootstrap draws {what}",
    )


def output_folder_option(
    default: str, *, shown: str | bool = True, gets: str = "The folder to write to"
) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Add --output FOLDER, also -o.

    Args:
        default: The folder where none is given.
        shown: What the help calls it; True for its own name.
        gets: How the help begins.
    """
    return click.option(
        "--output",
        "-o",
        type=click.Path(path_type=Path, file_okay=False),
        default=default,
        show_default=shown,
        metavar="FOLDER",
        help=f"{gets}; it is made if it does not exist.",
    )
