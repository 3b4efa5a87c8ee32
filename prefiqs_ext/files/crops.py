"""From images to face crops: each image is read, its faces are found and aligned, here or in worker processes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from prefiqs_ext.exceptions import FileAccessError, PrefiqsError
from prefiqs_ext.faces import (
    RGB,
    CropTemplate,
    Detector,
    Face,
    UnreadableImage,
    decode_rgb,
    find_faces,
    get_reason,
    read_image_file,
)
from prefiqs_ext.files.image import HASH_BYTES, EncodedImage
from prefiqs_ext.files.records import Status
from prefiqs_ext.files.remote import explain_remote_errors, open_input
from prefiqs_ext.files.workers import read_ahead
from prefiqs_ext.utils.budget import MAX_IMAGE_BYTES
from prefiqs_ext.utils.suffixes import is_address
from prefiqs_ext.utils.text import describe_error, describe_wrong_size


class FaceBox(NamedTuple):
    """Where a face is in the upright photo, in pixels, and how sure the detector is. All None for a ready crop."""

    x: float | None = None
    """Left edge."""
    y: float | None = None
    """Upper edge."""
    w: float | None = None
    """Width."""
    h: float | None = None
    """Height."""
    detector_score: float | None = None
    """In [0, 1]; HIGHER means more surely a face."""


class FileCrops(NamedTuple):
    """The faces of one file, largest first; or the reason why there are none."""

    path: str
    crops: Sequence[RGB] = ()
    """Each uint8 [H, W, 3], of the preset's size."""
    boxes: Sequence[FaceBox] = ()
    """One per crop."""
    status: Status = "ok"
    reason: str = ""
    """One line, if the status is not "ok"."""
    content_hash: bytes | None = None
    """BLAKE2b of the encoded image, 16 bytes; None if it was not read."""


class CropReader:
    """Reads one image after another and gives its crops. It is pickled and sent to the workers.

    Args:
        template: What a crop is like.
        detector: Finds the faces in photos; None if the files are ready crops.
    """

    def __init__(self, template: CropTemplate, detector: Detector | None) -> None:
        self._template = template
        self._detector = detector

    def __call__(self, image: EncodedImage) -> FileCrops:
        """Reads an image. Whatever is wrong with it becomes the status and the reason; nothing is raised."""
        path = image.path
        if image.problem:
            return FileCrops(path, status="unreadable", reason=image.problem)
        try:
            data = _read_content(path) if image.data is None else image.data
            content_hash = blake2b(data, digest_size=HASH_BYTES).digest()
            pixels = decode_rgb(data, path)
        except (UnreadableImage, FileAccessError) as error:
            return FileCrops(path, status="unreadable", reason=get_reason(error))
        except PrefiqsError as error:  # an address that nothing here can read
            return FileCrops(path, status="unreadable", reason=describe_error(error))
        return self.find_crops(path, pixels)._replace(content_hash=content_hash)

    def find_crops(self, path: str, pixels: RGB) -> FileCrops:
        """Finds the crops in a decoded image, uint8 [H, W, 3]; an image of ready crops is its only one."""
        if self._detector is None:
            return self._check_crop(path, pixels)
        try:
            faces = find_faces(pixels, self._detector, self._template)
        except Exception as error:  # OpenCV raises classes of its own; one photo must not end the others
            reason = describe_error(error)
            return FileCrops(path, status="not_assessable", reason=reason)
        if not faces:
            return FileCrops(path, status="no_face", reason="no face found")
        return FileCrops(path, crops=[face.crop for face in faces], boxes=[_make_box(face) for face in faces])

    def _check_crop(self, path: str, image: RGB) -> FileCrops:
        if image.shape[:2] != self._template.size:
            reason = f"{describe_wrong_size(image.shape, self._template.size)}; a photo needs no --aligned"
            return FileCrops(path, status="not_assessable", reason=reason)
        return FileCrops(path, crops=[image], boxes=[FaceBox()])


def read_crops(
    images: Iterable[EncodedImage], reader: CropReader, *, workers: int, ahead: int
) -> Generator[FileCrops, None, None]:
    """Reads the crops of each image, in order.

    Args:
        images: The images, taken as they are needed.
        reader: Reads one image.
        workers: Processes that read; 0 means that this process reads.
        ahead: About how many images the workers are ahead of the consumer.
    """
    if workers:
        return read_ahead(images, reader, report_death, workers=workers, ahead=ahead)
    return (reader(image) for image in images)


def find_largest_faces(paths: Iterable[str], template: CropTemplate, *, aligned: bool = False) -> Iterator[Tensor]:
    """Finds the largest face of each file and skips files without one, in this process.

    Args:
        paths: The files.
        template: What a crop is like.
        aligned: The files are ready crops of exactly this size; others are skipped.

    Yields:
        One crop per file with a face, in the order of the files, uint8 [3, H, W] RGB.
    """
    reader = CropReader(template, None if aligned else Detector())
    for path in paths:
        crops = reader(EncodedImage(path)).crops
        if crops:
            yield torch.as_tensor(crops[0]).permute(2, 0, 1).contiguous()


def report_death(image: EncodedImage) -> FileCrops:
    """Gives the crops of an image that ends whatever process reads it."""
    reason = "the process that read it died: out of memory, or a fault in a decoder"
    return FileCrops(image.path, status="unreadable", reason=reason)


def _read_content(path: str) -> bytes:
    if not is_address(path):
        return read_image_file(path)
    with open_input(path, "name an image file") as stream, explain_remote_errors(path):
        return stream.read(MAX_IMAGE_BYTES + 1)


def _make_box(face: Face) -> FaceBox:
    found = face.detection
    return FaceBox(
        x=float(found.x), y=float(found.y), w=float(found.w), h=float(found.h), detector_score=float(found.score)
    )
