"""Arrays that were computed before, by what they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.whole import whole_file
from ..models.weights import cache_folder
from .crops import Encoded, Landmarked, Source, Swapped


def hash_images(images: Iterable[Source]) -> str:
    """Of what the crops depend on, in order: contents, landmarks, swapped colours; names do not matter."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(_digest(image))
    return digest.hexdigest()


def _digest(image: Source) -> bytes:
    if isinstance(image, Encoded):
        return hashlib.sha256(image.data).digest()
    if isinstance(image, Landmarked):
        return hashlib.sha256(_digest(image.path) + np.asarray(image.landmarks, np.float64).tobytes()).digest()
    if isinstance(image, Swapped):
        return hashlib.sha256(_digest(image.path) + b"swapped").digest()
    return hashlib.sha256(Path(image).read_bytes()).digest()


def cached(facts: dict[str, Any], shape: tuple[int | None, ...], compute: Callable[[], Any]) -> NDArray[np.float32]:
    """The float32 array that these facts (JSON values) decide. One of another shape (None: any) in the cache, or one
    that is broken or not finite, is computed again."""
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    file = cache_folder() / "evaluation" / f"{key}.npy"
    try:
        found = np.load(file, allow_pickle=False)
        fits = found.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, found.shape, strict=True))
        if fits and found.dtype == np.float32 and np.isfinite(found).all():
            return np.asarray(found)
    except (OSError, ValueError, EOFError):
        pass
    array = np.asarray(compute(), np.float32)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(str(file)) as out:
        np.save(out, array, allow_pickle=False)
    return array
