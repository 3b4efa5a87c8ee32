"""Reads IJB-C in the layout of InsightFace's release. It compares templates, each made of several images of one person.

Sources: InsightFace, recognition/_evaluation_/ijb; for qualities CR-FIQA, feature_extraction/ijb_pair_file.py.
"""

from __future__ import annotations

import os
from array import array
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.array_types import Floats
from prefiqs_ext.evaluation.datasets.sources import LandmarkedPhoto
from prefiqs_ext.exceptions import FileFormatError, InputError
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.regular_file import LONGEST_LINE, MARK, open_regular, read_lines
from prefiqs_ext.utils.text import format_path

_BLOCK = 20_000  # images summed at a time: 40 MB of embeddings of 2 kB
_LINES = 1_000_000  # pairs looked up at a time: 24 MB
_LIMIT = 10_000_000  # the numbers of templates are below this: a table of 40 MB has a place for each


class Templates(NamedTuple):
    """Comparisons of sets of images.

    Attributes:
        images: All N images.
        template: [N] the template of each image, 0 to T - 1.
        media: [N] the still or video of each image.
        ids: [T] the templates' numbers in the files, rising.
        pairs: [P, 2] templates.
        mated: [P] whether both templates show one person.
    """

    images: list[LandmarkedPhoto]
    template: NDArray[np.int64]
    media: NDArray[np.int64]
    ids: NDArray[np.int64]
    pairs: NDArray[np.int32]
    mated: NDArray[np.bool_]


def read_ijbc(meta: str | os.PathLike[str], loose_crop: str | os.PathLike[str]) -> Templates:
    """Read the folder IJBC.

    Args:
        meta: Its folder of lists. ijbc_face_tid_mid.txt has lines `name template media`. ijbc_name_5pts_score.txt has
            lines `name x1 y1 ... x5 y5 score` of the same images in the same order; the detector's score is not used.
            ijbc_template_pair_label.txt has lines `template template label`, with label 1 for mated.
        loose_crop: Its folder of images.

    Raises:
        FileFormatError: A line of another form, an image or a template that is not there, or landmarks that are not
            finite; the error names file and line.
        FileAccessError: A file or folder is missing or cannot be read.
    """
    meta, crops = Path(meta), Path(loose_crop)
    names, numbers, media = _read_faces(meta / "ijbc_face_tid_mid.txt", crops)
    landmarks = _read_landmarks(meta / "ijbc_name_5pts_score.txt", names)
    ids, template = np.unique(numbers, return_inverse=True)
    pairs, mated = _read_pairs(meta / "ijbc_template_pair_label.txt", ids)
    images = [LandmarkedPhoto(os.path.join(crops, name), points) for name, points in zip(names, landmarks, strict=True)]
    return Templates(images, template, media, ids, pairs, mated)


def pool_embeddings(embeddings: Floats, templates: Templates) -> NDArray[np.float32]:
    """Pool the images' embeddings into one per template: the mean over each medium, summed over the media.

    This is InsightFace's evaluation without its three options: flipped images, weights by the detector's score, and
    embeddings that keep their norm. CR-FIQA's evaluation uses neither of the last two; to an embedding it appends that
    of the flipped image.

    Args:
        embeddings: [N, d] of the images, L2-normalised; may be a memory map.
        templates: Which image belongs to which template and medium.

    Returns:
        [T, d] of unit length.

    Raises:
        InputError: Another number of embeddings, or a template whose sum is 0 or not finite.
    """
    n = len(templates.template)
    if embeddings.ndim != 2 or len(embeddings) != n:
        raise InputError(f"expected embeddings [{n}, d], got {list(embeddings.shape)}")
    both = np.stack([templates.template, templates.media], axis=1)
    _, medium, images = np.unique(both, axis=0, return_inverse=True, return_counts=True)
    weights = 1 / images[medium.ravel()]
    order, starts = _sort_by_template(templates)
    sums = np.empty((len(starts), embeddings.shape[1]), np.float32)
    first = 0
    while first < len(starts):
        # As many whole templates as fit, at least one.
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + _BLOCK)))
        end = starts[last] if last < len(starts) else n
        rows = order[starts[first] : end]
        weighted = embeddings[rows] * weights[rows, None]
        total = np.add.reduceat(weighted, starts[first:last] - starts[first], axis=0)
        norms = np.linalg.norm(total, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        if len(bad):
            raise InputError(f"template {templates.ids[first + bad[0]]}: its embeddings sum to 0 or are not finite")
        sums[first:last] = total / norms
        first = last
    return sums


def pool_qualities(qualities: Floats, templates: Templates) -> NDArray[np.float64]:
    """Pool the images' qualities into one per template: [T], that of its worst image, as in CR-FIQA's evaluation.

    Args:
        qualities: [N] of the images, HIGHER is better: negate a distance first.
        templates: Which image belongs to which template.

    Raises:
        InputError: Another number of qualities.
    """
    if np.shape(qualities) != templates.template.shape:
        raise InputError(f"expected {len(templates.template)} qualities, got {list(np.shape(qualities))}")
    order, starts = _sort_by_template(templates)
    return np.minimum.reduceat(np.asarray(qualities, np.float64)[order], starts)


def _sort_by_template(templates: Templates) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Sort the images by template: their order, and where each template begins in it."""
    order = np.argsort(templates.template, kind="stable")
    return order, np.searchsorted(templates.template[order], np.arange(len(templates.ids)))


def _read_faces(file: Path, crops: Path) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    with explain_read_errors(format_path(os.fspath(crops)), remedy="it is the folder of the images"):
        present = {entry.name for entry in os.scandir(crops)}
    names, numbers = [], array("q")
    for number, line in read_lines(file):
        words = line.split()
        if len(words) != 3 or not _is_template(words[1]) or not (words[2].isdecimal() and len(words[2]) < 19):
            raise FileFormatError(f"{file}:{number}: expected `name template media`, got {line[:80]!r}")
        if words[0] not in present:
            raise FileFormatError(f"{file}:{number}: no image {words[0][:80]!r} in {crops}")
        names.append(words[0])
        numbers.extend((int(words[1]), int(words[2])))
    if not names:
        raise FileFormatError(f"{file}: expected images, found none")
    if len(set(names)) != len(names):
        raise FileFormatError(f"{file}: expected every image once, got {len(names) - len(set(names))} repeated")
    template, media = np.array(numbers, np.int64).reshape(-1, 2).T
    return names, template, media


def _read_landmarks(file: Path, names: list[str]) -> NDArray[np.float64]:
    """Read the landmarks [N, 5, 2]."""
    values = array("d")
    count = 0
    for number, line in read_lines(file):
        name, *words = line.split()
        if count == len(names) or name != names[count]:
            raise FileFormatError(f"{file}:{number}: expected the order of ijbc_face_tid_mid.txt, got {name[:80]!r}")
        try:
            values.extend(_parse_landmarks(words))
        except ValueError:
            raise FileFormatError(
                f"{file}:{number}: expected `name x1 y1 ... x5 y5 score`, got {line[:80]!r}"
            ) from None
        count += 1
    if count != len(names):
        raise FileFormatError(f"{file}: expected {len(names)} images, got {count}")
    landmarks = np.array(values).reshape(-1, 5, 2)
    bad = np.flatnonzero(~np.isfinite(landmarks).all((1, 2)))
    if len(bad):
        raise FileFormatError(
            f"{file}: expected finite landmarks, got {landmarks[bad[0]].tolist()} for {names[bad[0]][:80]!r}"
        )
    return landmarks


def _parse_landmarks(words: list[str]) -> list[float]:
    numbers = list(map(float, words))
    if len(numbers) != 11:
        raise ValueError
    return numbers[:10]


def _read_pairs(file: Path, ids: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Read millions of lines as a whole. If something is wrong, read them line by line to say what it is."""
    places = np.full(_LIMIT + 1, -1, np.int32)  # the last place is for all numbers out of range
    places[ids] = np.arange(len(ids))
    try:
        if next(read_lines(file), None) is None:  # np.loadtxt would warn
            raise ValueError
        with open_regular(file, "name a list of pairs") as stream:
            stream.seek(len(MARK) if stream.read(len(MARK)) == MARK else 0)
            # In pieces of bounded length, so that a file without line ends is refused before it fills the memory.
            pieces = iter(partial(stream.readline, LONGEST_LINE), b"")
            rows = np.loadtxt(pieces, np.int32, comments=None, ndmin=2)
        if rows.shape[1] != 3:
            raise ValueError
        pairs, mated = np.empty((len(rows), 2), np.int32), np.empty(len(rows), bool)
        for start in range(0, len(rows), _LINES):
            part = slice(start, start + _LINES)
            pairs[part] = places[np.where((rows[part, :2] >= 0) & (rows[part, :2] < _LIMIT), rows[part, :2], _LIMIT)]
            mated[part] = rows[part, 2] == 1
            if (pairs[part] < 0).any() or (rows[part, 2] & ~1).any():
                raise ValueError
    except ValueError:
        _raise_pair_fault(file, ids)
    return pairs, mated


def _raise_pair_fault(file: Path, ids: NDArray[np.int64]) -> NoReturn:
    known = set(ids.tolist())
    for number, line in read_lines(file):
        words = line.split()
        if len(words) != 3 or not all(map(_is_template, words[:2])) or words[2] not in ("0", "1"):
            raise FileFormatError(f"{file}:{number}: expected `template template 0|1`, got {line[:80]!r}")
        for word in words[:2]:
            if int(word) not in known:
                raise FileFormatError(f"{file}:{number}: no image is of template {word}")
    raise FileFormatError(f"{file}: expected lines `template template 0|1`")


def _is_template(word: str) -> bool:
    return word.isdecimal() and len(word) < len(str(_LIMIT))
