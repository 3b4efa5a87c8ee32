"""--scores: qualities that another tool has written, one file a set of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.datasets.crops import Source
from prefiqs_ext.evaluation.datasets.readers import read_scores
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.text import format_path


def given_scores(options: dict[str, Any], names: Sequence[str]) -> dict[str, Path]:
    """The file or folder of each NAME of --scores. UsageError for what is not of that form, a NAME twice or among
    `names`, and a --lower-better of no NAME."""
    found: dict[str, Path] = {}
    for given in options["scores"]:
        name, equals, file = given.partition("=")
        if not (name and equals and file):
            raise click.UsageError(f"expected --scores NAME=FILE, got {given!r}")
        if name in found or name in names:
            raise click.UsageError(f"two methods are called {name!r}")
        found[name] = Path(file)
    unknown = set(options["lower_better"]) - set(found)
    if unknown:
        raise click.UsageError(f"--lower-better {sorted(unknown)[0]}: no --scores of that name")
    return found


def qualities(
    given: dict[str, Path], images: Sequence[Source], lower_better: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """[N] by name, HIGHER is better. ValueError as read_scores, and for a folder."""
    folder = next((path for path in given.values() if path.is_dir()), None)
    if folder is not None:
        raise InputError(
            f"--scores: expected a file, got the folder {format_path(str(folder))}; that is for --protocol paper"
        )
    scores = {name: read_scores(file, images) for name, file in given.items()}
    return {name: -each if name in lower_better else each for name, each in scores.items()}


def of_benchmark(given: dict[str, Path], dataset: str) -> tuple[dict[str, Path], list[str]]:
    """Of each NAME the file that has this benchmark's scores, and a line for each that has none.

    Folders are read as CR-FIQA's scripts write and read them: FOLDER/lfw/NAME.txt, FOLDER/lfw/NAME_lfw.txt or
    FOLDER/NAME_lfw.txt. Source: its evaluation/getQualityScore.py, ERC/erc.py and ERC/README.md.
    """
    found: dict[str, Path] = {}
    missing = []
    for name, path in given.items():
        places = (
            path / dataset / f"{name}.txt",
            path / dataset / f"{name}_{dataset}.txt",
            path / f"{name}_{dataset}.txt",
        )
        own = [place for place in ((path,) if path.is_file() else places) if place.is_file()]
        if len(own) > 1:
            raise InputError(
                f"two files of {name} for {dataset}: {format_path(str(own[0]))} and {format_path(str(own[1]))}"
            )
        if own:
            found[name] = own[0]
        else:
            missing.append(f"no scores of {name}: looked for {', '.join(format_path(str(place)) for place in places)}")
    return found, missing
