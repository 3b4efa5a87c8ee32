"""Quality-label optimisation (Babnik and Struc, ERK 2022): any method's scores, moved by how similar mates are.

As the authors' code has it (github.com/LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques).
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefiqs_ext.exceptions import InputError, MissingPackageError


def optimise(
    scores: ArrayLike,
    embeddings: ArrayLike,
    identities: ArrayLike,
    *,
    iterations: int = 10,
    clusters: int = 20,
    epsilon: float = 0.001,
    rescale: bool,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The same score values, handed to the images in a better order.

    In each iteration every image draws one mate from each other cluster of its identity (k-means of the L2-normalised
    embeddings; an identity of at most `clusters` different embeddings has a cluster for each). The P pairs of an image
    and its mate, of which two images may form two, are sorted by cosine; a pair's position goes to its image of lower
    rank q in 0..N-1. With g the mean position that an image got, q' = q + epsilon (g - q), or q where it got none. The
    images' order is that of the mean of q' over the iterations.

    Args:
        scores: [N], HIGHER is better: negate D and the like. Finite.
        embeddings: [N, d], not all zero in a row. identities: [N], of any kind that compares equal.
        rescale: False leaves g in 0..P-1, as published; True scales it to 0..N-1, the ranks' own scale.

    Raises:
        ValueError: unequal lengths, values that are not finite, numbers out of range.
        ImportError: an identity has more than `clusters` different embeddings and SciPy is missing.
    """
    values = np.asarray(scores, np.float64)
    unit = np.asarray(embeddings, np.float64)
    people = np.unique(np.asarray(identities), return_inverse=True)[1].ravel()
    _check(values, unit, people, iterations, clusters, epsilon)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    generator = np.random.default_rng(seed)
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    groups = [_cluster(members, unit, clusters, generator) for members in _members(people)]
    total = np.zeros(len(values))
    for _ in range(iterations):
        pairs = _draw(groups, generator)
        total += ranks + epsilon * (_positions(pairs, unit, ranks, rescale) - ranks)
    optimised = np.empty(len(values))
    # Ties keep the order that the scores gave.
    optimised[np.lexsort((ranks, total))] = np.sort(values)
    return optimised


def _check(
    values: NDArray[np.float64],
    unit: NDArray[np.float64],
    people: NDArray[np.intp],
    iterations: int,
    clusters: int,
    epsilon: float,
) -> None:
    if values.ndim != 1 or unit.ndim != 2 or not len(values) == len(unit) == len(people):
        raise InputError(
            f"expected scores [N], embeddings [N, d] and N identities, got {list(values.shape)}, {list(unit.shape)} "
            f"and {len(people)}"
        )
    if not np.isfinite(values).all() or not np.isfinite(unit).all() or not unit.any(axis=1).all():
        raise InputError("expected finite scores, and embeddings that are finite and not zero")
    if iterations < 1 or clusters < 1 or not 0 <= epsilon <= 1:
        raise InputError(
            f"expected iterations and clusters of 1 or more and epsilon in [0, 1], got {iterations}, {clusters}, "
            f"{epsilon}"
        )


def _members(people: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    order = np.argsort(people, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(people[order])) + 1)


def _cluster(
    members: NDArray[np.intp], unit: NDArray[np.float64], clusters: int, generator: np.random.Generator
) -> list[NDArray[np.intp]]:
    """One identity's images, parted into clusters."""
    distinct, labels = np.unique(unit[members], axis=0, return_inverse=True)
    labels = labels.ravel()
    if len(distinct) > clusters:
        try:
            from scipy.cluster.vq import kmeans2
        except ImportError:
            raise MissingPackageError("k-means needs SciPy: pip install prefiqs_ext[analysis]") from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a cluster lost all its images: it is left out
            labels = kmeans2(unit[members], clusters, minit="++", missing="warn", rng=generator)[1]
    return [members[labels == label] for label in np.unique(labels)]


def _draw(groups: list[list[NDArray[np.intp]]], generator: np.random.Generator) -> NDArray[np.intp]:
    """The pairs [P, 2] of each image with one mate of each other cluster of its identity: (a, b) and (b, a) are two."""
    drawn = [
        np.column_stack([images, generator.choice(others, len(images))])
        for group in groups
        for images in group
        for others in group
        if others is not images
    ]
    if not drawn:
        return np.empty((0, 2), np.intp)
    return np.concatenate(drawn)


def _positions(
    pairs: NDArray[np.intp], unit: NDArray[np.float64], ranks: NDArray[np.float64], rescale: bool
) -> NDArray[np.float64]:
    """g of each image [N]: the mean position of its pairs; its own rank where it has none."""
    if not len(pairs):
        return ranks
    first, second = pairs.T
    similarity = np.einsum("pd,pd->p", unit[first], unit[second])
    position = np.empty(len(pairs))
    position[np.argsort(similarity, kind="stable")] = np.arange(len(pairs))
    if rescale:
        position *= (len(ranks) - 1) / max(len(pairs) - 1, 1)
    lower = np.where(ranks[first] < ranks[second], first, second)
    count = np.bincount(lower, minlength=len(ranks))
    total = np.bincount(lower, position, len(ranks))
    return np.where(count > 0, total / np.maximum(count, 1), ranks)
