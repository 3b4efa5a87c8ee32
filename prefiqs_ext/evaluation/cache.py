"""Arrays that were computed before, known by what they depend on: in files, or in memory."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.datasets.readers import read_array
from prefiqs_ext.exceptions import FileAccessError, FileFormatError
from prefiqs_ext.models.weights import get_cache_folder
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.strict_json import JSON

Arrays: TypeAlias = Mapping[str, NDArray[np.float32]]
"""float32 arrays [N, ...] by name, all of the same N images."""
Cache: TypeAlias = Callable[[Mapping[str, JSON], Sequence[str], int, Callable[[], Arrays]], Arrays]
"""(facts, names, N, compute) -> the arrays of these names. The facts decide what is in them; `compute` makes them."""


def make_memory_cache() -> Cache:
    """Make a Cache that keeps its arrays for as long as it lives itself."""
    kept: dict[str, Arrays] = {}

    def load_or_compute_in_memory(
        facts: Mapping[str, JSON], names: Sequence[str], images: int, compute: Callable[[], Arrays]
    ) -> Arrays:
        key = _make_key(facts)
        if key not in kept:
            kept[key] = compute()
        return kept[key]

    return load_or_compute_in_memory


def load_or_compute(
    facts: Mapping[str, JSON], names: Sequence[str], images: int, compute: Callable[[], Arrays]
) -> Arrays:
    """Load arrays from files, or compute them and keep them there: a Cache for other runs too.

    Each array has a file of its own, PREFIQS_HOME/evaluation/KEY-NAME.npy. If one is missing, broken, of another length
    or not finite, all of them are computed again. A folder that cannot be written is reported once and done without.

    Args:
        facts: All that the numbers depend on.
        names: Of the arrays.
        images: N, the length of every array.
        compute: Makes the arrays, by these names.
    """
    folder, key = get_cache_folder() / "evaluation", _make_key(facts)
    files = {name: folder / f"{key}-{name}.npy" for name in names}
    with suppress(FileAccessError, FileFormatError):
        return {name: _load(file, images) for name, file in files.items()}
    arrays = compute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in files.items():
            _save(file, arrays[name])
    except OSError as error:
        _warn_not_kept(folder, getattr(error.__cause__ or error, "strerror", None) or str(error))
    return arrays


def _load(file: Path, images: int) -> NDArray[np.float32]:
    array = read_array(file)
    if array.ndim and len(array) == images and array.dtype == np.float32 and np.isfinite(array).all():
        return np.array(array)
    raise FileFormatError(f"{file}: expected {images} rows of finite float32")


def _save(file: Path, array: NDArray[np.float32]) -> None:
    own = f"{file}.{os.getpid()}"  # another run may compute the same
    with atomic_write(own) as out:
        np.save(out, array, allow_pickle=False)
    os.replace(own, file)


def _make_key(facts: Mapping[str, JSON]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@functools.cache  # said once
def _warn_not_kept(folder: Path, why: str) -> None:
    print(
        f"prefiqs: results are computed but not kept, as {folder} cannot be written ({why}); "
        "PREFIQS_HOME names another folder",
        file=sys.stderr,
    )
