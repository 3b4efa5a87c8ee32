"""Images and persons, lists of pairs, and scores, from the files in use. Every fault is a ValueError of one line."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.datasets.crops import Source, name_of
from prefiqs_ext.evaluation.datasets.names import Names
from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.files.folders import (
    SUFFIXES,
    FolderReader,
    describe_ignored,
    get_suffix,
    list_folder,
    strip_image_suffix,
)
from prefiqs_ext.utils.text import format_path, read_lines

_SAME = 1e-5  # relative: a GPU gives an image in two batches scores that differ by less


class Images(NamedTuple):
    """Images and who they show: each is compared with every other."""

    images: Sequence[Source]
    identities: NDArray[np.int64]
    """[N] a number a person."""


class PairList(NamedTuple):
    """Comparisons to make."""

    images: Sequence[Source]
    pairs: NDArray[np.int64]
    """[P, 2] indices into images."""
    mated: NDArray[np.bool_]
    """[P]"""


def read_folders(root: str | os.PathLike[str], report: Callable[[str], None] = lambda line: None) -> Images:
    """A folder a person, sorted by name, with images in it at any depth, by the rule of files/folders.py.

    report: gets one line that counts the files in these folders that are no images by their suffix.
    """
    top = list_folder(os.fspath(root))
    stray = next((name for name, is_folder in top if not is_folder and get_suffix(name) in SUFFIXES), None)
    if stray is not None:
        path = format_path(os.path.join(root, stray))
        raise FileFormatError(
            f"{path} lies in no person's folder, so whom it shows is not known: move it there, or away"
        )
    people = [name for name, is_folder in top if is_folder]
    passed_over: Counter[str] = Counter()
    files = [_images_of(os.path.join(root, person), passed_over) for person in people]
    paths = [file for person in files for file in person]
    said = describe_ignored(passed_over)
    if not paths:
        others = describe_ignored(passed_over + Counter(get_suffix(name) for name, is_folder in top if not is_folder))
        none = f"{format_path(os.fspath(root))}: expected a folder a person with images in it, found none"
        raise FileFormatError(f"{none}; {others}" if others else none)
    if said:
        report(said)
    return Images(paths, np.repeat(np.arange(len(people)), [len(person) for person in files]))


def _images_of(person: str, passed_over: Counter[str]) -> list[str]:
    def refuse(folder: str, what: str) -> None:
        raise FileFormatError(f"{format_path(folder)}: {what}; take it out of the set")

    folders = FolderReader(refuse)
    found = list(folders.find_images(person))
    passed_over.update(folders.ignored)
    return found


def read_lfw_pairs(file: str | os.PathLike[str], root: str | os.PathLike[str]) -> PairList:
    """LFW's pairs.txt: a head of one or two numbers, then `name i j` (mated) or `name i other j`; image i of a person
    is called name_000i, with any image's suffix, and lies in root/name or below."""

    @cache
    def images_of(name: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in _images_of(os.path.join(root, name), Counter()):
            found.setdefault(strip_image_suffix(os.path.basename(path)), []).append(path)
        return found

    index: dict[str, int] = {}
    pairs, mated = [], []
    for number, line in read_lines(file):
        words = line.split()
        if number == 1 and len(words) <= 2:
            continue
        if len(words) not in (3, 4) or not (words[1].isdecimal() and words[-1].isdecimal()):
            raise FileFormatError(f"{file}:{number}: expected `name i j` or `name i other j`, got {line[:80]!r}")
        pair = []
        for name, which in ((words[0], words[1]), (words[-2] if len(words) == 4 else words[0], words[-1])):
            if not (Path(root) / name).is_dir():
                raise FileFormatError(f"{file}:{number}: no folder of {name!r} in {root}")
            image = f"{name}_{int(which):04d}"
            found = images_of(name).get(image, [])
            if not found:
                raise FileFormatError(f"{file}:{number}: no image {Path(root) / name / image}")
            if len(found) > 1:
                raise FileFormatError(
                    f"{file}:{number}: {image!r} may be {format_path(found[0])} or {format_path(found[1])}"
                )
            pair.append(_index(index, found[0]))
        pairs.append(pair)
        mated.append(len(words) == 3)
    return pair_list(file, list(index), pairs, mated)


def read_pair_list(images: str | os.PathLike[str], pairs: str | os.PathLike[str]) -> PairList:
    """image_path_list.txt, as read_images_listed, and pair_list.txt, `a b label` with label 1 = mated, be it padded. A
    pair names images by the ends of their paths, with or without suffix, see Names."""
    found = read_images_listed(images)
    names = Names(found)
    rows, mated = [], []
    for number, line in read_lines(pairs):
        words = line.split()
        if len(words) != 3 or not words[2].isdecimal() or words[2].lstrip("0") not in ("", "1"):
            raise FileFormatError(f"{pairs}:{number}: expected `name name 0|1`, got {line[:80]!r}")
        rows.append([_place(names, word, f"{pairs}:{number}", f"not in {images}") for word in words[:2]])
        mated.append(words[2].endswith("1"))
    return pair_list(pairs, found, rows, mated)


def read_images_listed(file: str | os.PathLike[str]) -> list[str]:
    """image_path_list.txt: a path a line, which may come again.

    It lies where the line says, relative to the list; or, as CR-FIQA's scripts write it, to the folder above
    quality_data; or in images beside the list, if that folder was renamed.
    """
    folder = Path(file).parent
    index: dict[str, int] = {}
    for number, line in read_lines(file):
        path = line.strip()
        # absolute(), or the folder above "." would be none. A path that is absolute replaces what stands before it.
        places = (folder / path, folder.absolute().parent.parent / path, folder / "images" / Path(path).name)
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileFormatError(f"{file}:{number}: no image {places[0]}")
        _index(index, str(found))
    if not index:
        raise FileFormatError(f"{file}: expected images, found none")
    return list(index)


def _place(names: Names, word: str, where: str, none: str) -> int:
    """ValueError, naming file and line, for a name of no image or of two."""
    try:
        place = names.find(word)
    except ValueError as error:
        raise FileFormatError(f"{where}: {error}") from None
    if place is None:
        raise FileFormatError(f"{where}: {word!r} is {none}")
    return place


def read_scores(file: str | os.PathLike[str], images: Sequence[Source]) -> NDArray[np.float64]:
    """[len(images)] from lines `path score`; a path is known by its end, see Names.

    Every image must have one finite score, and may have it again; scores of other images are a fault as well.
    """
    names = Names(images)
    scores = np.full(len(images), np.nan)
    for number, line in read_lines(file):
        try:
            path, value = line.strip().rsplit(maxsplit=1)
            score = float(value)
        except ValueError:
            raise FileFormatError(f"{file}:{number}: expected `path score`, got {line[:80]!r}") from None
        place = _place(names, path, f"{file}:{number}", "none of the images")
        if not math.isfinite(score):
            raise FileFormatError(f"{file}:{number}: expected a finite score, got {value}")
        if np.isnan(scores[place]):
            scores[place] = score
        elif not math.isclose(scores[place], score, rel_tol=_SAME):
            raise FileFormatError(f"{file}:{number}: another score of {path!r}, {score:g} after {scores[place]:g}")
    missing = np.flatnonzero(np.isnan(scores))
    if len(missing):
        raise FileFormatError(f"{file}: no score of {len(missing)} images, the first {name_of(images[missing[0]])}")
    return scores


def read_embeddings(
    path: str | os.PathLike[str], images: Sequence[Source], listed: str | os.PathLike[str] | None = None
) -> NDArray[np.float32]:
    """[len(images), d] of unit length, as another tool has saved them.

    Args:
        path: a .npy of [N, d]; or a folder with a .npy of [d] or [1, d] an image, person/image.npy or image.npy. The
            image is called as its file without suffix, or, from a .bin, by its number of five digits, as CR-FIQA's
            scripts do. What a folder has beside them is not looked at.
        listed: to a file [N, d], an image_path_list.txt of N lines; a path is known by its end, see Names. Without
            it the rows are the images, in order.

    Raises:
        ValueError: a missing, second or superfluous embedding, one of another length, not finite or zero, numbers that
            are not floating, pickled data.
    """
    if Path(path).is_dir():
        found = _embeddings_of_images(Path(path), images)
    else:
        found = read_array(path)
        if found.ndim != 2:
            raise FileFormatError(f"{path}: expected embeddings [N, d], got {list(found.shape)}")
        if listed is not None:
            found = found[_rows(listed, images, len(found))]
        if len(found) != len(images):
            raise FileFormatError(f"{path}: expected embeddings of {len(images)} images, got {len(found)}")
    with np.errstate(over="ignore"):  # an overflow is infinite
        embeddings = np.array(found, np.float32)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise FileFormatError(
            f"{path}: expected finite embeddings that are not 0; {name_of(images[bad[0]])} has another"
        )
    embeddings /= norms
    return embeddings


def _embeddings_of_images(folder: Path, images: Sequence[Source]) -> NDArray[np.floating]:
    files: dict[Path, int] = {}
    rows: list[NDArray[np.floating]] = []
    for i, (image, parts) in enumerate(zip(images, Names(images).keys, strict=True)):
        places = [folder.joinpath(*parts[k:]) for k in range(len(parts))]
        file = next((f for f in (place.with_name(f"{place.name}.npy") for place in places) if f.is_file()), None)
        if file is None:
            raise FileFormatError(f"{name_of(image)}: no embedding {places[0]}.npy")
        if files.setdefault(file, i) != i:
            raise FileFormatError(f"{file}: expected an embedding an image; {name_of(images[files[file]])} has it too")
        row = read_array(file)
        length = rows[0].size if rows else row.size
        if row.shape not in ((length,), (1, length)):
            raise FileFormatError(f"{file}: expected [{length if rows else 'd'}], got {list(row.shape)}")
        rows.append(np.ravel(row))
    return np.stack(rows)


def _rows(listed: str | os.PathLike[str], images: Sequence[Source], count: int) -> list[int]:
    """The place of each image in the list."""
    names = Names(images)
    rows: dict[int, int] = {}
    count_listed = 0
    for number, line in read_lines(listed):
        try:
            place = names.find(line.strip())
        except ValueError as error:
            raise FileFormatError(f"{listed}:{number}: {error}") from None
        if place in rows:
            raise FileFormatError(f"{listed}:{number}: {line.strip()!r} is listed twice")
        if place is not None:
            rows[place] = count_listed
        count_listed += 1
    if count_listed != count:
        raise FileFormatError(f"{listed}: expected {count} images, one an embedding, got {count_listed}")
    missing = next((i for i in range(len(images)) if i not in rows), None)
    if missing is not None:
        raise FileFormatError(f"{listed}: {name_of(images[missing])} is not listed")
    return [rows[i] for i in range(len(images))]


def read_array(file: str | os.PathLike[str]) -> NDArray[np.floating]:
    """Of floating-point numbers: a memory map, so that no header can ask for more than the file has. ValueError for any
    other file."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header is parsed as Python: TokenError, RecursionError, ...
        raise FileFormatError(f"{file}: expected a .npy of numbers; {' '.join(str(error).split())[:120]}") from None
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        raise FileFormatError(f"{file}: expected a .npy of floating-point numbers")
    return array


def _index(index: dict[str, int], path: str) -> int:
    return index.setdefault(path, len(index))


def pair_list(
    file: str | os.PathLike[str], images: Sequence[Source], pairs: Sequence[Sequence[int]], mated: list[bool]
) -> PairList:
    """What was read from `file`, which must have had pairs."""
    if not pairs:
        raise FileFormatError(f"{file}: expected pairs, found none")
    return PairList(images, np.array(pairs, np.int64), np.array(mated))
