"""Where the faces are: YuNet (OpenCV Zoo, MIT) through OpenCV, for photos of any size."""

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
from prefiqs_ext.faces.align import check_rgb, similarity
from prefiqs_ext.faces.image import RGB
from prefiqs_ext.models import weights

# YuNet finds faces of about 15 to 350 pixels. The photo is looked at twice, its longer side scaled down to these, so
# that faces are found from 3 % of that side (some from 2 %) to nearly all of it. Smaller photos are never scaled up.
_FINE, _COARSE = 1024, 320
# In larger photos faces of min_face pixels are looked for in parts of the photo, scaled so that they have _SURE there:
# of faces of 30 pixels it finds 94 %, of 25 80 %, of 21 61 %. Parts share _SHARED pixels, so a face of up to that lies
# whole in one; larger ones are sure from the look before, which is at most _STEP times coarser.
_SURE, _PART, _SHARED, _STEP = 30, 1280, 160, 5
_LARGE = 350  # pixels of the finer look from which it sees parts of a face as faces
# Then each face is looked at once more, scaled to _CLOSE pixels, for its landmarks. Those of smaller faces come out too
# upright: measured on LFW, of a tilt of 15 degrees 10 remain after alignment from 75 pixels, 2 to 3 from 160 to 250.
_CLOSE = 200
_AROUND = 2.0  # side of what is looked at then, in sides of the face
_X, _Y = [0, 4, 6, 8, 10, 12], [1, 5, 7, 9, 11, 13]  # columns of a row of YuNet's
_SAME_FACE = 0.3  # intersection over union from which two boxes are one face; YuNet's own
_MOST_CANDIDATES = 5000  # OpenCV's own

MIN_FACE = 60
"""The least width of faces that a Detector is sure to find: large photos then take about twice as long to read and
search as without a search for small ones."""


_creating = threading.Lock()  # OpenCV's level of logging belongs to the whole process


def _renew_lock() -> None:
    """A thread that held it is not there after a fork."""
    global _creating
    _creating = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class Detection(NamedTuple):
    """One face, in pixels of the photo; pixel centres are whole numbers. Boxes may reach over the photo's border."""

    x: float
    """Left edge."""
    y: float
    """Upper edge."""
    w: float
    h: float
    score: float
    """YuNet's confidence in [0, 1] that this is a face. It says little about the face's quality."""
    landmarks: NDArray[np.float32]
    """[5, 2] x and y: right eye, left eye, nose tip, right and left corner of the mouth, the right being the person's
    (left in the photo of somebody who faces it)."""


class Detector:
    """Finds faces. The same photo gives the same faces in the same order.

    It can be pickled, forked, and used from several threads: only the settings travel, each process loads the network
    (0.2 MB) at its first photo, and threads that look at the same time have one each.

    Args:
        score_threshold: least confidence, in [0, 1], of what is called a face. Every candidate is looked at closely, so
            below about 0.1 a photo may take minutes.
        min_face: width in pixels from which faces are found nearly surely, 30 or more. It makes a difference where that
            is less than 3 % of the photo's longer side; a look at 24 megapixels takes 5 times as long with 60 as with
            180, and 20 times with 30. Smaller faces are found by chance, and what large faces there are at any value.

    Raises:
        ValueError: for a threshold outside [0, 1], or a min_face that is no positive number.
        OSError: when the weights are neither in the cache folder nor to be had.
    """

    def __init__(self, score_threshold: float = 0.6, *, min_face: float = MIN_FACE) -> None:
        if not 0 <= score_threshold <= 1:
            raise InputError(f"expected score_threshold in [0, 1], got {score_threshold:g}")
        if not 0 < min_face < math.inf:
            raise InputError(f"expected a finite min_face above 0, got {min_face:g}")
        self.score_threshold = score_threshold
        self.min_face = min_face
        self._file = str(weights.fetch("yunet"))  # here, so that worker processes find it ready
        self._idle: list[tuple[int, cv2.FaceDetectorYN]] = []  # networks, and the processes that loaded them

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}

    def detect(self, image: RGB) -> list[Detection]:
        """The faces of a photo, largest box first. What has landmarks that no face has is left out.

        Args:
            image: uint8 ``[H, W, 3]`` RGB.

        Raises:
            TypeError, ValueError: for an image of another shape or type.
        """
        check_rgb(image)
        fine = _scaled_down(image, _FINE)
        coarse = _scaled_down(fine, _COARSE)
        rows = self._rows(image, fine)
        if coarse is not fine:
            rows = _merged(rows, self._rows(image, coarse), large=_LARGE * max(image.shape) / max(fine.shape))
        rows = _distinct([self._close(image, row) for row in [*rows, *self._small(image, list(rows))]])
        rows = rows[np.argsort(-rows[:, 2] * rows[:, 3], kind="stable")]
        found = (_detection(row) for row in rows)
        return [face for face in found if _has_face_shape(face)]

    def _small(self, image: RGB, known: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Faces beside the known ones, of looks at parts of a large photo."""
        scale = _FINE / max(image.shape[:2])
        finest = min(1.0, _SURE / self.min_face)
        looks = max(0, math.ceil(math.log(finest / scale, _STEP)))
        found: list[NDArray[np.float32]] = []
        for look in range(1, looks + 1):
            found += self._in_parts(image, scale * (finest / scale) ** (look / looks), [*known, *found])
        return found

    def _in_parts(self, image: RGB, scale: float, known: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        height, width = image.shape[:2]
        large = [row for row in known if row[2:4].max() * scale > _LARGE]
        found: list[NDArray[np.float32]] = []
        for top, bottom in _parts(height, _PART / scale, _SHARED / scale):
            for left, right in _parts(width, _PART / scale, _SHARED / scale):
                part = image[top:bottom, left:right]
                rows = self._rows(part, _scaled(part, scale))
                rows[:, _X] += left
                rows[:, _Y] += top
                # What reaches over the part's edge inside the photo lies whole in the next part.
                first = (left or -np.inf, top or -np.inf)
                last = (right if right < width else np.inf, bottom if bottom < height else np.inf)
                whole = (rows[:, :2] >= first).all(axis=1) & (rows[:, :2] + rows[:, 2:4] <= last).all(axis=1)
                for row in rows[whole & (rows[:, 2:4].max(axis=1) * scale <= _SHARED)]:
                    if not any(_same_face(row, face) for face in (*known, *found)):
                        found.append(row)
        return [row for row in found if not _is_part(row, large)]

    def _close(self, image: RGB, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same face found again in the part of the photo around it, or the row as it was."""
        side = float(row[2:4].max())
        centre, reach = row[:2] + row[2:4] / 2, _AROUND / 2 * side
        left, top = (max(0, int(low)) for low in centre - reach)
        right, bottom = (max(0, int(high)) for high in centre + reach)
        part = image[top:bottom, left:right]
        if not part.size:
            return row
        found = self._rows(part, _scaled(part, _CLOSE / side))
        found[:, _X] += left
        found[:, _Y] += top
        return max((other for other in found if _same_face(row, other)), key=lambda other: other[14], default=row)

    def _rows(self, image: RGB, scaled: RGB) -> NDArray[np.float32]:
        """YuNet's rows [n, 15] for the scaled photo, in pixels of the photo: box, five points, score."""
        height, width = scaled.shape[:2]
        network = self._taken()
        network.setInputSize((width, height))
        rows = network.detect(cv2.cvtColor(scaled, cv2.COLOR_RGB2BGR))[1]
        self._idle.append((os.getpid(), network))  # not after a failure, which may have left it anyhow
        if rows is None:
            return np.empty((0, 15), dtype=np.float32)
        scale = (image.shape[1] / width, image.shape[0] / height)
        # None has been seen that is no number, but a box is an exponential: nothing later has to think of it.
        rows = rows[np.isfinite(rows).all(axis=1) & (rows[:, 2:4] > 0).all(axis=1)].astype(np.float64)
        rows[:, 2:4] *= scale
        for columns, factor in zip((_X, _Y), scale, strict=True):  # pixel centres are whole numbers in both
            rows[:, columns] = (rows[:, columns] + 0.5) * factor - 0.5
        return rows.astype(np.float32)

    def _taken(self) -> cv2.FaceDetectorYN:
        """A network that nobody else uses."""
        while True:
            try:
                process, network = self._idle.pop()  # not after a look whether there is one: another thread may take it
            except IndexError:
                break
            if process == os.getpid():  # one that was forked may have been in use
                return network
        with _creating, _quiet_opencv():
            return cv2.FaceDetectorYN.create(
                self._file, "", (_COARSE, _COARSE), self.score_threshold, _SAME_FACE, _MOST_CANDIDATES
            )


def _detection(row: NDArray[np.float32]) -> Detection:
    x, y, w, h, *_, score = map(float, row)
    return Detection(x, y, w, h, score, row[4:14].reshape(5, 2).copy())


def _scaled(image: RGB, scale: float) -> RGB:
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled: RGB = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)  # type: ignore[assignment]
    return scaled


def _scaled_down(image: RGB, side: int) -> RGB:
    scale = side / max(image.shape[:2])
    return _scaled(image, scale) if scale < 1 else image


def _merged(fine: NDArray[np.float32], coarse: NDArray[np.float32], large: float) -> NDArray[np.float32]:
    """The rows of both looks, one a face. The finer one has the better landmarks, but of large faces it sees parts."""
    large_faces = [row for row in coarse if row[2:4].max() > large]
    whole = [row for row in fine if not _is_part(row, large_faces)]
    return _distinct([*large_faces, *whole, *coarse])


def _is_part(row: NDArray[np.float32], large: list[NDArray[np.float32]]) -> bool:
    return any(_intersection(row, face) >= 0.5 * min(_area(row), _area(face)) for face in large)


def _parts(length: int, longest: float, shared: float) -> list[tuple[int, int]]:
    """Begin and end of parts of one length, which share that much with the next."""
    count = max(1, math.ceil((length - shared) / (longest - shared)))
    step = (length - shared) / count
    return [(int(i * step), min(length, math.ceil((i + 1) * step + shared))) for i in range(count)]


def _distinct(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """One row a face, the first: float32 [n, 15]."""
    kept: list[NDArray[np.float32]] = []
    for row in rows:
        if not any(_same_face(row, face) for face in kept):
            kept.append(row)
    return np.array(kept, dtype=np.float32).reshape(-1, 15)


def _area(row: NDArray[np.float32]) -> float:
    return float(row[2] * row[3])


def _intersection(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    sides = np.minimum(a[:2] + a[2:4], b[:2] + b[2:4]) - np.maximum(a[:2], b[:2])
    return float(sides.clip(0).prod())


def _same_face(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    both = _intersection(a, b)
    return both >= _SAME_FACE * (_area(a) + _area(b) - both)


def _has_face_shape(face: Detection) -> bool:
    try:
        similarity(face.landmarks)
    except ValueError:
        return False
    return True


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """OpenCV 5 prints a warning of its own making for every network it loads."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
