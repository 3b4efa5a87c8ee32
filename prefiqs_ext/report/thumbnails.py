"""Small pictures for the page, written into it as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence

from PIL import Image

from prefiqs_ext.exceptions import FileAccessError
from prefiqs_ext.faces.image import UnreadableImage, read_rgb
from prefiqs_ext.files.records import Record

SIDE = 112
"""The longer side of a thumbnail, in pixels."""

_MARGIN = 0.3  # of the face's longer side, around what the detector found
_JPEG_QUALITY = 80


def make_thumbnails(rows: Sequence[Record]) -> Iterator[tuple[Record, str]]:
    """Make the picture of each row: its face, or the whole image if no face was found.

    Yields:
        Each row and its data URI, which is "" if there is no picture. The rows come in another order than they were
        given in, since an image is decoded once for all its faces.
    """
    by_path: dict[str, list[Record]] = {}
    for row in rows:
        by_path.setdefault(row.path, []).append(row)
    for path, faces in by_path.items():
        image = None
        if any(row.status != "unreadable" for row in faces):
            try:
                image = Image.fromarray(read_rgb(path))
            except (UnreadableImage, FileAccessError):  # it was readable a moment ago, so its numbers still hold
                image = None
        for row in faces:
            yield row, "" if image is None else _encode(image.crop(_choose_box(row, image.size)))


def _choose_box(row: Record, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a square around the face, cut at the borders of the image."""
    width, height = size
    if row.x is None or row.y is None or row.w is None or row.h is None:
        return 0, 0, width, height
    half = max(row.w, row.h) * (0.5 + _MARGIN)
    middle_x, middle_y = row.x + row.w / 2, row.y + row.h / 2
    left, right = (round(min(max(middle_x + side, 0), width)) for side in (-half, half))
    top, bottom = (round(min(max(middle_y + side, 0), height)) for side in (-half, half))
    # A box outside the image or thinner than a pixel cannot be shown; the image can.
    return (left, top, right, bottom) if right > left and bottom > top else (0, 0, width, height)


def _encode(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "jpeg", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
