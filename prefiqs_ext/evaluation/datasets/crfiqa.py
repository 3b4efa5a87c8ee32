"""Reads quality_data/NAME, which CR-FIQA's scripts make of a benchmark for its own evaluation and that of GraFIQs.

Such a folder has images/, image_path_list.txt and pair_list.txt.

Source: CR-FIQA, feature_extraction/extract_{bin,xqlfw,adience}.py and ERC/README.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prefiqs_ext.evaluation.datasets.readers import Images, PairList, read_image_list, read_pair_list
from prefiqs_ext.evaluation.datasets.sources import Source, SwappedCrop, get_name
from prefiqs_ext.faces import read_rgb
from prefiqs_ext.files.folders import strip_image_suffix

IMAGE_LIST = "image_path_list.txt"
"""The list of images in such a folder."""
_LOOKED_AT = 50  # images whose colours tell the order of the channels
# By how many levels blue must exceed red to say that they are swapped. On 2284 faces of LFW red exceeds blue by 49 on
# average, and in the worst of 2000 random draws of 50 faces by 40.
_LEAST_EXCESS = 5
_PERSON = re.compile(r"p_([^_]+)_img_[^_]+")


def read_quality_data(folder: str | os.PathLike[str], pairs: Path | None = None) -> Images | PairList:
    """Read the folder as `read_pair_list` would read its two lists.

    The scripts write files with red and blue exchanged. The colours show whether these files are so, because skin has
    more red than blue.

    If the images are called p_PERSON_img_N (Adience), and pair_list.txt is missing or has the size of a list of all
    pairs (gigabytes), it is not read. Then every image is compared with every other.

    Args:
        folder: quality_data/NAME.
        pairs: A list of pairs in place of the folder's pair_list.txt.

    Raises:
        FileFormatError: A list is not as expected; the error names file and line.
        FileAccessError: A list is missing or cannot be read.
    """
    file = Path(folder) / IMAGE_LIST
    if pairs is None:
        images = read_image_list(file)
        names = [strip_image_suffix(Path(name).name) for name in images]
        people = [_PERSON.fullmatch(name) for name in names]
        pairs = Path(folder) / "pair_list.txt"
        sizes = [len(os.fsencode(name)) for name in names]
        # A line is `a b 0`, and each name is in len(names) - 1 of the lines.
        everything = (len(names) - 1) * (sum(sizes) + 2 * len(names))
        if all(people) and (not os.path.exists(pairs) or pairs.stat().st_size == everything):
            identities = np.unique([person[1] for person in people if person], return_inverse=True)[1]
            return Images(_make_sources(images), identities)
    data = read_pair_list(file, pairs)
    return data._replace(images=_make_sources(list(map(get_name, data.images))))


def _make_sources(files: list[str]) -> Sequence[Source]:
    some = files[:: -(-len(files) // _LOOKED_AT)]
    red, _, blue = np.mean([read_rgb(file).mean((0, 1)) for file in some], axis=0)
    return [*map(SwappedCrop, files)] if blue > red + _LEAST_EXCESS else files
