"""Reads evaluation data: images, and which of them are compared. benchmarks.py finds the paper's eight sets."""

from __future__ import annotations

import os
from pathlib import Path

from prefiqs_ext.evaluation.datasets.crfiqa import IMAGE_LIST, read_quality_data
from prefiqs_ext.evaluation.datasets.ijbc import Templates, read_ijbc
from prefiqs_ext.evaluation.datasets.insightface_bin import read_bin
from prefiqs_ext.evaluation.datasets.readers import Images, PairList, read_folders, read_lfw_pairs, read_pair_list
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.tell import Tell, tell_nobody

Data = Images | PairList | Templates
"""Each has `images`, a sequence of sources that read_every_crop takes."""


def read_data(
    data: str | os.PathLike[str], pairs: str | os.PathLike[str] | None = None, tell: Tell = tell_nobody
) -> Data:
    """Read evaluation data in any of the layouts in use.

    Args:
        data: A folder with one folder per person; CR-FIQA's folder quality_data/NAME; a list of images; InsightFace's
            .bin, or its folder IJBC.
        pairs: A list of pairs for a list of images, or LFW's pairs.txt for a folder of people. Without it, the images
            in a folder of people are compared each with every other.
        tell: Gets one line that counts the files that are ignored.

    Raises:
        InputError: `data` is none of these, or `pairs` is missing or superfluous.
        FileFormatError: A file is not what was expected; the error names file and line.
        FileAccessError: A file or folder is missing or cannot be read.
    """
    data, pairs = Path(data), None if pairs is None else Path(pairs)
    if pairs is None and os.path.exists(data / "meta" / "ijbc_face_tid_mid.txt"):
        return read_ijbc(data / "meta", data / "loose_crop")
    if os.path.isfile(data / IMAGE_LIST):
        return read_quality_data(data, pairs)
    if os.path.isdir(data):
        return read_folders(data, tell) if pairs is None else read_lfw_pairs(pairs, data)
    if data.suffix == ".bin":
        if pairs is not None:
            raise InputError(f"{data} has its own pairs: leave pairs (--pairs) out")
        return read_bin(data)
    if pairs is None:
        raise InputError(
            f"{data}: expected a list of pairs (--pairs FILE) beside a list of images, or a folder with one folder per "
            "person, or a .bin"
        )
    if data.name == IMAGE_LIST and os.path.isdir(data.parent / "images"):
        return read_quality_data(data.parent, pairs)
    return read_pair_list(data, pairs)
