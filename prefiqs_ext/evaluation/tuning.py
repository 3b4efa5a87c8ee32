"""Which setting serves a network best, and do two qualities together beat both? On people that had no say in it.

The rule, stated before any result was seen:

1. People are parted into folds: shuffled by the seed, then dealt in turn.
2. For each fold that setting is chosen which has the lowest pAUC (mode rethresholded, to a discard ratio of .30, at FMR
   1e-3) over all pairs of the people of the other folds; of equal ones the first, and the default is the first of all.
3. The chosen setting and the default are measured, by the same pAUC, over all pairs of the fold's own people.
4. The held-out difference is the mean over folds of pAUC(chosen) - pAUC(default). For its 95 % interval persons are
   drawn with replacement inside each fold, the same draws for both; the choices stay what they are.
5. The default is kept unless the whole interval lies below 0. Only then the setting with the lowest pAUC over all
   people is recommended.

A mixture of qualities that has to be fitted is fitted, for each fold, on the images of the other folds, and compared as
in 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.all_pairs import all_pairs
from prefiqs_ext.evaluation.bootstrap import bootstrap
from prefiqs_ext.evaluation.edc import FMRS, LIMIT, Curve, ratios_to
from prefiqs_ext.exceptions import InputError

FMR = 1e-3
_RATIOS = ratios_to(LIMIT)
# With fewer, draws of persons that hold no mated pair at all are to be expected: one in exp(number).
_LEAST_PEOPLE = 10

Rule = Callable[[NDArray[np.bool_]], NDArray[np.floating]]
"""Which images may be looked at [N] -> quality of all images [N], higher = better."""


class HeldOut(NamedTuple):
    """What rules give on people that they did not look at; pAUC times 1000, lower is better."""

    pauc: dict[str, NDArray[np.float64]]
    """[folds] of each rule, on the fold's own people."""
    draws: dict[str, NDArray[np.float64]]
    """[resamples] of each rule, mean over folds; the same draws of persons for all rules."""

    def difference(self, rule: str, other: str) -> tuple[float, float, float]:
        """pAUC(rule) - pAUC(other), mean over folds, and its 95 % percentile interval; below 0: rule is better."""
        low, high = np.percentile(self.draws[rule] - self.draws[other], [2.5, 97.5])
        return float(np.mean(self.pauc[rule] - self.pauc[other])), float(low), float(high)


class Tuned(NamedTuple):
    """The settings' curves and pAUC, times 1000, and what the rule makes of them."""

    overall: dict[str, dict[float, Curve]]
    """Of each setting, over all people, by FMR."""
    training: dict[str, NDArray[np.float64]]
    """[folds] of each setting, over the people of the other folds."""
    testing: dict[str, NDArray[np.float64]]
    """[folds] of each setting, over the fold's own people."""
    chosen: list[str]
    """[folds] the setting that is lowest in training."""
    difference: tuple[float, float, float]
    """Held-out, chosen - default: mean over folds, and the interval's ends."""
    recommended: str


def part(identities: NDArray[np.integer], folds: int = 5, seed: int = 0) -> NDArray[np.int64]:
    """[N] the fold of each image; all images of a person are in one.

    Raises:
        ValueError: fewer people than folds; a fold in which the rule's FMR cannot be measured, or with too few people
            of two images or more to draw from.
    """
    persons, who = np.unique(identities, return_inverse=True)
    if not 2 <= folds <= len(persons):
        raise InputError(f"expected 2 folds or more, and as many people at least; got {folds} and {len(persons)}")
    fold = np.empty(len(persons), np.int64)
    fold[np.random.default_rng(seed).permutation(len(persons))] = np.arange(len(persons)) % folds
    images = np.bincount(who)
    for index in range(folds):
        own = images[fold == index]
        several = int((own > 1).sum())
        non_mated = int(own.sum() ** 2 - (own**2).sum()) // 2
        if several < _LEAST_PEOPLE or non_mated < 1 / FMR:
            raise InputError(
                f"expected {_LEAST_PEOPLE} people of two images and {1 / FMR:.0f} non-mated pairs or more in each of "
                f"{folds} folds, got {several} and {non_mated} in one: use fewer folds or more people"
            )
    return fold[who]


def tune_settings(
    embeddings: NDArray[np.floating],
    identities: NDArray[np.integer],
    fold: NDArray[np.integer],
    settings: Mapping[str, NDArray[np.floating]],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> Tuned:
    """The rule at the head of this file.

    Args:
        embeddings: [N, d] L2-normalised.
        identities: [N] a number a person.
        fold: [N] as `part` gives.
        settings: [N] quality of each setting, higher = better; the first is the default.

    Raises:
        ValueError: as all_pairs and bootstrap; no mated pair left at a discard ratio, naming the fold.
    """
    default = next(iter(settings))

    def measured(quality: NDArray[np.floating], within: NDArray[np.bool_]) -> float:
        (curve,) = all_pairs(embeddings[within], identities[within], quality[within], fmrs=(FMR,), ratios=_RATIOS)
        return curve.area(LIMIT)

    folds = range(int(fold.max()) + 1)
    overall = {
        name: {curve.fmr: curve for curve in all_pairs(embeddings, identities, quality, fmrs=FMRS, ratios=_RATIOS)}
        for name, quality in settings.items()
    }
    training = {
        name: np.array([measured(quality, fold != index) for index in folds]) for name, quality in settings.items()
    }
    testing = {
        name: np.array([measured(quality, fold == index) for index in folds]) for name, quality in settings.items()
    }
    chosen = [min(settings, key=lambda name, index=index: training[name][index]) for index in folds]  # type: ignore[misc]
    rules: dict[str, Rule] = {
        "chosen": lambda seen: settings[chosen[int(fold[~seen][0])]],
        "default": lambda _: settings[default],
    }
    difference = held_out(embeddings, identities, fold, rules, resamples=resamples, seed=seed).difference(
        "chosen", "default"
    )
    best = min(settings, key=lambda name: overall[name][FMR].area(LIMIT))
    return Tuned(overall, training, testing, chosen, difference, best if difference[2] < 0 else default)


def held_out(
    embeddings: NDArray[np.floating],
    identities: NDArray[np.integer],
    fold: NDArray[np.integer],
    rules: Mapping[str, Rule],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> HeldOut:
    """Steps 3 and 4 of the rule for any qualities. Arguments and errors as `tune_settings`."""
    folds = int(fold.max()) + 1
    # A seed a fold: equal draws of places would not be independent.
    seeds = np.random.SeedSequence(seed).generate_state(folds)
    pauc: dict[str, list[float]] = {name: [] for name in rules}
    draws: dict[str, list[NDArray[np.float64]]] = {name: [] for name in rules}
    for index in range(folds):
        own = fold == index
        faces = embeddings[own], identities[own]
        qualities = {name: np.asarray(rule(~own))[own] for name, rule in rules.items()}
        try:
            for name, quality in qualities.items():
                (curve,) = all_pairs(*faces, quality, fmrs=(FMR,), ratios=_RATIOS)
                pauc[name].append(curve.area(LIMIT))
            drawn = bootstrap(*faces, qualities, fmr=FMR, limit=LIMIT, resamples=resamples, seed=int(seeds[index]))
        except ValueError as error:
            raise InputError(f"people of fold {index + 1}: {error}") from error
        for name in rules:
            draws[name].append(drawn.pauc[name])
    return HeldOut(
        {name: np.array(values) for name, values in pauc.items()},
        {name: np.mean(values, axis=0) for name, values in draws.items()},
    )
