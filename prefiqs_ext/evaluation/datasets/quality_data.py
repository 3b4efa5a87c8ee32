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

from prefiqs_ext.evaluation.datasets.crops import Source, Swapped, name_of
from prefiqs_ext.evaluation.datasets.readers import Images, PairList, read_images_listed, read_pair_list
from prefiqs_ext.faces import read_rgb
from prefiqs_ext.files.folders import strip_image_suffix

LIST = "image_path_list.txt"
_LOOKED_AT = 50  # images, to tell the colour order
# On 2284 faces of LFW red exceeds blue by 49 levels on average; on the worst of 2000 random draws of 50 by 40.
_LEAST_EXCESS = 5
_PERSON = re.compile(r"p_([^_]+)_img_[^_]+")


def read_quality_data(folder: str | os.PathLike[str], pairs: Path | None = None) -> Images | PairList:
    """As read_pair_list. The scripts write files with red and blue exchanged; whether these are is seen from their
    colours: skin has more red than blue.

    Where images are called p_PERSON_img_N (Adience) and pair_list.txt has the size of a list of all pairs (gigabytes),
    or is not there, it is not read: every image is to be compared with every other.

    Args:
        pairs: another list of pairs than pair_list.txt in the folder.

    Raises:
        ValueError: naming file and line.
        OSError: a list is missing.
    """
    file = Path(folder) / LIST
    if pairs is None:
        images = read_images_listed(file)
        names = [strip_image_suffix(Path(name).name) for name in images]
        people = [_PERSON.fullmatch(name) for name in names]
        pairs = Path(folder) / "pair_list.txt"
        sizes = [len(os.fsencode(name)) for name in names]
        # A line is `a b 0`; each name is in len(names) - 1 of them.
        everything = (len(names) - 1) * (sum(sizes) + 2 * len(names))
        if all(people) and (not pairs.exists() or pairs.stat().st_size == everything):
            identities = np.unique([person[1] for person in people if person], return_inverse=True)[1]
            return Images(_sources(images), identities)
    data = read_pair_list(file, pairs)
    return data._replace(images=_sources(list(map(name_of, data.images))))


def _sources(files: list[str]) -> Sequence[Source]:
    some = files[:: -(-len(files) // _LOOKED_AT)]
    red, _, blue = np.mean([read_rgb(file).mean((0, 1)) for file in some], axis=0)
    return [*map(Swapped, files)] if blue > red + _LEAST_EXCESS else files
