"""From a photo and five points to an aligned crop, by the similarity transform onto a template."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefiqs_ext.exceptions import InputError, InputTypeError
from prefiqs_ext.faces.image import RGB
from prefiqs_ext.models.template import INSIGHTFACE_112, CropTemplate

# The share of the template's spread that the transformed landmarks must explain. Faces reach .9 and more; even five
# points on one vertical line (a profile) reach .61. With right and left swapped it is .05.
_LEAST_FIT = 0.25
_MOST_COORDINATE = 1e9
_MOST_SIDE = 32_000  # OpenCV warps from images of less than 2^15


def estimate_similarity(
    landmarks: ArrayLike, template: CropTemplate = INSIGHTFACE_112, *, any_fit: bool = False
) -> NDArray[np.float64]:
    """Estimates the least-squares similarity transform of landmarks onto a template's.

    Source: Umeyama, TPAMI 1991, without reflection.

    Args:
        landmarks: ``[5, 2]``, x and y in the photo, in the template's order. Pixel centres are whole numbers.
        template: The size of the crop, and where the face shall be in it.
        any_fit: Take five points that do not look like a face as well. Benchmarks publish such landmarks.

    Returns:
        float64 ``[2, 3]``, from (x, y, 1) in the photo to (x, y) in the crop.

    Raises:
        InputError: The landmarks are not five finite points, coincide, or fit no face in this order.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape != (5, 2):
        raise InputError(f"expected landmarks [5, 2], got {list(points.shape)}")
    if not (np.abs(points) < _MOST_COORDINATE).all():  # NaN fails too
        raise InputError("expected landmarks in pixels of the photo, got NaN, infinity or numbers beyond any photo")
    if min(template.size) < 1:
        raise InputError(f"expected a size of 1 x 1 or more, got {template.size[0]} x {template.size[1]}")
    # In the plane a rotation with scaling is one complex factor, so least squares are a division.
    target = np.array(template.landmarks) @ (1, 1j)
    source = points @ (1, 1j)
    source_mean, target_mean = source.mean(), target.mean()
    source_spread, target_spread = source - source_mean, target - target_mean
    power = np.vdot(source_spread, source_spread).real
    overlap = np.vdot(source_spread, target_spread)
    # Points this near to each other cannot be told apart in float32: their spread is rounding, not a face.
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


def align(image: RGB, landmarks: ArrayLike, template: CropTemplate = INSIGHTFACE_112, *, any_fit: bool = False) -> RGB:
    """Cuts a face out of a photo as recognisers want it, with eyes, nose and mouth moved onto a template's.

    Pixels are interpolated bilinearly and are 0 outside the photo.

    Args:
        image: uint8 ``[H, W, 3]``, any channel order.
        landmarks: As for :func:`estimate_similarity`.
        template: As for :func:`estimate_similarity`.
        any_fit: As for :func:`estimate_similarity`.

    Returns:
        uint8 ``[*template.size, 3]``.

    Raises:
        InputTypeError: The image is no uint8 array.
        InputError: The image has another shape, or the landmarks are refused as by :func:`estimate_similarity`.
    """
    check_rgb(image)
    matrix = estimate_similarity(landmarks, template, any_fit=any_fit)
    size = template.size
    height, width = image.shape[:2]
    if max(height, width) > _MOST_SIDE:
        image, matrix = _cut_part(image, matrix, size)
        if not image.size or max(image.shape) > _MOST_SIDE:
            return np.zeros((*size, 3), dtype=np.uint8)
    crop: RGB = cv2.warpAffine(image, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)  # type: ignore[assignment]
    return crop


def check_rgb(image: RGB) -> None:
    """Checks that an image is a uint8 array [H, W, 3] with at least one pixel.

    Raises:
        InputTypeError: It is no uint8 array.
        InputError: It has another shape.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise InputTypeError(f"expected a uint8 numpy array, got {getattr(image, 'dtype', type(image).__name__)}")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"expected an image [H, W, 3], got {list(image.shape)}")


def _cut_part(image: RGB, matrix: NDArray[np.float64], size: tuple[int, int]) -> tuple[RGB, NDArray[np.float64]]:
    """Cuts out the part of a photo that the crop shows, and gives the transform from there."""
    corners = np.array([(x, y, 1) for x in (0, size[1] - 1) for y in (0, size[0] - 1)])
    back = np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2] @ corners.T
    height, width = image.shape[:2]
    left, top = np.clip(np.floor(back.min(axis=1)) - 2, 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(back.max(axis=1)) + 3, 0, (width, height)).astype(int)
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (left, top)
    return np.ascontiguousarray(image[top:bottom, left:right]), moved
