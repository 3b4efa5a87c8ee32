"""The images that evaluation data are made of, to crops: one for every image, or an error that names it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.faces import RGB, align, decode_rgb, hash_file, read_rgb


class Encoded(NamedTuple):
    """A crop as a file's content."""

    data: bytes
    name: str
    """What errors call it."""


class Swapped(NamedTuple):
    """A crop whose file has red and blue exchanged."""

    path: str


class Landmarked(NamedTuple):
    """A photo, or a loose crop of one, with one face still to be aligned."""

    path: str
    landmarks: NDArray[np.floating]
    """[5, 2] x and y in pixels, in the order of faces.align's TEMPLATE."""


Source = str | Encoded | Swapped | Landmarked
"""An image: a str is the path of a crop."""


def name_of(image: Source) -> str:
    """The path, or what errors call it."""
    return image if isinstance(image, str) else image.name if isinstance(image, Encoded) else image.path


def digest(image: Source) -> bytes:
    """SHA-256 of what its crop depends on: the file's content, landmarks, swapped colours; not its name. ValueError,
    naming it, for a file that is missing, no regular one, empty or too large."""
    if isinstance(image, Encoded):
        return hashlib.sha256(image.data).digest()
    if isinstance(image, Landmarked):
        return hashlib.sha256(digest(image.path) + np.asarray(image.landmarks, np.float64).tobytes()).digest()
    if isinstance(image, Swapped):
        return hashlib.sha256(digest(image.path) + b"swapped").digest()
    return hash_file(image)


def read_crops(images: Iterable[Source], size: tuple[int, int]) -> Iterator[Tensor]:
    """uint8 [3, *size] RGB of each image, in order, read as they are asked for. Crops are never resized.

    Args:
        size: height and width; what is Landmarked is aligned to it.

    Raises:
        ValueError: naming the image: it is missing or cannot be read (UnreadableImage), a crop has another size, or
            landmarks are not five different points.
    """
    for image in images:
        yield torch.from_numpy(_crop(image, size)).permute(2, 0, 1).contiguous()


def _crop(image: Source, size: tuple[int, int]) -> RGB:
    if isinstance(image, Landmarked):
        photo = read_rgb(image.path)
        try:
            return align(photo, image.landmarks, size, any_fit=True)
        except ValueError as error:
            raise FileFormatError(f"{image.path}: {error}") from None
    crop = decode_rgb(*image) if isinstance(image, Encoded) else read_rgb(name_of(image))
    if crop.shape[:2] != size:
        height, width = crop.shape[:2]
        raise FileFormatError(
            f"{name_of(image)}: expected a crop of {size[1]} x {size[0]} pixels, got {width} x {height}"
        )
    return np.ascontiguousarray(crop[..., ::-1]) if isinstance(image, Swapped) else crop
