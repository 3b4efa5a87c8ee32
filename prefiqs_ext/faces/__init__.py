"""From photos to aligned face crops: reading files, finding faces, aligning them."""

from __future__ import annotations

from typing import NamedTuple

from prefiqs_ext.faces.align import align
from prefiqs_ext.faces.detect import Detection, Detector
from prefiqs_ext.faces.image import RGB, UnreadableImage, decode_rgb, hash_file, read_rgb


class Face(NamedTuple):
    """A face found in a photo."""

    crop: RGB
    """uint8 [H, W, 3], aligned, what a Scorer takes."""
    detection: Detection
    """Where it is in the photo."""


def find_faces(image: RGB, detector: Detector, size: tuple[int, int] = (112, 112)) -> list[Face]:
    """All faces of a photo, largest box first, aligned to crops of this size (height, width).

    Args:
        image: uint8 ``[H, W, 3]`` RGB, as :func:`read_rgb` gives it.

    Raises:
        TypeError, ValueError: for an image or a size that is none.
    """
    return [Face(align(image, found.landmarks, size), found) for found in detector.detect(image)]


__all__ = [
    "RGB",
    "Detection",
    "Detector",
    "Face",
    "UnreadableImage",
    "align",
    "decode_rgb",
    "find_faces",
    "hash_file",
    "read_rgb",
]
