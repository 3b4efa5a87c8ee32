"""The images of evaluation data, and how they become crops: one for every image, or an error that names the image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefiqs_ext.evaluation.array_types import Floats
from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.faces import RGB, CropTemplate, align, decode_rgb, hash_file, read_rgb
from prefiqs_ext.utils.text import describe_wrong_size


class EncodedCrop(NamedTuple):
    """A crop as the content of a file.

    Attributes:
        data: JPEG, PNG or the like.
        name: What errors call it.
    """

    data: bytes
    name: str


class SwappedCrop(NamedTuple):
    """The path of a crop whose file has red and blue exchanged."""

    path: str


class LandmarkedPhoto(NamedTuple):
    """A photo, or a loose crop of one, with one face that is still to be aligned.

    Attributes:
        path: Its file.
        landmarks: [5, 2] x and y in pixels, in the order of models/template.py.
    """

    path: str
    landmarks: Floats


Source = str | EncodedCrop | SwappedCrop | LandmarkedPhoto
"""An image. A str is the path of a crop."""


def get_name(image: Source) -> str:
    """The image's path, or whatever errors call it."""
    return image if isinstance(image, str) else image.name if isinstance(image, EncodedCrop) else image.path


def hash_source(image: Source) -> bytes:
    """SHA-256 of what the crop depends on: the file's content, landmarks, swapped colours; not the name.

    Raises:
        MissingFileError: There is no such file.
        FileAccessError: The file cannot be opened, or is no regular file.
        FileFormatError: The file is empty or too large.
    """
    if isinstance(image, EncodedCrop):
        return hashlib.sha256(image.data).digest()
    if isinstance(image, LandmarkedPhoto):
        return hashlib.sha256(hash_source(image.path) + np.asarray(image.landmarks, np.float64).tobytes()).digest()
    if isinstance(image, SwappedCrop):
        return hashlib.sha256(hash_source(image.path) + b"swapped").digest()
    return hash_file(image)


def read_every_crop(images: Iterable[Source], template: CropTemplate) -> Iterator[Tensor]:
    """Read every image as uint8 RGB [3, H, W], in order, each when it is asked for.

    A bad image is an error here, because an evaluation without it would be another one. Crops are never resized.

    Args:
        images: What to read.
        template: What a crop is like. A LandmarkedPhoto is aligned to it.

    Raises:
        MissingFileError, FileAccessError: A file is not there, or cannot be opened. The error names it.
        FileFormatError: A file's content is no image, a crop has another size, or landmarks are not five different
            points. The error names the image.
    """
    for image in images:
        yield torch.from_numpy(_read_crop(image, template)).permute(2, 0, 1).contiguous()


def _read_crop(image: Source, template: CropTemplate) -> RGB:
    if isinstance(image, LandmarkedPhoto):
        photo = read_rgb(image.path)
        try:
            return align(photo, image.landmarks, template, any_fit=True)
        except ValueError as error:
            raise FileFormatError(f"{image.path}: {error}") from None
    crop = decode_rgb(*image) if isinstance(image, EncodedCrop) else read_rgb(get_name(image))
    if crop.shape[:2] != template.size:
        raise FileFormatError(f"{get_name(image)}: {describe_wrong_size(crop.shape, template.size)}")
    return np.ascontiguousarray(crop[..., ::-1]) if isinstance(image, SwappedCrop) else crop
