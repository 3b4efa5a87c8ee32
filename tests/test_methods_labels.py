"""Quality-label optimisation: it mends a corrupted ranking, by the rule as written plainly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from prefiqs_ext.methods import optimise_labels
from prefiqs_ext.methods import quality_labels as labels


def planted(people: int = 30, each: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings that stray from their person's direction by noise, the true quality (less noise), and identities."""
    generator = np.random.default_rng(5)
    identities = np.repeat(np.arange(people), each)
    noise = generator.uniform(0.1, 2.0, len(identities))
    embeddings = generator.normal(size=(people, 64))[identities] + noise[:, None] * generator.normal(
        size=(len(noise), 64)
    )
    return embeddings, -noise, identities


@pytest.mark.parametrize(("rescale", "epsilon", "clusters"), [(False, 0.001, 20), (True, 0.3, 20), (True, 0.3, 5)])
def test_improves_a_corrupted_ranking(rescale: bool, epsilon: float, clusters: int) -> None:
    embeddings, truth, identities = planted()
    scores = truth + np.random.default_rng(6).normal(0, 0.8, len(truth))
    found = optimise_labels(scores, embeddings, identities, rescale=rescale, epsilon=epsilon, clusters=clusters)
    assert np.array_equal(np.sort(found), np.sort(scores))
    before, after = spearmanr(scores, truth)[0], spearmanr(found, truth)[0]
    assert after > before, (before, after)


@pytest.mark.parametrize("rescale", [False, True])
def test_is_the_rule(rescale: bool) -> None:
    """With a cluster an image every pair is drawn, so nothing is random."""
    embeddings, truth, identities = planted(3, 5)
    scores = np.random.default_rng(7).permutation(len(truth)).astype(float)
    unit = embeddings / np.linalg.norm(embeddings, axis=1)[:, None]
    pairs = [(i, j) for i in range(15) for j in range(15) if i != j and identities[i] == identities[j]]
    pairs.sort(key=lambda p: float(unit[p[0]] @ unit[p[1]]))
    got: dict[int, list[float]] = {}
    for position, (i, j) in enumerate(pairs):
        scale = 14 / (len(pairs) - 1) if rescale else 1
        got.setdefault(i if scores[i] < scores[j] else j, []).append(position * scale)
    moved = [q + 0.4 * (np.mean(got[i]) - q) if i in got else q for i, q in enumerate(scores)]
    found = optimise_labels(scores, embeddings, identities, rescale=rescale, epsilon=0.4)
    assert np.array_equal(np.argsort(found), np.argsort(moved))


def test_single_images_stay_and_seeds_repeat() -> None:
    embeddings, truth, _ = planted(3, 5)
    assert np.array_equal(optimise_labels(truth, embeddings, range(15), rescale=False), truth)
    embeddings, truth, identities = planted(3, 40)
    one, same = (optimise_labels(truth, embeddings, identities, rescale=True, epsilon=0.5, seed=s) for s in (1, 1))
    assert np.array_equal(one, same)


@pytest.mark.filterwarnings("error")
def test_copies_are_no_mates() -> None:
    """They are in one cluster, also where an identity has fewer different embeddings than clusters."""
    embeddings, _, identities = planted(2, 12)
    twice, scores = np.repeat(embeddings, 2, axis=0), np.random.default_rng(8).normal(size=48)
    optimise_labels(scores, twice, np.repeat(identities, 2), rescale=True, clusters=5)  # k-means may lose a cluster
    for people in (np.arange(24), identities):
        groups = labels._group_by_identity(np.repeat(people, 2))
        drawn = [labels._cluster(group, twice, 20, np.random.default_rng(0)) for group in groups]
        assert all(len(set(map(tuple, twice[cluster]))) == 1 for clusters in drawn for cluster in clusters)
    same = optimise_labels(scores, twice, np.repeat(np.arange(24), 2), rescale=True, epsilon=0.5)
    assert np.array_equal(same, scores)


def test_refusals() -> None:
    embeddings, truth, identities = planted(2, 3)
    for scores, vectors, people in (
        (truth[:-1], embeddings, identities),
        (truth, embeddings[:-1], identities),
        (truth, embeddings, identities[:-1]),
    ):
        with pytest.raises(ValueError, match="N identities"):
            optimise_labels(scores, vectors, people, rescale=False)
    with pytest.raises(ValueError, match="finite"):
        optimise_labels(np.where(truth == truth[0], np.nan, truth), embeddings, identities, rescale=False)
    with pytest.raises(ValueError, match="not zero"):
        optimise_labels(truth, embeddings * 0, identities, rescale=False)
    with pytest.raises(ValueError, match="epsilon"):
        optimise_labels(truth, embeddings, identities, rescale=False, epsilon=2)
