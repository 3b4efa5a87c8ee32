"""The folders that CR-FIQA's scripts make of a benchmark, for its own and GraFIQs' evaluation: quality_data/NAME with
images/, image_path_list.txt and pair_list.txt.

Source: CR-FIQA, feature_extraction/extract_{bin,xqlfw,adience}.py and ERC/README.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...faces import read_rgb
from ...files.paths import SUFFIXES
from .crops import Source, Swapped
from .readers import Images, PairList, lines, pair_list

_LOOKED_AT = 50  # images, to tell the colour order
# On 2284 faces of LFW red exceeds blue by 49 levels on average; on the worst of 2000 random draws of 50 by 40.
_LEAST_EXCESS = 5
_PERSON = re.compile(r"p_([^_]+)_img_[^_]+")


def read_quality_data(folder: str | os.PathLike[str]) -> PairList:
    """image_path_list.txt has a path a line, relative to the folder above quality_data; a path may come again.
    pair_list.txt has `a b label` with a file's name with or without its suffix, and label 1 = mated, be it padded.

    The scripts write files with red and blue exchanged; whether these are is seen from their colours: skin has more
    red than blue.

    Raises:
        ValueError: naming file and line.
        OSError: a list is missing.
    """
    paths = _paths(Path(folder))
    places = {name: i for i, name in enumerate(paths)}
    file = Path(folder) / "pair_list.txt"
    pairs, mated = [], []
    for number, line in lines(file):
        words = line.split()
        if len(words) != 3 or not words[2].isdecimal() or words[2].lstrip("0") not in ("", "1"):
            raise ValueError(f"{file}:{number}: expected `name name 0|1`, got {line[:80]!r}")
        pair = []
        for word in words[:2]:
            place = places.get(_stem(word))
            if place is None:
                raise ValueError(f"{file}:{number}: {word!r} is not in image_path_list.txt")
            pair.append(place)
        pairs.append(pair)
        mated.append(words[2].endswith("1"))
    return pair_list(file, _sources(list(paths.values())), pairs, mated)


def read_adience(folder: str | os.PathLike[str]) -> Images | PairList:
    """As read_quality_data; but where images are called p_PERSON_img_N and pair_list.txt has the size of a list of all
    pairs (gigabytes), or is not there, it is not read: every image is to be compared with every other."""
    paths = _paths(Path(folder))
    people = [_PERSON.fullmatch(name) for name in paths]
    file = Path(folder) / "pair_list.txt"
    sizes = [len(os.fsencode(name)) for name in paths]
    # A line is `a b 0`; each name is in len(paths) - 1 of them.
    everything = (len(paths) - 1) * (sum(sizes) + 2 * len(paths))
    if all(people) and (not file.exists() or file.stat().st_size == everything):
        identities = np.unique([person[1] for person in people if person], return_inverse=True)[1]
        return Images(_sources(list(paths.values())), identities)
    return read_quality_data(folder)


def _paths(folder: Path) -> dict[str, str]:
    """Of each listed image: its name without suffix, and where it is."""
    file = folder / "image_path_list.txt"
    paths: dict[str, str] = {}
    for number, line in lines(file):
        # Above quality_data, or beside the list if that folder was renamed.
        places = (folder.parent.parent / line, folder / "images" / Path(line).name)
        path = next((str(place) for place in places if place.is_file()), None)
        if path is None:
            raise ValueError(f"{file}:{number}: no image {places[0]}")
        if paths.setdefault(_stem(line), path) != path:
            raise ValueError(f"{file}:{number}: another image is called {_stem(line)!r}")
    if not paths:
        raise ValueError(f"{file}: expected images, found none")
    return paths


def _stem(path: str) -> str:
    name = Path(path).name
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def _sources(files: list[str]) -> Sequence[Source]:
    some = files[:: -(-len(files) // _LOOKED_AT)]
    red, _, blue = np.mean([read_rgb(file).mean((0, 1)) for file in some], axis=0)
    return [*map(Swapped, files)] if blue > red + _LEAST_EXCESS else files
