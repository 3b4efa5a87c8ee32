"""The similarity transform and the crop, beside OpenCV's FaceRecognizerSF and scikit-image."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from photos import TEMPLATE

from prefiqs_ext.faces import CropTemplate, align
from prefiqs_ext.faces.align import estimate_similarity

cv2 = pytest.importorskip("cv2")
data = pytest.importorskip("skimage.data")
transform = pytest.importorskip("skimage.transform")

# As YuNet finds them in scikit-image's astronaut.
LANDMARKS = np.array([(200.1, 101.8), (247.1, 102.6), (220.4, 124.5), (198.6, 142.8), (239.7, 143.6)])
Levels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def astronaut() -> Levels:
    return np.ascontiguousarray(data.astronaut())


def somewhere(rng: np.random.Generator, noise: float = 3.0) -> NDArray[np.float64]:
    """A face of random place, size and turn; its points are noise pixels off a similarity of the template."""
    angle, scale = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 6)
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return TEMPLATE @ turn.T + rng.uniform(-200, 600, 2) + rng.normal(0, noise * scale, (5, 2))


def test_the_template_lands_on_itself() -> None:
    np.testing.assert_allclose(estimate_similarity(TEMPLATE), [[1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_the_transform_is_scikit_images() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = somewhere(rng)
        theirs = transform.SimilarityTransform.from_estimate(points, TEMPLATE)
        np.testing.assert_allclose(estimate_similarity(points), theirs.params[:2], rtol=1e-9, atol=1e-9)


def test_the_crop_is_opencvs(astronaut: Levels, sface_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recogniser = cv2.FaceRecognizerSF.create(str(sface_file), "")
    rng = np.random.default_rng(1)
    for points in [LANDMARKS, *(somewhere(rng) for _ in range(20))]:
        row = np.zeros((1, 15), dtype=np.float32)
        row[0, 4:14] = points.astype(np.float32).ravel()
        theirs = recogniser.alignCrop(astronaut, row)
        # OpenCV estimates in float32: a level in a few places.
        difference = np.abs(align(astronaut, points.astype(np.float32)).astype(int) - theirs)
        assert difference.max() <= 8
        assert difference.mean() < 0.02


def test_the_crop_is_scikit_images(astronaut: Levels) -> None:
    rng = np.random.default_rng(2)
    for points in [LANDMARKS, *(somewhere(rng) for _ in range(10))]:
        theirs = transform.SimilarityTransform.from_estimate(points, TEMPLATE)
        expected = 255 * transform.warp(astronaut, theirs.inverse, output_shape=(112, 112), order=1)
        # Half a level of rounding; OpenCV may also round coordinates to 1/32 pixel, which sharp edges show.
        difference = np.abs(align(astronaut, points) - expected)
        assert difference.mean() < 0.6


@pytest.mark.parametrize("size", [(112, 112), (224, 224), (56, 56), (112, 96), (150, 150), (1, 1)])
def test_other_sizes_scale_the_template(astronaut: Levels, size: tuple[int, int]) -> None:
    crop = align(astronaut, LANDMARKS, CropTemplate(size))
    assert crop.shape == (*size, 3)
    assert crop.dtype == np.uint8
    matrix, plain = estimate_similarity(LANDMARKS, CropTemplate(size)), estimate_similarity(LANDMARKS)
    np.testing.assert_allclose(matrix[:, :2], plain[:, :2] * size[0] / 112)
    middle = np.array([size[1] / 2, size[0] / 2])
    np.testing.assert_allclose(matrix[:, 2] - middle, (plain[:, 2] - 56) * size[0] / 112)


def test_narrow_crops_are_the_middle_of_square_ones(astronaut: Levels) -> None:
    square, narrow = align(astronaut, LANDMARKS), align(astronaut, LANDMARKS, CropTemplate((112, 96)))
    assert np.abs(square[:, 8:-8].astype(int) - narrow).max() <= 1


def test_outside_the_photo_is_black(astronaut: Levels) -> None:
    bright = np.full_like(astronaut, 200)
    crop = align(bright, LANDMARKS - (200, 0))  # the face's middle on the left border
    assert (crop[:, :30] == 0).all()
    assert (crop[:, -30:] == 200).all()
    assert not align(bright, LANDMARKS + 5000).any()


def test_a_mirrored_photo_gives_the_mirrored_face(astronaut: Levels) -> None:
    last = astronaut.shape[1] - 1
    mirrored = (LANDMARKS * (-1, 1) + (last, 0))[[1, 0, 2, 4, 3]]  # right and left change their names
    crop = align(np.ascontiguousarray(astronaut[:, ::-1]), mirrored)
    unmirrored = estimate_similarity(mirrored) @ np.array([[-1, 0, last], [0, 1, 0], [0, 0, 1]])
    expected = 255 * transform.warp(
        astronaut, np.linalg.inv(np.vstack([unmirrored, [0, 0, 1]])), output_shape=(112, 112)
    )
    assert np.abs(crop - expected).mean() < 0.6
    # The template is nearly symmetric, so this is nearly the mirrored crop.
    assert np.abs(crop[:, ::-1].astype(int) - align(astronaut, LANDMARKS)).mean() < 8


@pytest.mark.parametrize("layout", ["reversed channels", "fortran", "slice", "read-only"])
def test_any_memory_layout(astronaut: Levels, layout: str) -> None:
    image = {
        "reversed channels": astronaut[..., ::-1],
        "fortran": np.asfortranarray(astronaut),
        "slice": np.pad(astronaut, ((3, 4), (5, 6), (0, 0)))[3:-4, 5:-6],
        "read-only": astronaut.copy(),
    }[layout]
    image.setflags(write=layout != "read-only")
    np.testing.assert_array_equal(align(image, LANDMARKS), align(np.ascontiguousarray(image), LANDMARKS))


@pytest.mark.parametrize("shape", [(40_000, 60), (60, 40_000)])
def test_photos_longer_than_opencv_warps(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    along = np.array([0, 35_000.0] if shape[0] > shape[1] else [35_000.0, 0])
    points = TEMPLATE * 0.5 + 3.3
    piece = image[34_900:] if shape[0] > shape[1] else image[:, 34_900:]
    expected = align(piece, points + along - along / 35_000 * 34_900)
    assert expected.any()
    assert np.abs(align(image, points + along).astype(int) - expected).max() <= 1
    assert not align(image, points + along * 2).any()


# Landmarks that are none


def test_landmarks_in_another_order_are_refused() -> None:
    with pytest.raises(ValueError, match="in the order right eye, left eye"):
        estimate_similarity(LANDMARKS[[1, 0, 2, 4, 3]])
    with pytest.raises(ValueError, match="in the order right eye, left eye"):
        estimate_similarity(LANDMARKS[:, ::-1])


def test_profiles_and_slanted_faces_are_taken() -> None:
    estimate_similarity(TEMPLATE * (0.05, 1))
    estimate_similarity(TEMPLATE * (1, 0.3))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((5, 2)), "the same point five times"),
        (np.full((5, 2), 123.456, dtype=np.float32), "the same point five times"),
        (np.full((5, 2), np.nan), "NaN"),
        (np.where(np.arange(10).reshape(5, 2) == 3, np.inf, LANDMARKS), "infinity"),
        (LANDMARKS * 1e200, "beyond any photo"),
        (LANDMARKS[:4], r"\[5, 2\], got \[4, 2\]"),
        (LANDMARKS.ravel(), r"\[5, 2\], got \[10\]"),
    ],
)
def test_degenerate_landmarks_are_refused(astronaut: Levels, points: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        align(astronaut, points)
    assert "\n" not in str(caught.value)


def test_random_landmarks_never_crash(astronaut: Levels) -> None:
    """From a thousandth of a pixel to a million wide: a crop or the one-line error, never NaN, never a signal."""
    rng = np.random.default_rng(4)
    taken = 0
    for _ in range(1000):
        points = rng.normal(0, 10 ** rng.uniform(-3, 6), (5, 2)) + rng.normal(0, 10 ** rng.uniform(-3, 6), 2)
        try:
            matrix = estimate_similarity(points)
        except ValueError:
            continue
        taken += 1
        assert np.isfinite(matrix).all()
        assert align(astronaut, points).shape == (112, 112, 3)
    assert taken > 100


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (np.zeros((9, 9, 3), dtype=np.float32), TypeError),
        ("photo.jpg", TypeError),
        (np.zeros((9, 9), dtype=np.uint8), ValueError),
        (np.zeros((9, 9, 4), dtype=np.uint8), ValueError),
        (np.zeros((0, 9, 3), dtype=np.uint8), ValueError),
    ],
)
def test_images_that_are_none(image: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="expected"):
        align(image, LANDMARKS)  # type: ignore[arg-type]


def test_sizes_that_are_none(astronaut: Levels) -> None:
    with pytest.raises(ValueError, match="1 x 1 or more, got 0 x 112"):
        align(astronaut, LANDMARKS, CropTemplate((0, 112)))
