"""Finds faces in photos of any size, with the network YuNet (OpenCV Zoo, MIT), which OpenCV runs."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.faces.align import check_rgb, estimate_similarity
from prefiqs_ext.faces.image import RGB
from prefiqs_ext.models import weights
from prefiqs_ext.utils.check_arguments import check_fraction, check_positive

# YuNet finds faces of about 15 to 350 pixels. So it looks at the whole photo twice, with its longer side scaled down to
# _FINE and to _COARSE pixels, and finds faces from 3 % of that side (some from 2 %) to nearly all of it. Smaller photos
# are never scaled up.
_FINE, _COARSE = 1024, 320
# In large photos, faces of min_face pixels would be too small for that. They are looked for in parts of the photo,
# scaled so that such a face has _SURE pixels: of faces of 30 pixels YuNet finds 94 %, of 25 pixels 80 %, of 21 pixels
# 61 %. Neighbouring parts of at most _PART pixels share _SHARED pixels, so that a face of up to _SHARED pixels
# is whole in one of them. Larger faces were found by the look before, which is at most _STEP times coarser.
_SURE, _PART, _SHARED, _STEP = 30, 1280, 160, 5
_LARGE = 350  # from this size on, in pixels of the finer look, YuNet takes parts of a face for faces
# Last, each face is looked at once more, scaled to _CLOSE pixels, for its landmarks. On smaller faces these come out
# too upright: measured on LFW, of a tilt of 15 degrees 10 remain after alignment at 75 pixels, 2 to 3 at 160 to 250
# pixels.
_CLOSE = 200
_AROUND = 2.0  # the side of what is looked at then, in sides of the face
_X_COLUMNS, _Y_COLUMNS = [0, 4, 6, 8, 10, 12], [1, 5, 7, 9, 11, 13]  # in a row of YuNet's
_SAME_FACE = 0.3  # intersection over union from which two boxes are one face; YuNet's default
_MOST_CANDIDATES = 5000  # OpenCV's default

MIN_FACE = 60
"""From this width in pixels on, a Detector nearly surely finds a face. Large photos then take about twice as long to
read and search as without a search for small faces."""

_creating_network = threading.Lock()  # OpenCV's level of logging belongs to the whole process


def _renew_lock() -> None:
    """Makes a new lock in a forked process, where a thread that held the old one does not exist."""
    global _creating_network
    _creating_network = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class Detection(NamedTuple):
    """One face, in pixels of the photo; pixel centres are whole numbers. A box may reach beyond the photo's border."""

    x: float
    """Left edge."""
    y: float
    """Upper edge."""
    w: float
    h: float
    score: float
    """YuNet's confidence in [0, 1] that this is a face. It says little about the face's quality."""
    landmarks: NDArray[np.float32]
    """[5, 2], x and y: right eye, left eye, nose tip, right and left corner of the mouth. Right is the person's right,
    which is left in the photo of somebody who faces the camera."""


class Detector:
    """Finds the faces of photos. The same photo gives the same faces in the same order.

    A Detector can be pickled, forked and used from several threads. Only its settings travel: each process loads the
    network (0.2 MB) at its first photo, and threads that look at the same time have one network each.

    Args:
        score_threshold: The least confidence, in [0, 1], of what is called a face. Every candidate gets a closer look,
            so that below about 0.1 a photo may take minutes.
        min_face: Width in pixels, 30 or more, from which faces are found nearly surely; smaller faces are found by
            chance. Large faces are found with any value. It makes a difference where it is less than 3 % of the photo's
            longer side: a look at 24 megapixels takes 5 times as long with 60 as with 180, and 20 times with 30.

    Raises:
        InputError: The threshold is outside [0, 1], or min_face is no positive number.
        MissingWeightsError: The weights are not in the cache folder and cannot be fetched.
    """

    def __init__(self, score_threshold: float = 0.6, *, min_face: float = MIN_FACE) -> None:
        check_fraction(score_threshold, "score_threshold")
        check_positive(min_face, "min_face")
        self.score_threshold = score_threshold
        self.min_face = min_face
        weights.fetch("yunet")  # here, so that worker processes find it ready
        self._idle: list[tuple[int, cv2.FaceDetectorYN]] = []  # networks, and the processes that loaded them

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}

    def detect(self, image: RGB) -> list[Detection]:
        """Finds the faces of a photo. What has landmarks that no face has is left out.

        Args:
            image: uint8 ``[H, W, 3]`` RGB.

        Returns:
            The faces, largest box first.

        Raises:
            InputTypeError: The image is no uint8 array.
            InputError: The image has another shape.
        """
        check_rgb(image)
        fine = _scale_down(image, _FINE)
        coarse = _scale_down(fine, _COARSE)
        rows = self._run_network(image, fine)
        if coarse is not fine:
            rows = _merge_looks(
                rows, self._run_network(image, coarse), large=_LARGE * max(image.shape) / max(fine.shape)
            )
        rows = _drop_duplicates(
            [self._look_closely(image, row) for row in [*rows, *self._find_small(image, list(rows))]]
        )
        rows = rows[np.argsort(-rows[:, 2] * rows[:, 3], kind="stable")]
        found = (_make_detection(row) for row in rows)
        return [face for face in found if _has_face_shape(face)]

    def _find_small(self, image: RGB, known: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Finds faces that are not among the known ones, by looks at parts of a large photo, coarse looks first."""
        scale = _FINE / max(image.shape[:2])
        finest = min(1.0, _SURE / self.min_face)
        looks = max(0, math.ceil(math.log(finest / scale, _STEP)))
        found: list[NDArray[np.float32]] = []
        for look in range(1, looks + 1):
            found += self._find_in_parts(image, scale * (finest / scale) ** (look / looks), [*known, *found])
        return found

    def _find_in_parts(self, image: RGB, scale: float, known: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        height, width = image.shape[:2]
        large = [row for row in known if row[2:4].max() * scale > _LARGE]
        found: list[NDArray[np.float32]] = []
        for top, bottom in _cut_into_parts(height, _PART / scale, _SHARED / scale):
            for left, right in _cut_into_parts(width, _PART / scale, _SHARED / scale):
                part = image[top:bottom, left:right]
                rows = self._run_network(part, _resize(part, scale))
                rows[:, _X_COLUMNS] += left
                rows[:, _Y_COLUMNS] += top
                # A box that reaches over an edge of the part, inside the photo, is whole in the next part.
                first = (left or -np.inf, top or -np.inf)
                last = (right if right < width else np.inf, bottom if bottom < height else np.inf)
                whole = (rows[:, :2] >= first).all(axis=1) & (rows[:, :2] + rows[:, 2:4] <= last).all(axis=1)
                for row in rows[whole & (rows[:, 2:4].max(axis=1) * scale <= _SHARED)]:
                    if not any(_is_same_face(row, face) for face in (*known, *found)):
                        found.append(row)
        return [row for row in found if not _is_part_of_any(row, large)]

    def _look_closely(self, image: RGB, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """Finds the same face again in the part of the photo around it; otherwise gives the row as it was."""
        side = float(row[2:4].max())
        centre, reach = row[:2] + row[2:4] / 2, _AROUND / 2 * side
        left, top = (max(0, int(low)) for low in centre - reach)
        right, bottom = (max(0, int(high)) for high in centre + reach)
        part = image[top:bottom, left:right]
        if not part.size:
            return row
        found = self._run_network(part, _resize(part, _CLOSE / side))
        found[:, _X_COLUMNS] += left
        found[:, _Y_COLUMNS] += top
        return max((other for other in found if _is_same_face(row, other)), key=lambda other: other[14], default=row)

    def _run_network(self, image: RGB, scaled: RGB) -> NDArray[np.float32]:
        """Runs YuNet on a scaled photo.

        Returns:
            Its rows, float32 [n, 15], in pixels of the photo: box, five points, score.
        """
        height, width = scaled.shape[:2]
        network = self._take_network()
        network.setInputSize((width, height))
        rows = network.detect(cv2.cvtColor(scaled, cv2.COLOR_RGB2BGR))[1]
        self._idle.append((os.getpid(), network))  # not after a failure, which leaves it in any state
        if rows is None:
            return np.empty((0, 15), dtype=np.float32)
        scale = (image.shape[1] / width, image.shape[0] / height)
        # A box is an exponential, which may overflow. It was never seen, but so nothing later has to think of it.
        rows = rows[np.isfinite(rows).all(axis=1) & (rows[:, 2:4] > 0).all(axis=1)].astype(np.float64)
        rows[:, 2:4] *= scale
        for columns, factor in zip(
            (_X_COLUMNS, _Y_COLUMNS), scale, strict=True
        ):  # pixel centres are whole numbers in both
            rows[:, columns] = (rows[:, columns] + 0.5) * factor - 0.5
        return rows.astype(np.float32)

    def _take_network(self) -> cv2.FaceDetectorYN:
        """Takes a network that nobody else uses, a new one if there is none."""
        while True:
            try:
                process, network = self._idle.pop()  # without a look before it: another thread may take it meanwhile
            except IndexError:
                break
            if process == os.getpid():  # one that was forked may have been in use
                return network
        content = np.frombuffer(weights.read("yunet"), np.uint8)
        settings = (_COARSE, _COARSE), self.score_threshold, _SAME_FACE, _MOST_CANDIDATES
        with _creating_network, _silence_opencv():
            return cv2.FaceDetectorYN.create("onnx", content, np.empty(0, np.uint8), *settings)


def _make_detection(row: NDArray[np.float32]) -> Detection:
    x, y, w, h, *_, score = map(float, row)
    return Detection(x, y, w, h, score, row[4:14].reshape(5, 2).copy())


def _resize(image: RGB, scale: float) -> RGB:
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled: RGB = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)  # type: ignore[assignment]
    return scaled


def _scale_down(image: RGB, side: int) -> RGB:
    scale = side / max(image.shape[:2])
    return _resize(image, scale) if scale < 1 else image


def _merge_looks(fine: NDArray[np.float32], coarse: NDArray[np.float32], large: float) -> NDArray[np.float32]:
    """Merges two looks: one row per face. The finer has better landmarks, but takes parts of large faces for faces."""
    large_faces = [row for row in coarse if row[2:4].max() > large]
    whole = [row for row in fine if not _is_part_of_any(row, large_faces)]
    return _drop_duplicates([*large_faces, *whole, *coarse])


def _is_part_of_any(row: NDArray[np.float32], large: list[NDArray[np.float32]]) -> bool:
    return any(_compute_overlap(row, face) >= 0.5 * min(_compute_area(row), _compute_area(face)) for face in large)


def _cut_into_parts(length: int, longest: float, shared: float) -> list[tuple[int, int]]:
    """Cuts a length into equal parts, each of which shares so much with the next one: begin and end of each."""
    count = max(1, math.ceil((length - shared) / (longest - shared)))
    step = (length - shared) / count
    return [(int(i * step), min(length, math.ceil((i + 1) * step + shared))) for i in range(count)]


def _drop_duplicates(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Keeps the first row of each face: float32 [n, 15]."""
    kept: list[NDArray[np.float32]] = []
    for row in rows:
        if not any(_is_same_face(row, face) for face in kept):
            kept.append(row)
    return np.array(kept, dtype=np.float32).reshape(-1, 15)


def _compute_area(row: NDArray[np.float32]) -> float:
    return float(row[2] * row[3])


def _compute_overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    sides = np.minimum(a[:2] + a[2:4], b[:2] + b[2:4]) - np.maximum(a[:2], b[:2])
    return float(sides.clip(0).prod())


def _is_same_face(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    both = _compute_overlap(a, b)
    return both >= _SAME_FACE * (_compute_area(a) + _compute_area(b) - both)


def _has_face_shape(face: Detection) -> bool:
    try:
        estimate_similarity(face.landmarks)
    except InputError:
        return False
    return True


@contextmanager
def _silence_opencv() -> Iterator[None]:
    """Silences OpenCV 5, which prints a warning for every network that it loads."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
