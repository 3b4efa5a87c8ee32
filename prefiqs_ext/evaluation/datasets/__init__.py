"""Images and what says which of them are compared, from the files in use; benchmarks.py finds the paper's eight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefiqs_ext.evaluation.datasets.bins import read_bin
from prefiqs_ext.evaluation.datasets.quality_data import LIST, read_quality_data
from prefiqs_ext.evaluation.datasets.readers import Images, PairList, read_folders, read_lfw_pairs, read_pair_list
from prefiqs_ext.evaluation.datasets.templates import Templates, read_ijbc
from prefiqs_ext.exceptions import FileFormatError

Data = Images | PairList | Templates
"""Each has `images`, a sequence of sources that read_crops takes."""


def read_data(data: Path, pairs: Path | None = None, report: Callable[[str], None] = lambda line: None) -> Data:
    """A folder a person, with LFW's pairs.txt as `pairs` or to be compared each with every other; CR-FIQA's folder
    quality_data/NAME; a list of images with a list of pairs; InsightFace's .bin; its folder IJBC.

    report: gets one line that counts the files passed over.

    ValueError, in one line, for anything else."""
    if pairs is None and (data / "meta" / "ijbc_face_tid_mid.txt").exists():
        return read_ijbc(data / "meta", data / "loose_crop")
    if (data / LIST).is_file():
        return read_quality_data(data, pairs)
    if data.is_dir():
        return read_folders(data, report) if pairs is None else read_lfw_pairs(pairs, data)
    if data.suffix == ".bin":
        if pairs is not None:
            raise FileFormatError(f"{data} has its own pairs: leave --pairs out")
        return read_bin(data)
    if pairs is None:
        raise FileFormatError(f"{data}: expected --pairs FILE beside a list of images, or a folder a person, or a .bin")
    if data.name == LIST and (data.parent / "images").is_dir():
        return read_quality_data(data.parent, pairs)
    return read_pair_list(data, pairs)
