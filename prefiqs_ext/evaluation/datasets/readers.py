"""Images and persons, lists of pairs, and scores, from the files in use. Every fault is a ValueError of one line."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...files.paths import SUFFIXES
from .crops import Encoded, Source, name_of

_BIN_BYTES = 4 << 30


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


def read_folders(root: str | os.PathLike[str]) -> Images:
    """A folder a person, sorted by name; files that are no images by their suffix are left out."""
    entries = sorted(Path(root).iterdir())
    stray = next(filter(_is_image, entries), None)
    if stray is not None:
        raise ValueError(f"{stray} lies in no person's folder, so whom it shows is not known: move it there, or away")
    people = [entry for entry in entries if entry.is_dir()]
    files = [sorted(filter(_is_image, person.iterdir())) for person in people]
    paths = [str(file) for person in files for file in person]
    if not paths:
        raise ValueError(f"{root}: expected a folder a person with images in it, found none")
    return Images(paths, np.repeat(np.arange(len(people)), [len(person) for person in files]))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def read_lfw_pairs(file: str | os.PathLike[str], root: str | os.PathLike[str]) -> PairList:
    """LFW's pairs.txt: a head of one or two numbers, then `name i j` (mated) or `name i other j`; image i of a person
    is root/name/name_000i.jpg."""
    index: dict[str, int] = {}
    pairs, mated = [], []
    for number, line in lines(file):
        words = line.split()
        if number == 1 and len(words) <= 2:
            continue
        if len(words) not in (3, 4) or not (words[1].isdecimal() and words[-1].isdecimal()):
            raise ValueError(f"{file}:{number}: expected `name i j` or `name i other j`, got {line[:80]!r}")
        pair = []
        for name, which in ((words[0], words[1]), (words[-2] if len(words) == 4 else words[0], words[-1])):
            if not (Path(root) / name).is_dir():
                raise ValueError(f"{file}:{number}: no folder of {name!r} in {root}")
            pair.append(_index(index, _existing(Path(root) / name / f"{name}_{int(which):04d}.jpg", file, number)))
        pairs.append(pair)
        mated.append(len(words) == 3)
    return pair_list(file, list(index), pairs, mated)


def read_pair_list(images: str | os.PathLike[str], pairs: str | os.PathLike[str]) -> PairList:
    """image_path_list.txt, a path a line, and pair_list.txt, `a b label` with label 1 = mated; the paths must be
    listed, and lie where they say or relative to the list."""
    index: dict[str, int] = {}
    found = []
    for number, line in lines(images):
        if line in index:
            raise ValueError(f"{images}:{number}: {line!r} is listed twice")
        _index(index, line)
        found.append(_existing(Path(images).parent / line, images, number))
    rows, mated = [], []
    for number, line in lines(pairs):
        words = line.split()
        if len(words) != 3 or words[2] not in ("0", "1"):
            raise ValueError(f"{pairs}:{number}: expected `path path 0|1`, got {line[:80]!r}")
        for word in words[:2]:
            if word not in index:
                raise ValueError(f"{pairs}:{number}: {word!r} is not in {images}")
        rows.append([index[word] for word in words[:2]])
        mated.append(words[2] == "1")
    return pair_list(pairs, found, rows, mated)


def read_scores(file: str | os.PathLike[str], images: Sequence[Source]) -> NDArray[np.float64]:
    """[len(images)] from lines `path score`; a path is known by its last two parts (person/image), an image of a
    .bin by its number of five digits, as CR-FIQA's scripts call it.

    Every image must have exactly one finite score; scores of other images are a fault as well.
    """
    keys = (_number(i) if isinstance(image, Encoded) else _tail(name_of(image)) for i, image in enumerate(images))
    places = {key: i for i, key in enumerate(keys)}
    if len(places) != len(images):
        raise ValueError("expected images that differ in person/image; two share them")
    scores = np.full(len(images), np.nan)
    for number, line in lines(file):
        try:
            path, value = line.rsplit(maxsplit=1)
            score = float(value)
        except ValueError:
            raise ValueError(f"{file}:{number}: expected `path score`, got {line[:80]!r}") from None
        place = places.get(_tail(path), places.get((Path(path).stem,)))
        if place is None:
            raise ValueError(f"{file}:{number}: {path!r} is none of the images")
        if not np.isnan(scores[place]):
            raise ValueError(f"{file}:{number}: a second score of {path!r}")
        scores[place] = score
        if not np.isfinite(scores[place]):
            raise ValueError(f"{file}:{number}: expected a finite score, got {value}")
    missing = np.flatnonzero(np.isnan(scores))
    if len(missing):
        raise ValueError(f"{file}: no score of {len(missing)} images, the first {name_of(images[missing[0]])}")
    return scores


def read_embeddings(
    path: str | os.PathLike[str], images: Sequence[Source], listed: str | os.PathLike[str] | None = None
) -> NDArray[np.float32]:
    """[len(images), d] of unit length, as another tool has saved them.

    Args:
        path: a .npy of [N, d]; or a folder with a .npy of [d] or [1, d] an image, person/image.npy or image.npy. The
            image is called as its file without suffix, or, from a .bin, by its number of five digits, as CR-FIQA's
            scripts do. What a folder has beside them is not looked at.
        listed: to a file [N, d], an image_path_list.txt of N lines; a path is known by its last two parts. Without
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
            raise ValueError(f"{path}: expected embeddings [N, d], got {list(found.shape)}")
        if listed is not None:
            found = found[_rows(listed, images, len(found))]
        if len(found) != len(images):
            raise ValueError(f"{path}: expected embeddings of {len(images)} images, got {len(found)}")
    with np.errstate(over="ignore"):  # an overflow is infinite
        embeddings = np.array(found, np.float32)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise ValueError(f"{path}: expected finite embeddings that are not 0; {name_of(images[bad[0]])} has another")
    embeddings /= norms
    return embeddings


def _embeddings_of_images(folder: Path, images: Sequence[Source]) -> NDArray[np.floating]:
    files: dict[Path, int] = {}
    rows: list[NDArray[np.floating]] = []
    for i, image in enumerate(images):
        parts = _number(i) if isinstance(image, Encoded) else Path(name_of(image)).with_suffix("").parts[-2:]
        places = [folder.joinpath(*parts[k:]) for k in range(len(parts))]
        file = next((f for f in (place.with_name(f"{place.name}.npy") for place in places) if f.is_file()), None)
        if file is None:
            raise ValueError(f"{name_of(image)}: no embedding {places[0]}.npy")
        if files.setdefault(file, i) != i:
            raise ValueError(f"{file}: expected an embedding an image; {name_of(images[files[file]])} has it too")
        row = read_array(file)
        length = rows[0].size if rows else row.size
        if row.shape not in ((length,), (1, length)):
            raise ValueError(f"{file}: expected [{length if rows else 'd'}], got {list(row.shape)}")
        rows.append(np.ravel(row))
    return np.stack(rows)


def _rows(listed: str | os.PathLike[str], images: Sequence[Source], count: int) -> list[int]:
    """The place of each image in the list."""
    rows: dict[tuple[str, ...], int] = {}
    for number, line in lines(listed):
        if _tail(line) in rows:
            raise ValueError(f"{listed}:{number}: {line!r} is listed twice")
        rows[_tail(line)] = len(rows)
    if len(rows) != count:
        raise ValueError(f"{listed}: expected {count} images, one an embedding, got {len(rows)}")
    places = [rows.get(_tail(name_of(image)), -1) for image in images]
    if -1 in places:
        raise ValueError(f"{listed}: {name_of(images[places.index(-1)])} is not listed")
    if len(set(places)) != len(places):
        raise ValueError("expected images that differ in person/image; two share them")
    return places


def read_array(file: str | os.PathLike[str]) -> NDArray[np.floating]:
    """Of floating-point numbers: a memory map, so that no header can ask for more than the file has. ValueError for any
    other file."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header is parsed as Python: TokenError, RecursionError, ...
        raise ValueError(f"{file}: expected a .npy of numbers; {' '.join(str(error).split())[:120]}") from None
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{file}: expected a .npy of floating-point numbers")
    return array


# What a list of byte strings and a list of truth values need. Nothing here imports, calls or builds an object.
_HARMLESS = (
    {"PROTO", "FRAME", "STOP", "MARK", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"}
    | {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NEWTRUE", "NEWFALSE", "BININT1"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING"}
    | {"BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE"}
)


def read_bin(file: str | os.PathLike[str]) -> PairList:
    """InsightFace's .bin, a pickle of (encoded images, truth values): images 2k and 2k + 1, from 0, are pair k.

    Refuses, before anything is loaded, a pickle that holds anything but lists, bytes and truth values.
    """
    size = os.path.getsize(file)
    if size > _BIN_BYTES:
        raise ValueError(f"{file}: expected at most {_BIN_BYTES} bytes, got {size}")
    data = Path(file).read_bytes()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            # A memo's place allocates; a real one is below the count of objects, hence of bytes.
            if opcode.name not in _HARMLESS or (opcode.name == "LONG_BINPUT" and int(argument or 0) > size):
                raise ValueError(f"a pickle with {opcode.name}, which image lists do not need")
        images, labels = pickle.Unpickler(io.BytesIO(data), encoding="bytes").load()
    except (ValueError, TypeError, IndexError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file}: expected InsightFace's (images, labels); {str(error)[:120]}") from None
    if not isinstance(images, list) or not isinstance(labels, list) or len(images) != 2 * len(labels):
        raise ValueError(f"{file}: expected two lists, with twice as many images as labels")
    if not all(isinstance(image, bytes) for image in images) or not all(label in (0, 1) for label in labels):
        raise ValueError(f"{file}: expected images as bytes and labels that are true or false")
    encoded = [Encoded(image, f"image {i} of {file}") for i, image in enumerate(images)]
    return pair_list(file, encoded, np.arange(len(images)).reshape(-1, 2).tolist(), [bool(x) for x in labels])


def lines(file: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, stripped, with their numbers."""
    try:
        with open(file, encoding="utf-8") as text:
            for number, line in enumerate(text, 1):
                if line.strip():
                    yield number, line.strip()
    except UnicodeDecodeError:
        raise ValueError(f"{file}: expected UTF-8 text") from None


def _existing(path: Path, file: str | os.PathLike[str], number: int) -> str:
    if not path.is_file():
        raise ValueError(f"{file}:{number}: no image {path}")
    return str(path)


def _index(index: dict[str, int], path: str) -> int:
    return index.setdefault(path, len(index))


def _number(index: int) -> tuple[str]:
    """What CR-FIQA's scripts call an image of a .bin."""
    return (f"{index:05d}",)


def _tail(path: str) -> tuple[str, ...]:
    return Path(path).parts[-2:]


def pair_list(
    file: str | os.PathLike[str], images: Sequence[Source], pairs: Sequence[Sequence[int]], mated: list[bool]
) -> PairList:
    """What was read from `file`, which must have had pairs."""
    if not pairs:
        raise ValueError(f"{file}: expected pairs, found none")
    return PairList(images, np.array(pairs, np.int64), np.array(mated))
