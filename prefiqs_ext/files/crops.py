"""From paths to face crops: each file is read, its faces are found and aligned, here or in worker processes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prefiqs_ext.exceptions import FileAccessError
from prefiqs_ext.faces import RGB, CropTemplate, Detector, Face, UnreadableImage, find_faces, get_reason, read_rgb
from prefiqs_ext.files.records import Status
from prefiqs_ext.files.workers import read_ahead
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


class CropReader:
    """Reads one file after another and gives its crops. It is pickled and sent to the workers.

    Args:
        template: What a crop is like.
        detector: Finds the faces in photos; None if the files are ready crops.
    """

    def __init__(self, template: CropTemplate, detector: Detector | None) -> None:
        self._template = template
        self._detector = detector

    def __call__(self, path: str) -> FileCrops:
        """Reads a file. Whatever is wrong with it becomes the status and the reason; nothing is raised."""
        try:
            image = read_rgb(path)
        except (UnreadableImage, FileAccessError) as error:
            return FileCrops(path, status="unreadable", reason=get_reason(error))
        if self._detector is None:
            return self._check_crop(path, image)
        try:
            faces = find_faces(image, self._detector, self._template)
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


def read_crops_of_files(
    paths: Iterable[str], reader: CropReader, *, workers: int, ahead: int
) -> Generator[FileCrops, None, None]:
    """Reads the crops of each file, in order.

    Args:
        paths: The files, taken as they are needed.
        reader: Reads one file.
        workers: Processes that read; 0 means that this process reads.
        ahead: About how many files the workers are ahead of the consumer.
    """
    if workers:
        return read_ahead(paths, reader, _report_death, workers=workers, ahead=ahead)
    return (reader(path) for path in paths)


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
        crops = reader(path).crops
        if crops:
            yield torch.as_tensor(crops[0]).permute(2, 0, 1).contiguous()


def _make_box(face: Face) -> FaceBox:
    found = face.detection
    return FaceBox(
        x=float(found.x), y=float(found.y), w=float(found.w), h=float(found.h), detector_score=float(found.score)
    )


def _report_death(path: str) -> FileCrops:
    reason = "the process that read it died: out of memory, or a fault in a decoder"
    return FileCrops(path, status="unreadable", reason=reason)
