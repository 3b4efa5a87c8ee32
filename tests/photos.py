"""Writing photo files for the tests that read them, and asking why one cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from prefiqs_ext.exceptions import FileAccessError
from prefiqs_ext.faces import CropTemplate, UnreadableImage, get_reason, read_rgb

Levels = NDArray[np.uint8]
TEMPLATE = np.array(CropTemplate().landmarks)
"""[5, 2] in a crop of 112 x 112 pixels, as InsightFace cuts it."""


def saved(path: Path, levels: NDArray[np.generic], mode: str | None = None, **options: object) -> Path:
    picture = Image.fromarray(levels)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def reason(path: Path | str) -> str:
    """Why there is no image; checks that it is one line with the path in front."""
    with pytest.raises((UnreadableImage, FileAccessError)) as caught:
        read_rgb(path)
    assert "\n" not in str(caught.value)
    found = get_reason(caught.value)
    assert found in str(caught.value)
    return found
