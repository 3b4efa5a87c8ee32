"""Finding faces: one, several, turned, tiny, in huge photos, and where there is none."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from photos import TEMPLATE
from torch.utils.data import DataLoader, Dataset

from prefiqs_ext.exceptions import MissingWeightsError
from prefiqs_ext.faces import CropTemplate, Detection, Detector, align, detect, find_faces
from prefiqs_ext.faces.align import estimate_similarity
from prefiqs_ext.models import weights

cv2 = pytest.importorskip("cv2")
data = pytest.importorskip("skimage.data")

Levels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def detector() -> Detector:
    try:
        weights.find_file("yunet")
    except MissingWeightsError as error:
        pytest.skip(str(error))
    return Detector()


@pytest.fixture(scope="module")
def astronaut() -> Levels:
    return np.ascontiguousarray(data.astronaut())


@pytest.fixture(scope="module")
def head(astronaut: Levels) -> Levels:
    """The astronaut's head and shoulders, one face of 90 x 113 pixels in 240 x 240."""
    return np.ascontiguousarray(astronaut[:240, 100:340])


def on_grey(height: int, width: int, *pasted: tuple[Levels, int, int]) -> Levels:
    """A grey photo with images pasted at x, y."""
    photo = np.full((height, width, 3), 127, dtype=np.uint8)
    for image, x, y in pasted:
        photo[y : y + image.shape[0], x : x + image.shape[1]] = image
    return photo


def box(found: Detection) -> NDArray[np.float64]:
    return np.array(found[:4])


def same(first: list[Detection], second: list[Detection]) -> bool:
    return len(first) == len(second) and all(
        a[:5] == b[:5] and np.array_equal(a.landmarks, b.landmarks) for a, b in zip(first, second, strict=True)
    )


def test_opencv_finds_the_same_face(detector: Detector, astronaut: Levels) -> None:
    [found] = detector.detect(astronaut)
    theirs = cv2.FaceDetectorYN.create(str(weights.find_file("yunet")), "", (512, 512), 0.6)
    [row] = theirs.detect(np.ascontiguousarray(astronaut[..., ::-1]))[1]
    assert np.abs(box(found) - row[:4]).max() < 10
    assert np.abs(found.landmarks - row[4:14].reshape(5, 2)).max() < 6  # theirs from 90 pixels, ours from 200
    assert abs(found.score - row[14]) < 0.1
    assert found.landmarks.dtype == np.float32
    assert all(type(number) is float for number in found[:5])
    right_eye, left_eye, nose, right_mouth, left_mouth = found.landmarks
    assert right_eye[0] < nose[0] < left_eye[0]  # the person's right is left in the photo
    assert right_mouth[0] < left_mouth[0]
    assert right_eye[1] < nose[1] < right_mouth[1]


def test_the_rows_are_opencvs(detector: Detector, astronaut: Levels) -> None:
    """One look at a photo as it is: nothing of YuNet's output is changed or lost."""
    theirs = cv2.FaceDetectorYN.create(str(weights.find_file("yunet")), "", (512, 512), 0.6)
    np.testing.assert_array_equal(
        detector._run_network(astronaut, astronaut), theirs.detect(np.ascontiguousarray(astronaut[..., ::-1]))[1]
    )


def test_several_faces_largest_first(detector: Detector, head: Levels) -> None:
    """A mosaic of four sizes, shuffled over a photo."""
    places = {240: (500, 40), 120: (30, 30), 360: (60, 330), 90: (500, 500)}
    pasted = [(cv2.resize(head, (side, side), interpolation=cv2.INTER_AREA), *at) for side, at in places.items()]
    faces = find_faces(on_grey(720, 800, *pasted), detector)
    assert len(faces) == 4
    areas = [face.detection.w * face.detection.h for face in faces]
    assert areas == sorted(areas, reverse=True)
    [alone] = detector.detect(head)
    for face, side in zip(faces, sorted(places, reverse=True), strict=True):
        expected = (alone.landmarks + 0.5) * side / 240 - 0.5 + places[side]
        assert np.abs(face.detection.landmarks - expected).max() < 0.08 * face.detection.w
        assert face.crop.shape == (112, 112, 3)


def test_the_crop_is_aligned_from_the_landmarks(detector: Detector, astronaut: Levels) -> None:
    for size in ((112, 112), (150, 130)):
        [face] = find_faces(astronaut, detector, CropTemplate(size))
        np.testing.assert_array_equal(face.crop, align(astronaut, face.detection.landmarks, CropTemplate(size)))


def test_mirrored(detector: Detector, astronaut: Levels) -> None:
    [face] = find_faces(astronaut, detector)
    [other] = find_faces(np.ascontiguousarray(astronaut[:, ::-1]), detector)
    back = (other.detection.landmarks * (-1, 1) + (511, 0))[[1, 0, 2, 4, 3]]
    assert np.abs(back - face.detection.landmarks).max() < 6  # of a face 90 wide


@pytest.mark.parametrize("degrees", [-30, -15, 15, 30])
@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_turned_faces_come_out_upright(detector: Detector, astronaut: Levels, degrees: int, scale: float) -> None:
    """The alignment turns back, at any size of the face: a plain look at 36 or 90 pixels leaves most of the tilt."""
    turn = cv2.getRotationMatrix2D((223, 120), degrees, 1)
    turned = cv2.resize(cv2.warpAffine(astronaut, turn, (512, 512)), None, fx=scale, fy=scale)
    angles = []
    for photo in (astronaut, turned):
        matrix = estimate_similarity(detector.detect(photo)[0].landmarks)
        angles.append(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    # Of 30 degrees YuNet's landmarks lose up to half, whatever the size.
    assert angles[1] - angles[0] == pytest.approx(degrees, abs=5 if abs(degrees) < 20 else 17)


# Sizes


def test_a_huge_photo_is_mapped_back(detector: Detector, head: Levels) -> None:
    """48 megapixels of seeded texture with a large, a middling and a small face; each is found where it was put."""
    noise = np.random.default_rng(0).integers(90, 160, (60, 80, 3), dtype=np.uint8)
    photo = cv2.resize(noise, (8000, 6000), interpolation=cv2.INTER_CUBIC)
    places = {3600: (300, 700), 1200: (6000, 200), 480: (6500, 4800)}
    for side, (x, y) in places.items():
        photo[y : y + side, x : x + side] = cv2.resize(head, (side, side), interpolation=cv2.INTER_CUBIC)
    found = detector.detect(photo)
    assert len(found) == 3
    [alone] = detector.detect(head)
    for face, (side, at) in zip(found, places.items(), strict=True):
        expected = (alone.landmarks + 0.5) * side / 240 - 0.5 + at
        assert np.abs(face.landmarks - expected).max() < 0.08 * face.w
        assert (
            np.abs(box(face) - (*(box(alone)[:2] * side / 240 + at), *(box(alone)[2:] * side / 240))).max()
            < 0.15 * face.w
        )


def test_small_faces_in_24_megapixels(detector: Detector, head: Levels) -> None:
    """Twelve faces 60 pixels wide, 10 after scaling down. Four lie where parts of the photo end or begin, one on a
    corner of four, and a large face lies over a seam too: each is found once."""
    assert detect._cut_into_parts(4000, 2560, 320) == [(0, 2160), (1840, 4000)]
    assert detect._cut_into_parts(6000, 2560, 320) == [(0, 2214), (1893, 4107), (3786, 6000)]
    seams = [(1893 - 80, 300), (2214 - 80, 1000), (3786 - 90, 1840 - 60), (4700, 2160 - 100)]
    rest = [(600 * index + 300, 2700 + 113 * index) for index in range(8)]
    large = cv2.resize(head, (1500, 1500), interpolation=cv2.INTER_CUBIC)
    small = cv2.resize(head, (160, 160), interpolation=cv2.INTER_AREA)
    photo = on_grey(4000, 6000, (large, 100, 1000), *((small, x, y) for x, y in seams + rest))
    found = detector.detect(photo)
    [alone] = detector.detect(head)
    centres = [(alone.landmarks.mean(axis=0) + 0.5) * 160 / 240 - 0.5 + at for at in seams + rest]
    distances = [[np.abs(face.landmarks.mean(axis=0) - centre).max() for centre in centres] for face in found[1:]]
    assert sorted(np.argmin(distances, axis=1)) == list(range(12))
    assert np.max(np.min(distances, axis=1)) < 0.05 * 60
    # Searching for small faces takes nothing from those that are found without.
    few = Detector(min_face=1e6).detect(photo)
    assert len(few) < 12
    assert {face[:5] for face in few} <= {face[:5] for face in found}


def test_the_least_face(detector: Detector, head: Levels) -> None:
    """42 pixels wide in 4K. A third of a photo's side is found whatever is said."""
    small = cv2.resize(head, (112, 112), interpolation=cv2.INTER_AREA)
    photo = on_grey(2160, 3840, (small, 2010, 1000), (cv2.resize(head, (900, 900)), 30, 1000))
    assert [len(Detector(min_face=least).detect(photo)) for least in (1000, 40)] == [1, 2]
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected a finite min_face above 0"):
            Detector(min_face=wrong)


@pytest.mark.parametrize("length", [1, 100, 320, 321, 2560, 2561, 4801, 60_000])
def test_parts_share_what_a_face_needs(length: int) -> None:
    parts = detect._cut_into_parts(length, 2560, 320)
    assert parts[0][0] == 0
    assert parts[-1][1] == length
    assert all(end - begin <= 2562 for begin, end in parts)  # rounded outwards
    assert all(before[1] - after[0] >= 320 for before, after in itertools.pairwise(parts))


def test_landmarks_do_not_depend_on_the_rest_of_the_photo(detector: Detector, head: Levels) -> None:
    """A face of 90 pixels in 12 megapixels is 23 pixels after scaling down, too few for landmarks."""
    [alone] = detector.detect(head)
    [found] = detector.detect(on_grey(3000, 4000, (head, 1811, 777)))
    assert np.abs(found.landmarks - (1811, 777) - alone.landmarks).max() < 0.05 * alone.w


@pytest.mark.parametrize("side", [300, 1024, 1025, 2000])
def test_a_face_that_fills_the_photo_is_one_face(detector: Detector, crops: torch.Tensor, side: int) -> None:
    for crop in crops.permute(0, 2, 3, 1).numpy()[:20]:
        large = cv2.resize(crop, (side, side), interpolation=cv2.INTER_CUBIC)
        assert len(detector.detect(large)) == 1


def test_real_crops(detector: Detector, crops: torch.Tensor) -> None:
    """Aligned faces are found, and aligning them again hardly moves them."""
    moved = []
    for crop in crops.permute(0, 2, 3, 1).numpy():
        [found] = detector.detect(np.ascontiguousarray(crop))
        moved.append(np.abs(found.landmarks - TEMPLATE).mean())
    assert np.median(moved) < 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (20, 20), (1, 40_000), (40_000, 1), (31, 3000)])
def test_tiny_and_thin_photos_hold_no_face(detector: Detector, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    assert detector.detect(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) == []


@pytest.mark.parametrize("side", [20, 33, 64, 100])
def test_small_photos_of_a_face(detector: Detector, head: Levels, side: int) -> None:
    for face in find_faces(cv2.resize(head, (side, side), interpolation=cv2.INTER_AREA), detector):
        assert side >= 33
        assert np.abs(face.detection.landmarks.mean(axis=0) / side - (0.51, 0.51)).max() < 0.1
        assert face.crop.any()


@pytest.mark.parametrize("level", [0, 127, 255])
def test_plain_photos_hold_no_face(detector: Detector, level: int) -> None:
    assert find_faces(np.full((600, 1400, 3), level, dtype=np.uint8), detector) == []


def test_rubbish_at_a_low_threshold_is_finite_and_alignable(head: Levels) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    for image, threshold in ((noise, 0.01), (head, 0.1)):
        faces = find_faces(image, Detector(threshold))
        assert faces
        for face in faces:
            assert np.isfinite([*face.detection[:5], *face.detection.landmarks.ravel()]).all()


class _Network:
    """In the place of YuNet, with rows that it should not give."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self.rows = rows

    def setInputSize(self, size: tuple[int, int]) -> None:
        pass

    def detect(self, image: Levels) -> tuple[int, NDArray[np.float32]]:
        return 1, self.rows


def test_what_has_not_the_shape_of_a_face_is_left_out(astronaut: Levels, detector: Detector) -> None:
    swapped = np.array([(30, 20), (20, 20), (25, 25), (30, 30), (20, 30)]).ravel()  # right and left
    rows = np.zeros((6, 15), dtype=np.float32)
    rows[:, :4], rows[:, 4:14], rows[:, 14] = (10, 10, 50, 50), swapped, 0.9
    rows[1, 4:14] = 20
    rows[2, 6] = np.nan
    rows[3, 2] = np.inf
    rows[4, 2:4] = 0
    rows[5, :2] = -1000
    broken = Detector()
    broken._idle = [(os.getpid(), _Network(rows))]  # type: ignore[list-item]
    for image in (astronaut, cv2.resize(astronaut, (2000, 1500))):
        assert find_faces(image, broken) == []


# Settings and processes


def test_the_threshold(astronaut: Levels, detector: Detector) -> None:
    assert Detector(score_threshold=0.99).detect(astronaut) == []
    assert len(Detector(score_threshold=0.1).detect(astronaut)) >= 1
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"expected score_threshold in \[0, 1\]"):
            Detector(score_threshold=wrong)


@pytest.mark.parametrize(
    "image", ["a.jpg", np.zeros((9, 9, 3)), np.zeros((9, 9), np.uint8), np.zeros((0, 9, 3), np.uint8)]
)
def test_images_that_are_none(detector: Detector, image: object) -> None:
    with pytest.raises((TypeError, ValueError), match="expected"):
        detector.detect(image)  # type: ignore[arg-type]


def test_the_same_photo_gives_the_same_faces(detector: Detector, astronaut: Levels, head: Levels) -> None:
    first = detector.detect(astronaut)
    detector.detect(head)
    detector.detect(cv2.resize(astronaut, (1500, 1500)))
    assert same(detector.detect(astronaut), first)
    assert same(Detector().detect(astronaut), first)
    assert same(detector.detect(astronaut[:, ::-1][:, ::-1]), first)


def test_pickles_after_use(detector: Detector, astronaut: Levels) -> None:
    first = detector.detect(astronaut)
    packed = pickle.dumps(detector)
    assert len(packed) < 1000
    assert same(pickle.loads(packed).detect(astronaut), first)
    assert pickle.loads(pickle.dumps(Detector(0.7))).score_threshold == 0.7


class _Photos(Dataset[int]):
    def __init__(self, detector: Detector, photo: Levels) -> None:
        self.detector = detector
        self.photo = photo

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return len(self.detector.detect(self.photo))


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_worker_processes(detector: Detector, head: Levels, start: str) -> None:
    """Used in this process first, threads and all, so that a fork inherits a network in use."""
    photo = cv2.resize(head, (1600, 1600))
    assert len(detector.detect(photo)) == 1
    loader = DataLoader(
        _Photos(detector, photo), num_workers=2, timeout=60, multiprocessing_context=multiprocessing.get_context(start)
    )
    assert [int(count) for count in loader] == [1, 1, 1, 1]


def test_threads(detector: Detector, astronaut: Levels, head: Levels) -> None:
    """Four threads on one detector, each with photos of several sizes, find what one finds."""
    photos = [astronaut, head, cv2.resize(head, (900, 700)), cv2.resize(astronaut, (1200, 1100))] * 3
    level = cv2.utils.logging.getLogLevel()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(Detector().detect, photos))
    assert cv2.utils.logging.getLogLevel() == level
    assert all(same(faces, detector.detect(photo)) for faces, photo in zip(found, photos, strict=True))


def test_quiet(detector: Detector) -> None:
    script = "import cv2\nfrom skimage import data\nfrom prefiqs_ext.faces import Detector, find_faces\n"
    script += "level = cv2.utils.logging.getLogLevel()\nassert find_faces(data.astronaut(), Detector())\n"
    script += "assert cv2.utils.logging.getLogLevel() == level"
    environment = {name: value for name, value in os.environ.items() if name != "OPENCV_LOG_LEVEL"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("", "")
