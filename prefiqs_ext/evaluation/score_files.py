"""Qualities that another tool has written, to be compared with ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.datasets.readers import read_scores
from prefiqs_ext.evaluation.datasets.sources import Source
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.text import format_path


@dataclass(frozen=True)
class ScoreFile:
    """One quality of another tool: a file of lines ``path score``, or a folder with one such file per benchmark.

    Attributes:
        name: What the tables call this quality.
        path: The file. With the paper's benchmarks, a folder laid out as CR-FIQA's scripts write and read it:
            FOLDER/lfw/NAME.txt, FOLDER/lfw/NAME_lfw.txt or FOLDER/NAME_lfw.txt. Source: its
            evaluation/getQualityScore.py, ERC/erc.py and ERC/README.md.
        higher_is_better: False turns the scores round when they are read.
    """

    name: str
    path: str | PathLike[str]
    higher_is_better: bool = True

    def read(self, images: Sequence[Source]) -> NDArray[np.float64]:
        """Read the scores of these images.

        Returns:
            [N] float64, HIGHER is better.

        Raises:
            InputError: the path is a folder.
            FileFormatError: as :func:`read_scores`.
        """
        path = Path(self.path)
        if os.path.isdir(path):
            raise InputError(
                f"scores of {self.name}: expected a file, got the folder {format_path(str(path))}; "
                "a folder is for the paper's benchmarks"
            )
        scores = read_scores(path, images)
        return scores if self.higher_is_better else -scores

    def find(self, dataset: str) -> Path | None:
        """Find the file of one benchmark, by the name that CR-FIQA's scripts give it; None if there is none.

        Raises:
            InputError: there are two.
        """
        found = [place for place in self.list_places(dataset) if os.path.isfile(place)]
        if len(found) > 1:
            one, other = (format_path(str(place)) for place in found)
            raise InputError(f"two files of {self.name} for {dataset}: {one} and {other}; take one away")
        return found[0] if found else None

    def list_places(self, dataset: str) -> list[Path]:
        """List the files that may hold the scores of this benchmark."""
        path = Path(self.path)
        if os.path.isfile(path):
            return [path]
        return [
            path / dataset / f"{self.name}.txt",
            path / dataset / f"{self.name}_{dataset}.txt",
            path / f"{self.name}_{dataset}.txt",
        ]
