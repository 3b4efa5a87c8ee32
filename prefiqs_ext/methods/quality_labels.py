"""Quality-label optimisation: moves the scores of any method by how similar images of one person are.

Source: Babnik and Struc, "Optimization-Based Improvement of Face Image Quality Assessment Techniques" (ERK 2022), and
the authors' code (github.com/LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques).
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.optional_packages import require_packages


def optimise_labels(
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
    """Hand the same score values to the images in a better order.

    The images of each identity are grouped into clusters by k-means of their L2-normalised embeddings. An identity with
    at most `clusters` different embeddings has one cluster for each of them. Then, in each iteration:

    1. Every image draws one mate from each other cluster of its identity. This gives P pairs; two images that draw each
       other form two of them.
    2. The pairs are sorted by cosine similarity. Each pair gives its position to the one of its two images that has the
       lower rank q in 0..N-1.
    3. With g the mean position that an image got, its new rank is q' = q + epsilon (g - q). An image that got none
       keeps q.

    The mean of q' over the iterations orders the images.

    Args:
        scores: [N] finite, HIGHER is better: negate D and other distances.
        embeddings: [N, d] finite, no row zero.
        identities: [N], anything that compares equal for the same person.
        iterations: 1 or more.
        clusters: The most clusters of an identity, 1 or more.
        epsilon: The step towards g, in [0, 1].
        rescale: False leaves g in 0..P-1, as published. True scales it to 0..N-1, the scale of the ranks.
        seed: Of the clusters' starts and of the mates.

    Returns:
        [N], the values of `scores` in another order, HIGHER is better.

    Raises:
        InputError: Unequal lengths, values that are not finite, or numbers out of range.
        MissingPackageError: An identity has more than `clusters` different embeddings, and SciPy is missing.
    """
    values = np.asarray(scores, np.float64)
    unit = np.asarray(embeddings, np.float64)
    people = np.unique(np.asarray(identities), return_inverse=True)[1].ravel()
    _check(values, unit, people, iterations, clusters, epsilon)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    generator = np.random.default_rng(seed)
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    groups = [_cluster(members, unit, clusters, generator) for members in _group_by_identity(people)]
    total = np.zeros(len(values))
    for _ in range(iterations):
        pairs = _draw_pairs(groups, generator)
        total += ranks + epsilon * (_assign_positions(pairs, unit, ranks, rescale) - ranks)
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


def _group_by_identity(people: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The indices of the images of each identity."""
    order = np.argsort(people, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(people[order])) + 1)


def _cluster(
    members: NDArray[np.intp], unit: NDArray[np.float64], clusters: int, generator: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Split one identity's images into clusters."""
    distinct, labels = np.unique(unit[members], axis=0, return_inverse=True)
    labels = labels.ravel()
    if len(distinct) > clusters:
        require_packages("analysis", "scipy")
        from scipy.cluster.vq import kmeans2

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a cluster that lost all its images: it is ignored
            labels = kmeans2(unit[members], clusters, minit="++", missing="warn", rng=generator)[1]
    return [members[labels == label] for label in np.unique(labels)]


def _draw_pairs(groups: list[list[NDArray[np.intp]]], generator: np.random.Generator) -> NDArray[np.intp]:
    """Pair each image with one mate of each other cluster of its identity: [P, 2]. (a, b) and (b, a) are two pairs."""
    pairs = [
        np.column_stack([images, generator.choice(others, len(images))])
        for group in groups
        for images in group
        for others in group
        if others is not images
    ]
    if not pairs:
        return np.empty((0, 2), np.intp)
    return np.concatenate(pairs)


def _assign_positions(
    pairs: NDArray[np.intp], unit: NDArray[np.float64], ranks: NDArray[np.float64], rescale: bool
) -> NDArray[np.float64]:
    """Compute g of each image [N]: the mean position that its pairs gave it; its own rank if there is none."""
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
