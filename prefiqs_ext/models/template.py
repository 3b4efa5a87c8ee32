"""Templates: where eyes, nose and mouth are in the crops that a network was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Alignment = Literal["insightface", "dlib"]
Points = tuple[tuple[float, float], ...]

_POINTS: Mapping[Alignment, tuple[int, Points]] = MappingProxyType(
    {
        # InsightFace, face_align.py: the template that most recognisers are trained with.
        "insightface": (
            112,
            ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)),
        ),
        # dlib, interpolation.h, get_face_chip_details: points 37-42 and 43-48 (their means), 31, 49 and 55 of the mean
        # face, with the padding of .25 that dlib's recogniser was trained with.
        "dlib": (
            150,
            ((47.5492, 46.5990), (100.4761, 46.5990), (74.0127, 76.5625), (50.4149, 103.0233), (97.6104, 103.0233)),
        ),
    }
)
"""The height of a square crop, and five (x, y) in it, in pixels."""


@dataclass(frozen=True)
class CropTemplate:
    """The size of a crop, and where the face is in it.

    Attributes:
        size: Height and width in pixels.
        alignment: Whose crops these are: "insightface" or "dlib", in which the face is larger and
            higher.
    """

    size: tuple[int, int] = (112, 112)
    alignment: Alignment = "insightface"

    @property
    def landmarks(self) -> Points:
        """X and y of: right eye, left eye, nose tip, right and left corner of the mouth. Right is the person's right.

        The alignment's own points are scaled by the height and moved sideways to the middle, so (112, 96) is the
        112 x 112 crop without its outer columns.
        """
        height, width = self.size
        side, points = _POINTS[self.alignment]
        scale, shift = height / side, (width - height) / 2
        return tuple((x * scale + shift, y * scale) for x, y in points)


INSIGHTFACE_112 = CropTemplate()
"""The crop that most recognisers take."""
