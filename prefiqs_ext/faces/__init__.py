"""From photos to aligned face crops: reads files, finds faces, aligns them, degrades them."""

from __future__ import annotations

from typing import NamedTuple

from prefiqs_ext.faces.align import align
from prefiqs_ext.faces.detect import Detection, Detector
from prefiqs_ext.faces.image import (
    RGB,
    UnreadableImage,
    decode_rgb,
    get_reason,
    hash_file,
    read_image_file,
    read_rgb,
)
from prefiqs_ext.models.template import INSIGHTFACE_112, CropTemplate


class Face(NamedTuple):
    """A face found in a photo."""

    crop: RGB
    """uint8 [H, W, 3] RGB, aligned. A Scorer takes it as [3, H, W]."""
    detection: Detection
    """Where it is in the photo."""


def find_faces(image: RGB, detector: Detector, template: CropTemplate = INSIGHTFACE_112) -> list[Face]:
    """Finds all faces of a photo and aligns them.

    Args:
        image: uint8 ``[H, W, 3]`` RGB, as :func:`read_rgb` gives it.
        detector: Finds the faces.
        template: The size of the crops, and where the face shall be in them.

    Returns:
        The faces, largest box first.

    Raises:
        InputTypeError: The image is no uint8 array.
        InputError: The image has another shape, or the size is below 1 x 1.
    """
    return [Face(align(image, found.landmarks, template), found) for found in detector.detect(image)]


__all__ = [
    "RGB",
    "CropTemplate",
    "Detection",
    "Detector",
    "Face",
    "UnreadableImage",
    "align",
    "decode_rgb",
    "find_faces",
    "get_reason",
    "hash_file",
    "read_image_file",
    "read_rgb",
]
