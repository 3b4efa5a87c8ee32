"""Arrays that were computed before, known by what they depend on: in files, or in memory."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.datasets.readers import read_array
from prefiqs_ext.exceptions import FileAccessError, FileFormatError
from prefiqs_ext.models.weights import get_cache_folder
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.strict_json import JSON

_FOLDER = "evaluation"

Arrays: TypeAlias = Mapping[str, NDArray[np.float32]]
"""float32 arrays [N, ...] by name, all of the same N images."""


class Cache(Protocol):
    """Keeps arrays by the facts that decide what is in them."""

    def load(self, facts: Mapping[str, JSON], names: Sequence[str], images: int) -> Arrays | None:
        """Return the arrays of these names, each of this many images; None if one of them is not there."""

    def keep(self, facts: Mapping[str, JSON], arrays: Arrays) -> None:
        """Keep arrays, all of the same images."""


class MemoryCache:
    """Keeps its arrays for as long as it lives itself."""

    def __init__(self) -> None:
        self._kept: dict[str, Arrays] = {}

    def load(self, facts: Mapping[str, JSON], names: Sequence[str], images: int) -> Arrays | None:
        """Return the arrays that were kept of these facts."""
        return self._kept.get(_make_key(facts))

    def keep(self, facts: Mapping[str, JSON], arrays: Arrays) -> None:
        """Keep arrays."""
        self._kept[_make_key(facts)] = arrays


class FileCache:
    """Keeps arrays in files, for other runs too: each in PREFIQS_HOME/evaluation/KEY-NAME.npy."""

    def load(self, facts: Mapping[str, JSON], names: Sequence[str], images: int) -> Arrays | None:
        """Return arrays; None if a file is missing, broken, of another length or not finite."""
        with suppress(FileAccessError, FileFormatError):
            return {name: _load(file, images) for name, file in _list_files(facts, names).items()}
        return None

    def keep(self, facts: Mapping[str, JSON], arrays: Arrays) -> None:
        """Write arrays. A folder that cannot be written is reported once and done without."""
        files = _list_files(facts, list(arrays))
        folder = get_cache_folder() / _FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, file in files.items():
                _save(file, arrays[name])
        except OSError as error:
            _warn_not_kept(folder, getattr(error.__cause__ or error, "strerror", None) or str(error))


def _list_files(facts: Mapping[str, JSON], names: Sequence[str]) -> dict[str, Path]:
    key = _make_key(facts)
    return {name: get_cache_folder() / _FOLDER / f"{key}-{name}.npy" for name in names}


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
