"""All pairs of many images, some rows of their similarities at a time: memory does not grow with the number of pairs.

A pair of images first < second has the key first * N + second, which rises along the rows of the upper triangle.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.exceptions import InputError

_BLOCK = 1 << 23  # scores at a time
_SAMPLE = 2000  # images


class Block(NamedTuple):
    mated: NDArray[np.float32]
    """[mated pairs of these rows] scores, by rising key."""
    keys: NDArray[np.int64]
    """[non-mated pairs above the floor] rising."""
    scores: NDArray[np.float32]
    """Of those."""


def check_normalised(embeddings: NDArray[np.float32]) -> None:
    if not np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3):
        raise InputError("expected L2-normalised embeddings")


def mated_keys(identities: NDArray[np.integer]) -> NDArray[np.int64]:
    """Of all mated pairs, rising."""
    n = len(identities)
    by_person = np.argsort(identities, kind="stable")
    persons = identities[by_person]
    later = np.searchsorted(persons, persons, side="right") - 1 - np.arange(n)  # images of the same person
    first = np.repeat(np.arange(n), later)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(later) - later, later)
    return np.sort(by_person[first] * n + by_person[second])


def score_floor(embeddings: NDArray[np.float32], identities: NDArray[np.integer], share: float) -> float:
    """What about this share of non-mated pairs score above, from a seeded sample; -infinity from 1 on."""
    some = np.random.default_rng(0).permutation(len(embeddings))[:_SAMPLE]
    a, b = np.array_split(some, 2)
    scores = (embeddings[a] @ embeddings[b].T)[identities[a][:, None] != identities[b]]
    return float(np.quantile(scores, 1 - share)) if share < 1 and len(scores) else -np.inf


def blocks(embeddings: NDArray[np.float32], mated: NDArray[np.int64], floor: float) -> Iterator[Block]:
    """Rows of the upper triangle, in order; non-mated pairs only where they score above floor.

    Args:
        embeddings: [N, d]; a score is the dot product.
        mated: keys of all mated pairs, rising.
    """
    n, row = len(embeddings), 0
    memory = np.empty(max(_BLOCK, n), np.float32)  # fresh pages for every block cost more than the product
    while row < n - 1:
        width = n - row
        rows = min(width - 1, max(1, _BLOCK // width))
        similar = memory[: rows * width].reshape(rows, width)
        np.matmul(embeddings[row : row + rows], embeddings[row:].T, out=similar)
        own = mated[slice(*np.searchsorted(mated, [row * n, (row + rows) * n]))]
        own = (own // n - row) * width + own % n - row
        flat = similar.ravel()
        mated_scores = flat[own]
        flat[own] = -np.inf
        for i in range(rows):
            similar[i, : i + 1] = -np.inf
        at = np.flatnonzero(flat > floor)
        yield Block(mated_scores, at + (at // width * row) + row * n + row, flat[at])
        row += rows
