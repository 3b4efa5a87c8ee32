"""The rule by which a calibrated score is fitted to degraded copies of faces, without anyone's identity.

Each copy has a similarity: the cosine of its embedding with that of the face it was made from. The score shall rank
the copies as their similarities do. What it may read are the logarithms of a signal and of the norms of some layers'
outputs (the features). The rule was written down before any result:

1. The prior is the signal alone: the norm of the embedding or, where the norm does not vary or does not rank the
   copies, 1 / D.
2. The correction is a ridge regression of what the prior leaves unexplained of the angle (in radians, negated) between
   the two embeddings on what it leaves unexplained of the layers' norms. It is put on the prior's own scale, divided by
   the slope of the angle on the prior.
3. Outside of what the fit has seen, the correction fades: it is multiplied by min(1, r / m), where m is the squared
   Mahalanobis distance of the features and r its 95 % quantile over the fit. Far away, the score ranks by the prior.
4. The penalty is chosen among `_PENALTIES` by copies of other faces whose family of degradations the fit did not see.
   What is compared is the area under the mean angle of the copies that are kept, as 0 to 30 % of them are discarded by
   the score, relative to the prior's. The lowest mean over the families wins. If it is not below 1, nothing is
   corrected.
5. A logistic curve turns the result into the expected similarity.

Ridge regression, Mahalanobis distance and fractional logistic regression (Papke and Wooldridge, Journal of Applied
Econometrics 11, 1996) are standard; the combination is this project's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.exceptions import InputError

Numbers = NDArray[np.float64]

FAMILIES: dict[str, tuple[str, ...]] = {
    "cover": ("occlusion",),
    "sharpness": ("blur", "down-sampling"),
    "texture": ("noise", "JPEG"),
    "light": ("light", "darkness", "contrast", "gamma"),
}
"""Kinds of degradation that harm an image in like ways. All of a family is left out at once."""

_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)  # of standardised features
_MOST_DISCARDED = 0.3
_STEPS = 31
_SEEN = 0.95  # the share of the fit that counts as seen
_SHRINKAGE = 0.01  # of the correlations towards none, so that their matrix can be inverted
_BINS = 10


@dataclass(frozen=True)
class Copies:
    """Degraded copies of faces, and what one pass of the network gave for them.

    Attributes:
        features: [M, 1 + K] the logarithm of the prior's signal, then those of K layers' norms.
        similarity: [M] in [-1, 1], the cosine of a copy's embedding with that of its face.
        face: [M] which face it is a copy of, a number from 0 on.
        kinds: [M] the names of the degradations of each.
    """

    features: Numbers
    similarity: Numbers
    face: NDArray[np.int64]
    kinds: tuple[frozenset[str], ...]

    def select(self, chosen: NDArray[np.bool_]) -> Copies:
        """Return some of the copies; `chosen` is [M]."""
        kinds = tuple(kinds for kinds, keep in zip(self.kinds, chosen, strict=True) if keep)
        return Copies(self.features[chosen], self.similarity[chosen], self.face[chosen], kinds)

    def have(self, kinds: Iterable[str]) -> NDArray[np.bool_]:
        """Tell [M] which copies have one of these degradations."""
        wanted = frozenset(kinds)
        return np.array([bool(wanted & own) for own in self.kinds], dtype=bool)

    @property
    def angle(self) -> Numbers:
        """[M] the angle between the embeddings of a copy and of its face, in radians; LOWER is better."""
        return compute_angle(self.similarity)


@dataclass(frozen=True)
class Correction:
    """The prior's signal with a correction, before the scale; see scale.py for the formula.

    Attributes:
        centre: [1 + K] the mean of the features.
        precision: [1 + K, 1 + K] of the Mahalanobis distance.
        radius: The squared distance up to which the correction counts in full.
        coefficients: [1 + K] of the correction; zeros for none.
    """

    centre: Numbers
    precision: Numbers
    radius: float
    coefficients: Numbers

    def __call__(self, features: Numbers) -> Numbers:
        """Rank faces by their features [N, 1 + K]: [N], HIGHER is better."""
        centred = features - self.centre
        distance = _measure_distance(centred, self.precision)
        ranked: Numbers = centred[:, 0] + self.radius / np.maximum(distance, self.radius) * (
            centred @ self.coefficients
        )
        return ranked


@dataclass(frozen=True)
class Fit:
    """What was fitted, and how well it does on what it was not fitted on.

    Attributes:
        correction: Fitted on all copies.
        offset: Of the logistic curve.
        slope: Of the logistic curve, above 0.
        error: The root mean square of expected minus found similarity, on faces left out.
        reliability: For tenths of the copies by rising expectation, on faces left out: the mean of the expected
            similarities, the mean of those found, and the number of copies.
        left_out: For each kind of degradation, the area (see the rule) relative to the prior's on copies of other
            faces when the fit has not seen that kind; below 1 is better than the prior.
    """

    correction: Correction
    offset: float
    slope: float
    error: float
    reliability: tuple[tuple[float, float, int], ...]
    left_out: dict[str, float]


def fit(copies: Copies) -> Fit:
    """Fit a score by the rule above.

    Raises:
        InputError: The prior's signal does not rise with the similarity, so the network cannot be calibrated by it.
    """
    penalty = choose_penalty(copies)
    correction = fit_correction(copies, penalty)
    offset, slope = fit_logistic(correction(copies.features), copies.similarity)
    if slope <= 0:
        raise InputError(
            "calibrate: neither the norm of the embedding nor D tells degraded copies of these faces from good ones: "
            "use typical, mostly good faces, and check that the preset is the network's"
        )
    expected = np.empty(len(copies.similarity))
    for half in (0, 1):
        others, own = copies.select(copies.face % 2 != half), copies.face % 2 == half
        fitted = fit_correction(others, penalty)
        curve = fit_logistic(fitted(others.features), others.similarity)
        expected[own] = compute_logistic(fitted(copies.features[own]), *curve)
    bins = np.array_split(np.argsort(expected, kind="stable"), _BINS)
    reliability = tuple(
        (float(expected[rows].mean()), float(copies.similarity[rows].mean()), len(rows)) for rows in bins
    )
    kinds = sorted(frozenset().union(*copies.kinds))
    left_out = {kind: value for kind in kinds if (value := _measure_left_out(copies, (kind,), penalty)) is not None}
    error = float(np.sqrt(np.square(expected - copies.similarity).mean()))
    return Fit(correction, offset, slope, error, reliability, left_out)


def choose_penalty(copies: Copies) -> float:
    """Choose the penalty of the ridge regression; infinity stands for no correction."""
    means = {}
    for penalty in _PENALTIES:
        areas = [_measure_left_out(copies, kinds, penalty) for kinds in FAMILIES.values()]
        means[penalty] = float(np.mean([area for area in areas if area is not None] or [1.0]))
    best = min(means, key=means.__getitem__)
    return best if means[best] < 1 else np.inf


def fit_correction(copies: Copies, penalty: float) -> Correction:
    """Fit the correction and its region with a given penalty."""
    features = copies.features
    centre, deviation = features.mean(0), features.std(0)
    if deviation[0] == 0:
        raise InputError("calibrate: the prior's signal is the same for all copies")
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)  # 0 for what never varies
    standard = (features - centre) * scale
    correlation = standard.T @ standard / len(standard)
    inverse = np.linalg.inv(correlation * (1 - _SHRINKAGE) + _SHRINKAGE * np.eye(len(centre)))
    precision = inverse * np.outer(scale, scale)
    radius = float(np.quantile(_measure_distance(features - centre, precision), _SEEN))
    coefficients = np.zeros(len(centre))
    if np.isfinite(penalty) and len(centre) > 1:
        prior, layers, target = standard[:, 0], standard[:, 1:], -copies.angle
        target = target - target.mean()
        slope, shares = prior @ target / len(prior), prior @ layers / len(prior)
        if slope > 0:
            rest = layers - np.outer(prior, shares)
            weights = np.linalg.solve(
                rest.T @ rest / len(rest) + penalty * np.eye(rest.shape[1]),
                rest.T @ (target - slope * prior) / len(rest),
            )
            on_prior = weights / slope * deviation[0]  # in units of the prior's logarithm
            coefficients[1:] = on_prior * scale[1:]
            coefficients[0] = -(on_prior @ shares) * scale[0]
    return Correction(centre, precision, radius, coefficients)


def compute_angle(similarity: Numbers) -> Numbers:
    """Turn cosines [M] into angles in radians."""
    angle: Numbers = np.arccos(np.clip(similarity, -1, 1))
    return angle


def measure_area(angle: Numbers, score: Numbers) -> float:
    """The area under the mean angle of what is kept, as 0 to 30 % are discarded by their score; LOWER is better.

    Args:
        angle: [M] in radians.
        score: [M], HIGHER is better.
    """
    rising = angle[np.argsort(score, kind="stable")]
    kept_means = np.cumsum(rising[::-1])[::-1] / np.arange(len(rising), 0, -1)
    discarded = np.round(np.linspace(0, _MOST_DISCARDED, _STEPS) * len(rising)).astype(int)
    return float(kept_means[discarded].mean())


def fit_logistic(values: Numbers, similarity: Numbers) -> tuple[float, float]:
    """Fit similarity = 1 / (1 + exp(-(offset + slope * value))); similarities below 0 count as 0."""
    target, design = np.clip(similarity, 0, 1), np.stack([np.ones(len(values)), values], 1)
    share = np.clip(target.mean(), 1e-6, 1 - 1e-6)
    found = np.array([np.log(share / (1 - share)), 0.0])
    for _ in range(50):  # Newton's method; the likelihood is concave, and some six steps are enough
        expected = compute_logistic(values, *found)
        curvature = (design * (expected * (1 - expected))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, design.T @ (target - expected))
        found = found + step
        if np.abs(step).max() < 1e-10:
            break
    return float(found[0]), float(found[1])


def compute_logistic(values: Numbers, offset: float, slope: float) -> Numbers:
    """1 / (1 + exp(-(offset + slope * value))), of numbers [N]."""
    curve: Numbers = 1 / (1 + np.exp(np.clip(-(offset + slope * values), -700, 700)))
    return curve


def _measure_left_out(copies: Copies, kinds: tuple[str, ...], penalty: float) -> float | None:
    """The area relative to the prior's, on copies that have one of these kinds, by fits without them on other faces.

    None if there are too few such copies.
    """
    concerned, areas = copies.have(kinds), []
    for half in (0, 1):
        own = copies.face % 2 == half
        tested, fitted_on = copies.select(own & concerned), copies.select(~own & ~concerned)
        if len(tested.similarity) < _STEPS or len(fitted_on.similarity) < _STEPS:
            return None
        score = fit_correction(fitted_on, penalty)(tested.features)
        areas.append(measure_area(tested.angle, score) / measure_area(tested.angle, tested.features[:, 0]))
    return float(np.mean(areas))


def _measure_distance(centred: Numbers, precision: Numbers) -> Numbers:
    """The squared Mahalanobis distances [N] of features [N, 1 + K] from their centre."""
    distance: Numbers = np.einsum("ni,ij,nj->n", centred, precision, centred)
    return distance
