"""All pairs of many images, some rows of their similarities at a time: memory does not grow with the number of pairs.

A pair of images first < second of N has the key first * N + second. The keys rise along the rows of the upper triangle
of the similarities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.array_types import Integers
from prefiqs_ext.exceptions import InputError

# Scores at a time: 32 MiB of float32, large enough that the product dominates and small beside the memory of any
# machine.
_BLOCK = 1 << 23
# Images whose pairs set the floor: 10^6 scores, so that a share of 4 * 1e-4 is met by 400 of them, give or take 5 %.
_SAMPLE = 2000
_UNIT = 1e-3  # how far the length of an embedding may be from 1: float16 rounds it by up to this


class Block(NamedTuple):
    """The scores of some rows of the upper triangle.

    Attributes:
        mated: The scores of the mated pairs of these rows, by rising key.
        keys: The keys of the non-mated pairs above the floor, rising.
        scores: The scores of those.
    """

    mated: NDArray[np.float32]
    keys: NDArray[np.int64]
    scores: NDArray[np.float32]


def check_normalised(embeddings: NDArray[np.float32]) -> None:
    """Check that embeddings [N, d] have length 1.

    Raises:
        InputError: One has another length.
    """
    if not np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=_UNIT):
        raise InputError("expected L2-normalised embeddings")


def list_mated_keys(identities: Integers) -> NDArray[np.int64]:
    """The keys of all mated pairs, rising."""
    n = len(identities)
    by_person = np.argsort(identities, kind="stable")
    persons = identities[by_person]
    later = np.searchsorted(persons, persons, side="right") - 1 - np.arange(n)  # images of the same person
    first = np.repeat(np.arange(n), later)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(later) - later, later)
    return np.sort(by_person[first] * n + by_person[second])


def find_keys(places: Sequence[int], n: int) -> NDArray[np.int64]:
    """Find the keys of the pairs of n images at these places in the order of the keys, from 0."""
    first = np.arange(n)
    starts = first * (2 * n - first - 1) // 2  # how many pairs lie before each image's first
    row = np.searchsorted(starts, places, side="right") - 1
    keys: NDArray[np.int64] = row * n + row + 1 + np.asarray(places) - starts[row]
    return keys


def estimate_floor(embeddings: NDArray[np.float32], identities: Integers, share: float) -> float:
    """Estimate, from a seeded sample, the score that a share of the non-mated pairs exceeds.

    Returns:
        The score; -infinity for a share of 1 or more, or if the sample has no non-mated pair.
    """
    some = np.random.default_rng(0).permutation(len(embeddings))[:_SAMPLE]
    a, b = np.array_split(some, 2)
    scores = (embeddings[a] @ embeddings[b].T)[identities[a][:, None] != identities[b]]
    return float(np.quantile(scores, 1 - share)) if share < 1 and len(scores) else -np.inf


def iterate_blocks(embeddings: NDArray[np.float32], mated: NDArray[np.int64], floor: float) -> Iterator[Block]:
    """Compute the rows of the upper triangle, in order.

    Args:
        embeddings: [N, d]; a score is the dot product of two rows.
        mated: The keys of all mated pairs, rising.
        floor: Non-mated pairs that do not score above it are ignored.
    """
    n, row = len(embeddings), 0
    memory = np.empty(max(_BLOCK, n), np.float32)  # fresh pages for every block cost more than the product
    while row < n - 1:
        width = n - row
        rows = min(width - 1, max(1, _BLOCK // width))
        similar = memory[: rows * width].reshape(rows, width)
        np.matmul(embeddings[row : row + rows], embeddings[row:].T, out=similar)
        keys = mated[slice(*np.searchsorted(mated, [row * n, (row + rows) * n]))]
        places = (keys // n - row) * width + keys % n - row
        flat = similar.ravel()
        mated_scores = flat[places]
        flat[places] = -np.inf
        for i in range(rows):
            similar[i, : i + 1] = -np.inf
        at = np.flatnonzero(flat > floor)
        yield Block(mated_scores, at + (at // width * row) + row * n + row, flat[at])
        row += rows
