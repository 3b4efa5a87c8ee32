"""A photo and five points to an aligned crop: the similarity transform onto the field's template, nothing else."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefiqs_ext.exceptions import InputError, InputTypeError
from prefiqs_ext.faces.image import RGB

TEMPLATE: NDArray[np.float64] = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""[5, 2] x and y in a 112 x 112 crop: right eye, left eye, nose tip, right and left corner of the mouth; right is the
person's right. InsightFace's template, the one recognisers are trained with."""
TEMPLATE.setflags(write=False)
_TEMPLATE_SIZE = 112

# Share of the template's spread that the transformed landmarks must explain. Faces have .9 and more, even all five on
# one vertical line (a profile) .61; right and left swapped has .05.
_LEAST_FIT = 0.25
_MOST_COORDINATE = 1e9
_MOST_SIDE = 32_000  # OpenCV warps from images of less than 2^15


def similarity(
    landmarks: ArrayLike, size: tuple[int, int] = (112, 112), *, any_fit: bool = False
) -> NDArray[np.float64]:
    """The least-squares similarity transform (Umeyama, TPAMI 1991, without reflection) of landmarks onto TEMPLATE.

    Args:
        landmarks: ``[5, 2]`` x and y in the photo, in TEMPLATE's order. Pixel centres are whole numbers.
        size: height and width of the crop. The template is scaled by height / 112 and moved sideways to the middle, so
            (112, 96) is the 112 x 112 crop without its outer columns.
        any_fit: take five points that are no face as well, as a benchmark's published landmarks are taken.

    Returns:
        float64 ``[2, 3]``, photo (x, y, 1) to crop (x, y).

    Raises:
        ValueError: for landmarks that are not five finite points, that coincide, or that are no face in this order.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape != (5, 2):
        raise InputError(f"expected landmarks [5, 2], got {list(points.shape)}")
    if not (np.abs(points) < _MOST_COORDINATE).all():  # NaN fails too
        raise InputError("expected landmarks in pixels of the photo, got NaN, infinity or numbers beyond any photo")
    if min(size) < 1:
        raise InputError(f"expected a size of 1 x 1 or more, got {size[0]} x {size[1]}")
    # In the plane a rotation with scaling is one complex factor, so least squares are a division.
    scale = size[0] / _TEMPLATE_SIZE
    target = (TEMPLATE @ (1, 1j)) * scale + (size[1] - size[0]) / 2
    source = points @ (1, 1j)
    source_mean, target_mean = source.mean(), target.mean()
    source_spread, target_spread = source - source_mean, target - target_mean
    power = np.vdot(source_spread, source_spread).real
    overlap = np.vdot(source_spread, target_spread)
    # Nearer together than float32 can tell points apart there: what remains is rounding, not a face.
    if not power > (1e-6 * max(1.0, float(np.abs(source).max()))) ** 2:
        raise InputError("expected five different landmarks, got the same point five times")
    if not any_fit and abs(overlap) ** 2 < _LEAST_FIT * power * np.vdot(target_spread, target_spread).real:
        raise InputError(
            "expected landmarks of a face in the order right eye, left eye, nose tip, right and left corner of the "
            "mouth (the right being the person's), got points that do not fit"
        )
    factor = overlap / power
    shift = target_mean - factor * source_mean
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def align(image: RGB, landmarks: ArrayLike, size: tuple[int, int] = (112, 112), *, any_fit: bool = False) -> RGB:
    """The face as recognisers want it: eyes, nose and mouth moved onto TEMPLATE, bilinear, 0 outside the photo.

    Args:
        image: uint8 ``[H, W, 3]``, any channel order.
        landmarks, size, any_fit: as for :func:`similarity`.

    Returns:
        uint8 ``[*size, 3]``.

    Raises:
        TypeError, ValueError: as for :func:`similarity`, or for an image of another shape or type.
    """
    check_rgb(image)
    matrix = similarity(landmarks, size, any_fit=any_fit)
    height, width = image.shape[:2]
    if max(height, width) > _MOST_SIDE:
        image, matrix = _part(image, matrix, size)
        if not image.size or max(image.shape) > _MOST_SIDE:
            return np.zeros((*size, 3), dtype=np.uint8)
    crop: RGB = cv2.warpAffine(image, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)  # type: ignore[assignment]
    return crop


def check_rgb(image: RGB) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise InputTypeError(f"expected a uint8 numpy array, got {getattr(image, 'dtype', type(image).__name__)}")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"expected an image [H, W, 3], got {list(image.shape)}")


def _part(image: RGB, matrix: NDArray[np.float64], size: tuple[int, int]) -> tuple[RGB, NDArray[np.float64]]:
    """The part of the photo under the crop, and the transform from there."""
    corners = np.array([(x, y, 1) for x in (0, size[1] - 1) for y in (0, size[0] - 1)])
    back = np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2] @ corners.T
    height, width = image.shape[:2]
    left, top = np.clip(np.floor(back.min(axis=1)) - 2, 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(back.max(axis=1)) + 3, 0, (width, height)).astype(int)
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (left, top)
    return np.ascontiguousarray(image[top:bottom, left:right]), moved
