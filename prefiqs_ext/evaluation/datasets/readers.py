"""Reads images and persons, lists of pairs, scores and embeddings from the files in use.

Every fault of a file is a FileFormatError of one line that names it; a file that is missing or cannot be read is a
FileAccessError.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.array_types import Floats
from prefiqs_ext.evaluation.datasets.image_names import Names
from prefiqs_ext.evaluation.datasets.sources import Source, get_name
from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.files.folders import (
    SUFFIXES,
    FolderReader,
    describe_ignored,
    list_folder,
    strip_image_suffix,
)
from prefiqs_ext.utils.regular_file import open_regular, read_lines
from prefiqs_ext.utils.suffixes import get_suffix
from prefiqs_ext.utils.tell import Tell, tell_nobody
from prefiqs_ext.utils.text import describe_error, format_path, format_untrusted

_MOST_NUMBERS = 1 << 16  # of one embedding: so many images cannot take more memory than so many such embeddings
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_SAME = 1e-5  # relative difference of scores of one image: in two batches on a GPU (H200) they differ by less


class Images(NamedTuple):
    """Images and who they show. Each is compared with every other.

    Attributes:
        images: All N images.
        identities: [N] one number per person.
    """

    images: Sequence[Source]
    identities: NDArray[np.int64]


class PairList(NamedTuple):
    """Comparisons to make.

    Attributes:
        images: All N images.
        pairs: [P, 2] indices into images.
        mated: [P] whether both images show one person.
    """

    images: Sequence[Source]
    pairs: NDArray[np.int64]
    mated: NDArray[np.bool_]


def read_folders(root: str | os.PathLike[str], tell: Tell = tell_nobody) -> Images:
    """Read a folder with one folder per person, in order of their names.

    Images lie in a person's folder at any depth. Which files are images is said in files/folders.py.

    Args:
        root: The folder.
        tell: Gets one line that counts the files in these folders that are ignored, as they are no images by their
            suffix.

    Raises:
        FileFormatError: An image lies in no person's folder, a folder cannot be read, or there is no image at all.
    """
    top = list_folder(os.fspath(root))
    stray = next((name for name, is_folder in top if not is_folder and get_suffix(name) in SUFFIXES), None)
    if stray is not None:
        path = format_path(os.path.join(root, stray))
        raise FileFormatError(
            f"{path} lies in no person's folder, so whom it shows is not known: move it there, or away"
        )
    people = [name for name, is_folder in top if is_folder]
    ignored: Counter[str] = Counter()
    files = [_find_images(os.path.join(root, person), ignored) for person in people]
    paths = [file for person in files for file in person]
    said = describe_ignored(ignored)
    if not paths:
        others = describe_ignored(ignored + Counter(get_suffix(name) for name, is_folder in top if not is_folder))
        none = f"{format_path(os.fspath(root))}: expected one folder per person with images in it, found none"
        raise FileFormatError(f"{none}; {others}" if others else none)
    if said:
        tell(said)
    return Images(paths, np.repeat(np.arange(len(people)), [len(person) for person in files]))


def _find_images(person: str, ignored: Counter[str]) -> list[str]:
    def refuse(folder: str, what: str) -> None:
        raise FileFormatError(f"{format_path(folder)}: {what}; take it out of the set")

    folders = FolderReader(refuse)
    found = list(folders.find_images(person))
    ignored.update(folders.ignored)
    return found


def read_lfw_pairs(file: str | os.PathLike[str], root: str | os.PathLike[str]) -> PairList:
    """Read LFW's pairs.txt.

    The first line may be a head of one or two numbers. The other lines are `name i j` (mated) or `name i other j`.

    Args:
        file: pairs.txt.
        root: Image i of a person is called name_000i, with the suffix of any image format, and lies in root/name or
            below.

    Raises:
        FileFormatError: A line of another form, or an image that is not there or is there twice.
        FileAccessError: The file is missing or cannot be read.
    """

    @cache
    def find_images_of(name: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in _find_images(os.path.join(root, name), Counter()):
            found.setdefault(strip_image_suffix(os.path.basename(path)), []).append(path)
        return found

    index: dict[str, int] = {}
    pairs, mated = [], []
    for number, line in read_lines(file):
        words = line.split()
        if number == 1 and len(words) <= 2:
            continue
        if len(words) not in (3, 4) or not (_is_number(words[1]) and _is_number(words[-1])):
            raise FileFormatError(f"{file}:{number}: expected `name i j` or `name i other j`, got {line[:80]!r}")
        pair = []
        for name, which in ((words[0], words[1]), (words[-2] if len(words) == 4 else words[0], words[-1])):
            if not os.path.isdir(Path(root) / name):
                raise FileFormatError(f"{file}:{number}: no folder of {name[:80]!r} in {root}")
            image = f"{name}_{int(which):04d}"
            found = find_images_of(name).get(image, [])
            if not found:
                raise FileFormatError(f"{file}:{number}: no image {_format_long(Path(root) / name / image)}")
            if len(found) > 1:
                raise FileFormatError(
                    f"{file}:{number}: {image!r} may be {format_path(found[0])} or {format_path(found[1])}"
                )
            pair.append(_get_index(index, found[0]))
        pairs.append(pair)
        mated.append(len(words) == 3)
    return make_pair_list(file, list(index), pairs, mated)


def read_pair_list(images: str | os.PathLike[str], pairs: str | os.PathLike[str]) -> PairList:
    """Read a list of images and a list of pairs.

    Args:
        images: image_path_list.txt, see `read_image_list`.
        pairs: pair_list.txt, with lines `a b label` and label 1 (or 01, ...) for mated. Images are named by the ends of
            their paths, with or without suffix, see `Names`.

    Raises:
        FileFormatError: A line of another form, or a name of no image or of two.
        FileAccessError: A list is missing or cannot be read.
    """
    found = read_image_list(images)
    names = Names(found)
    rows, mated = [], []
    for number, line in read_lines(pairs):
        words = line.split()
        if len(words) != 3 or not words[2].isdecimal() or words[2].lstrip("0") not in ("", "1"):
            raise FileFormatError(f"{pairs}:{number}: expected `name name 0|1`, got {line[:80]!r}")
        rows.append([_find_place(names, word, f"{pairs}:{number}", f"not in {images}") for word in words[:2]])
        mated.append(words[2].endswith("1"))
    return make_pair_list(pairs, found, rows, mated)


def read_image_list(file: str | os.PathLike[str]) -> list[str]:
    """Read image_path_list.txt: one path per line, each image once even if its path comes again.

    An image lies where its line says, relative to the list; or, as CR-FIQA's scripts write it, relative to the folder
    above quality_data; or in the folder images beside the list, if quality_data/NAME was renamed.

    Raises:
        FileFormatError: An image is not there, or the list is empty.
        FileAccessError: The list is missing or cannot be read.
    """
    folder = Path(file).parent
    index: dict[str, int] = {}
    for number, line in read_lines(file):
        path = line.strip()
        # Without absolute() there would be no folder above ".". An absolute path replaces what stands before it.
        places = (folder / path, folder.absolute().parent.parent / path, folder / "images" / Path(path).name)
        found = next((place for place in places if os.path.isfile(place)), None)
        if found is None:
            raise FileFormatError(f"{file}:{number}: no image {_format_long(places[0])}")
        _get_index(index, str(found))
    if not index:
        raise FileFormatError(f"{file}: expected images, found none")
    return list(index)


def _find_place(names: Names, word: str, where: str, none: str) -> int:
    """Find the image of a name; a name of no image or of two is an error with file and line."""
    try:
        place = names.find(word)
    except ValueError as error:
        raise FileFormatError(f"{where}: {error}") from None
    if place is None:
        raise FileFormatError(f"{where}: {word[:80]!r} is {none}")
    return place


def read_scores(file: str | os.PathLike[str], images: Sequence[Source]) -> NDArray[np.float64]:
    """Read a file of lines `path score`: float64 [N]. A path is known by its end, see `Names`.

    Raises:
        FileFormatError: A line of another form, a score that is not finite, two different scores of one image, an image
            without a score, or a score of none of the images.
        FileAccessError: The file is missing or cannot be read.
    """
    names = Names(images)
    scores = np.full(len(images), np.nan)
    for number, line in read_lines(file):
        try:
            path, value = line.strip().rsplit(maxsplit=1)
            score = float(value)
        except ValueError:
            raise FileFormatError(f"{file}:{number}: expected `path score`, got {line[:80]!r}") from None
        place = _find_place(names, path, f"{file}:{number}", "none of the images")
        if not math.isfinite(score):
            raise FileFormatError(f"{file}:{number}: expected a finite score, got {value[:80]!r}")
        if np.isnan(scores[place]):
            scores[place] = score
        elif not math.isclose(scores[place], score, rel_tol=_SAME):
            raise FileFormatError(f"{file}:{number}: another score of {path[:80]!r}, {score:g} after {scores[place]:g}")
    missing = np.flatnonzero(np.isnan(scores))
    if len(missing):
        raise FileFormatError(f"{file}: no score of {len(missing)} images, the first {get_name(images[missing[0]])}")
    return scores


def read_embeddings(
    path: str | os.PathLike[str], images: Sequence[Source], listed: str | os.PathLike[str] | None = None
) -> NDArray[np.float32]:
    """Read embeddings that another tool has saved, and normalise them: float32 [N, d] of length 1.

    Args:
        path: A .npy of [N, d]; or a folder with one .npy of [d] or [1, d] per image, person/image.npy or image.npy. The
            name of an image is that of its file without suffix, or, from a .bin, its number in five digits, as in
            CR-FIQA's scripts. Other files in the folder are ignored.
        images: The N images.
        listed: For a .npy of [N, d], an image_path_list.txt of N lines. A path is known by its end, see `Names`.
            Without it, the rows are the images in order.

    Raises:
        FileFormatError: A missing, second or superfluous embedding; one of another length, not finite or zero; numbers
            that are not floating-point; pickled data.
        FileAccessError: A file is missing or cannot be read.
    """
    if os.path.isdir(path):
        found = _read_folder_of_embeddings(Path(path), images)
    else:
        found = read_array(path)
        if found.ndim != 2:
            raise FileFormatError(f"{path}: expected embeddings [N, d], got {list(found.shape)}")
        _check_length(path, found.shape[1])
        if listed is not None:
            found = found[_match_rows(listed, images, len(found))]
        if len(found) != len(images):
            raise FileFormatError(f"{path}: expected embeddings of {len(images)} images, got {len(found)}")
    with np.errstate(over="ignore"):  # an overflow is infinite
        embeddings = np.array(found, np.float32)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise FileFormatError(
            f"{path}: expected finite embeddings that are not 0; {get_name(images[bad[0]])} has another"
        )
    embeddings /= norms
    return embeddings


def _read_folder_of_embeddings(folder: Path, images: Sequence[Source]) -> Floats:
    files: dict[Path, int] = {}
    rows: list[Floats] = []
    for i, (image, parts) in enumerate(zip(images, Names(images).keys, strict=True)):
        places = [folder.joinpath(*parts[k:]) for k in range(len(parts))]
        file = next((f for f in (place.with_name(f"{place.name}.npy") for place in places) if os.path.isfile(f)), None)
        if file is None:
            raise FileFormatError(f"{get_name(image)}: no embedding {places[0]}.npy")
        if files.setdefault(file, i) != i:
            raise FileFormatError(
                f"{file}: expected one embedding per image; {get_name(images[files[file]])} has it too"
            )
        row = read_array(file)
        _check_length(file, row.size)
        length = rows[0].size if rows else row.size
        if row.shape not in ((length,), (1, length)):
            raise FileFormatError(f"{file}: expected [{length if rows else 'd'}], got {list(row.shape)}")
        rows.append(np.ravel(row))
    return np.stack(rows)


def _check_length(file: str | os.PathLike[str], numbers: int) -> None:
    if numbers > _MOST_NUMBERS:
        raise FileFormatError(f"{file}: expected at most {_MOST_NUMBERS} numbers per embedding, got {numbers}")


def _match_rows(listed: str | os.PathLike[str], images: Sequence[Source], count: int) -> list[int]:
    """Find the row of each image by the list of the rows' images."""
    names = Names(images)
    rows: dict[int, int] = {}
    count_listed = 0
    for number, line in read_lines(listed):
        try:
            place = names.find(line.strip())
        except ValueError as error:
            raise FileFormatError(f"{listed}:{number}: {error}") from None
        if place in rows:
            raise FileFormatError(f"{listed}:{number}: {line.strip()[:80]!r} is listed twice")
        if place is not None:
            rows[place] = count_listed
        count_listed += 1
    if count_listed != count:
        raise FileFormatError(f"{listed}: expected {count} images, one per embedding, got {count_listed}")
    missing = next((i for i in range(len(images)) if i not in rows), None)
    if missing is not None:
        raise FileFormatError(f"{listed}: {get_name(images[missing])} is not listed")
    return [rows[i] for i in range(len(images))]


def read_array(file: str | os.PathLike[str]) -> Floats:
    """Map a .npy of floating-point numbers into memory, so that no header can ask for more than the file has.

    Raises:
        MissingFileError: There is no such file.
        FileAccessError: The file cannot be read.
        FileFormatError: The file is anything else.
    """
    with open_regular(file, "name a .npy file", if_denied="name a .npy file") as stream:
        try:
            array = _map_array(stream)
        except Exception as error:  # NumPy parses the header as Python, which can raise anything
            raise FileFormatError(
                f"{file}: expected a .npy of numbers; {format_untrusted(describe_error(error), 120)}"
            ) from None
    if not np.issubdtype(array.dtype, np.floating):
        raise FileFormatError(f"{file}: expected a .npy of floating-point numbers")
    return array


def _map_array(stream: IO[bytes]) -> Floats:
    """Map the array of an open .npy, as `np.load` does of a path, which it would open once more."""
    version = np.lib.format.read_magic(stream)
    if version not in _READ_HEADER:
        raise ValueError(f"its format is of version {version[0]}.{version[1]}")
    shape, column_major, dtype = _READ_HEADER[version](stream)
    if dtype.hasobject:
        raise ValueError("it has Python objects, which are not loaded")
    order: Literal["F", "C"] = "F" if column_major else "C"
    return np.memmap(stream, dtype, "r", stream.tell(), shape, order)


def _is_number(word: str) -> bool:
    return word.isdecimal() and len(word) < 10


def _format_long(path: Path) -> str:
    """Formats a path that a file made up, which may be long: what a person needs of it is its beginning."""
    return format_untrusted(format_path(os.fspath(path)), 400)


def _get_index(index: dict[str, int], path: str) -> int:
    return index.setdefault(path, len(index))


def make_pair_list(
    file: str | os.PathLike[str], images: Sequence[Source], pairs: Sequence[Sequence[int]], mated: list[bool]
) -> PairList:
    """Make a PairList of what was read from `file`.

    Raises:
        FileFormatError: The file had no pairs.
    """
    if not pairs:
        raise FileFormatError(f"{file}: expected pairs, found none")
    return PairList(images, np.array(pairs, np.int64), np.array(mated))
