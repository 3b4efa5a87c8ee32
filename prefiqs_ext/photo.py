"""From a photo to one result per face: faces are found, aligned and scored.

>>> [face.crop.shape for face in prefiqs_ext.score_photo("photo.jpg")]
[(112, 112, 3)]
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prefiqs_ext.default_scorer import get_default_scorer
from prefiqs_ext.exceptions import InputError, InputTypeError
from prefiqs_ext.faces import RGB, Detector, find_faces
from prefiqs_ext.faces.detect import MIN_FACE
from prefiqs_ext.inputs import Colour, describe_other, is_pil, read_image
from prefiqs_ext.output import split_output
from prefiqs_ext.scorer import Scorer, get_template
from prefiqs_ext.utils.check_arguments import check_positive

if TYPE_CHECKING:
    from PIL.Image import Image


class FaceScore(NamedTuple):
    """One face of a photo: where it is, how good it is, and its embedding.

    Boxes and landmarks are in pixels of the upright photo.
    """

    score: float
    """HIGHER is better: the number to rank and to act on, as the scorer's `rank_by` says. NaN where the scorer has
    on_bad="nan" and cannot assess the face."""
    quality: float
    """In [0, 1], HIGHER is better: Q = 1 - D/2. NaN where the score is."""
    distance: float
    """In [0, 2], LOWER is better: D, how far pruning moves the normalised embedding."""
    embedding_norm: float
    """The norm of the embedding before normalisation; on some networks a strong quality signal of its own."""
    embedding: Tensor
    """float32 ``[d]`` of length 1, on the scorer's device: for recognition."""
    crop: RGB
    """uint8 ``[H, W, 3]`` RGB: the aligned face that was scored."""
    box: tuple[float, float, float, float]
    """x and y of the upper left corner, width, height. It may reach over the photo's border."""
    landmarks: NDArray[np.float32]
    """float32 ``[5, 2]``, x and y of: right eye, left eye, nose tip, right and left corner of the mouth. The right eye
    is the person's, on the left in the photo of somebody who faces it."""
    detector_score: float
    """In [0, 1], how sure the detector is that this is a face. It says little about the face's quality."""


def score_photo(
    photo: str | os.PathLike[str] | NDArray[np.uint8] | Image,
    *,
    scorer: Scorer | None = None,
    colour: Colour = "rgb",
    min_face: float = MIN_FACE,
) -> list[FaceScore]:
    """Finds the faces of a photo and scores each; the same numbers as `prefiqs score photo.jpg` gives.

    >>> for face in prefiqs_ext.score_photo("photo.jpg"):
    ...     print(f"{face.score:.2f}", [round(side) for side in face.box], face.embedding.shape)
    12.24 [178, 61, 93, 114] torch.Size([128])

    Args:
        photo: a file; an array uint8 ``[H, W, 3]``; or a PIL image in mode RGB. The orientation that a camera wrote
            into a file, or that a PIL image brings with it, is applied.
        scorer: whose preset says how large a crop is. None: the built-in network on the CPU.
        colour: "bgr" for an array whose first channel is blue, as OpenCV reads images.
        min_face: width in pixels from which faces are surely found. Smaller values take longer on large photos.

    Returns:
        One :class:`FaceScore` per face, the largest face first. The list is empty where there is no face.

    Raises:
        InputTypeError, InputError: the photo has another type or shape, or the scorer has no preset; the message says
            what to do.
        FileAccessError, FileFormatError: a path that gives no image.
        MissingWeightsError: the weights of the network or the detector are not in the cache folder and cannot be
            fetched.
    """
    scorer = get_default_scorer() if scorer is None else scorer
    template = get_template(scorer)
    check_positive(min_face, "min_face")
    faces = find_faces(_read(photo, colour), _get_detector(min_face), template)
    if not faces:
        return []
    scores = split_output(scorer(np.stack([face.crop for face in faces])))
    return [
        FaceScore(
            *score,
            crop=crop,
            box=(float(found.x), float(found.y), float(found.w), float(found.h)),
            landmarks=found.landmarks,
            detector_score=float(found.score),
        )
        for score, (crop, found) in zip(scores, faces, strict=True)
    ]


@lru_cache(maxsize=4)
def _get_detector(min_face: float) -> Detector:
    return Detector(min_face=min_face)


def _read(photo: object, colour: Colour) -> RGB:
    if colour not in ("rgb", "bgr"):
        raise InputError(f"expected colour 'rgb' or 'bgr', got {colour!r}")
    if isinstance(photo, np.ndarray):
        if photo.ndim == 3 and photo.shape[2] == 4:
            raise InputError(
                f"expected an array [H, W, 3], got {list(photo.shape)}: leave the fourth channel out, array[..., :3]"
            )
        return np.ascontiguousarray(photo[..., ::-1]) if colour == "bgr" else photo
    if isinstance(photo, str | os.PathLike) or is_pil(photo):
        return read_image(photo, colour)
    remedy = ""
    if isinstance(photo, Tensor):
        remedy = ": tensor.permute(1, 2, 0).numpy() of a uint8 tensor [3, H, W]"
    if isinstance(photo, list | tuple):
        remedy = ": score the photos one by one"
    raise InputTypeError(
        f"expected one photo, a path, a NumPy array or a PIL image, got {describe_other(photo)}{remedy}"
    )
