"""Arrays that were computed before, by what they depend on: in files, or in memory."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.datasets.readers import read_array
from prefiqs_ext.models.weights import cache_folder
from prefiqs_ext.utils.atomic_write import atomic_write

Keep = Callable[[dict[str, Any], int, Callable[[], Any]], NDArray[np.float32]]
"""(facts, rows, compute) -> the float32 array [rows, d] that these facts (JSON values) decide."""


def in_memory() -> Keep:
    """Keeps for as long as it lives itself."""
    kept: dict[str, NDArray[np.float32]] = {}

    def keep(facts: dict[str, Any], rows: int, compute: Callable[[], Any]) -> NDArray[np.float32]:
        key = _key(facts)
        if key not in kept:
            kept[key] = np.asarray(compute(), np.float32)
        return kept[key]

    return keep


def cached(facts: dict[str, Any], rows: int, compute: Callable[[], Any]) -> NDArray[np.float32]:
    """A Keep in files. One of another shape in the cache, or one that is broken or not finite, is computed again."""
    file = cache_folder() / "evaluation" / f"{_key(facts)}.npy"
    try:
        found = read_array(file)
        if found.ndim == 2 and len(found) == rows and found.dtype == np.float32 and np.isfinite(found).all():
            return np.array(found)
    except ValueError:
        pass
    array = np.asarray(compute(), np.float32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        own = f"{file}.{os.getpid()}"  # another run may compute the same
        with atomic_write(own) as out:
            np.save(out, array, allow_pickle=False)
        os.replace(own, file)
    except (OSError, ValueError) as error:
        _not_kept(file.parent, getattr(error.__cause__ or error, "strerror", None) or str(error))
    return array


def _key(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@functools.cache  # said once
def _not_kept(folder: Path, why: str) -> None:
    print(
        f"prefiqs: results are computed but not kept, as {folder} cannot be written ({why}); "
        "PREFIQS_HOME names another folder",
        file=sys.stderr,
    )
