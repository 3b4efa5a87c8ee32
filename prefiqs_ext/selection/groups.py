"""Goes through the faces of each group from best to worst: near duplicates, and the group's template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_Member = tuple[bytes, int, float, NDArray[np.float64]]


class Group(NamedTuple):
    """The faces that are kept of one group.

    Attributes:
        name: What its rows have in common.
        places: The numbers of the rows that are kept, the best first.
        template: [d] the sum of score x embedding over these rows, of length 1.
    """

    name: bytes
    places: list[int]
    template: NDArray[np.float64]


def walk_groups(batches: Iterable[pa.RecordBatch], best: int, near: float | None) -> Iterator[Group]:
    """Chooses in one group after another.

    Args:
        batches: The columns person, place, score and embedding, ordered by person and from best to worst.
        best: How many faces are kept of a group.
        near: Faces whose embedding has at least this cosine with one that is kept are left out. None: none is.
    """
    for name, members in groupby(_list_members(batches), key=lambda member: member[0]):
        yield _choose_in_group(name, members, best, near)


def _list_members(batches: Iterable[pa.RecordBatch]) -> Iterator[_Member]:
    for batch in batches:
        columns = (batch[name].to_pylist() for name in ("person", "place", "score"))
        yield from zip(*columns, _normalise(batch["embedding"]), strict=True)


def _choose_in_group(name: bytes, members: Iterable[_Member], best: int, near: float | None) -> Group:
    places: list[int] = []
    kept = np.empty((0, 0))
    total = np.zeros(())
    for _, place, score, embedding in members:
        if len(places) == best:
            break
        if near is not None:
            if places and (kept @ embedding >= near).any():
                continue
            kept = np.concatenate([kept.reshape(-1, len(embedding)), embedding[None]])
        places.append(place)
        total = total + score * embedding
    return Group(name, places, total / np.linalg.norm(total))


def _normalise(embeddings: pa.Array) -> NDArray[np.float64]:
    # In float64, where no square of a float32 overflows.
    numbers = embeddings.flatten().to_numpy(zero_copy_only=False).reshape(len(embeddings), -1).astype(np.float64)
    unit: NDArray[np.float64] = numbers / np.linalg.norm(numbers, axis=1, keepdims=True)
    return unit
