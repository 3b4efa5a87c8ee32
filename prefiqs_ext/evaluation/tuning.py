"""Which setting serves a network best, and do two qualities together beat both? Measured on people held out.

The rule was stated before any result was seen:

1. People are split into folds: shuffled by the seed, then dealt in turn.
2. For each fold, the setting is chosen that has the lowest pAUC over all pairs of the people of the other folds (mode
   "rethresholded", up to a discard ratio of .30, at FMR 1e-3). Of equal settings the first is chosen, and the default
   is the first of all.
3. The chosen setting and the default are measured by the same pAUC over all pairs of the fold's own people.
4. The held-out difference is the mean over folds of pAUC(chosen) - pAUC(default). For its 95 % interval, persons are
   drawn with replacement inside each fold, the same draws for both settings. The choices are not made again.
5. The default is kept unless the whole interval lies below 0. Only then is the setting recommended that has the lowest
   pAUC over all people.

A mixture of qualities that needs a fit is fitted, for each fold, on the images of the other folds. It is compared as in
steps 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.all_pairs import compute_all_pairs_curves
from prefiqs_ext.evaluation.array_types import Floats, Integers
from prefiqs_ext.evaluation.bootstrap import resample_persons
from prefiqs_ext.evaluation.edc import FMRS, LIMIT, Curve, select_ratios
from prefiqs_ext.exceptions import InputError

FMR = 1e-3
"""The false match rate of the rule."""
_RATIOS = select_ratios(LIMIT)
# Of persons with two images or more. With m of them, one draw in about exp(m) has none, hence no mated pair: at 10 one
# in 22,000, far fewer than the 500 draws.
_LEAST_PEOPLE = 10

Rule = Callable[[NDArray[np.bool_]], Floats]
"""Which images may be looked at [N] -> quality of all images [N], HIGHER is better."""


class HeldOutAreas(NamedTuple):
    """What rules give on people that they did not look at: pAUC times 1000, LOWER is better.

    Attributes:
        pauc: [folds] of each rule, on the fold's own people.
        draws: [resamples] of each rule, mean over folds; the same draws of persons for all rules.
    """

    pauc: dict[str, NDArray[np.float64]]
    draws: dict[str, NDArray[np.float64]]

    def difference(self, rule: str, other: str) -> tuple[float, float, float]:
        """Mean over folds of pAUC(rule) - pAUC(other), and the ends of its 95 % percentile interval.

        The rule is better if the whole interval lies below 0.
        """
        low, high = np.percentile(self.draws[rule] - self.draws[other], [2.5, 97.5])
        return float(np.mean(self.pauc[rule] - self.pauc[other])), float(low), float(high)


class TuningResult(NamedTuple):
    """The settings' curves and pAUC, times 1000, and what the rule makes of them.

    Attributes:
        overall: The curves of each setting over all people, by FMR.
        training: [folds] pAUC of each setting over the people of the other folds.
        testing: [folds] pAUC of each setting over the fold's own people.
        chosen: [folds] the setting that is lowest in training.
        difference: Held-out, chosen - default: the mean over folds, and the interval's ends.
        recommended: The setting that the rule recommends.
    """

    overall: dict[str, dict[float, Curve]]
    training: dict[str, NDArray[np.float64]]
    testing: dict[str, NDArray[np.float64]]
    chosen: list[str]
    difference: tuple[float, float, float]
    recommended: str


def assign_folds(identities: Integers, folds: int = 5, seed: int = 0) -> NDArray[np.int64]:
    """Assign each image to a fold: [N] in 0..folds - 1. All images of a person are in one fold.

    Args:
        identities: [N] one number per person.
        folds: 2 or more.
        seed: Of the shuffle.

    Raises:
        InputError: Fewer people than folds; a fold in which the rule's FMR cannot be measured, or with too few people
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
    embeddings: Floats,
    identities: Integers,
    fold: Integers,
    settings: Mapping[str, Floats],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> TuningResult:
    """Apply the rule at the head of this file.

    Args:
        embeddings: [N, d] L2-normalised.
        identities: [N] one number per person.
        fold: [N] as `assign_folds` gives.
        settings: [N] quality of each setting, HIGHER is better; the first is the default.
        resamples: Draws of persons for the interval.
        seed: Of the draws.

    Raises:
        InputError: As compute_all_pairs_curves and resample_persons; no mated pair left at a discard ratio, naming the
            fold.
    """
    default = next(iter(settings))

    def measure(quality: Floats, within: NDArray[np.bool_]) -> float:
        (curve,) = compute_all_pairs_curves(
            embeddings[within], identities[within], quality[within], fmrs=(FMR,), ratios=_RATIOS
        )
        return curve.area(LIMIT)

    folds = range(int(fold.max()) + 1)
    overall = {
        name: {
            curve.fmr: curve
            for curve in compute_all_pairs_curves(embeddings, identities, quality, fmrs=FMRS, ratios=_RATIOS)
        }
        for name, quality in settings.items()
    }
    training = {
        name: np.array([measure(quality, fold != index) for index in folds]) for name, quality in settings.items()
    }
    testing = {
        name: np.array([measure(quality, fold == index) for index in folds]) for name, quality in settings.items()
    }
    chosen = [min(settings, key=lambda name, index=index: training[name][index]) for index in folds]  # type: ignore[misc]
    rules: dict[str, Rule] = {
        "chosen": lambda seen: settings[chosen[int(fold[~seen][0])]],
        "default": lambda _: settings[default],
    }
    difference = measure_held_out(embeddings, identities, fold, rules, resamples=resamples, seed=seed).difference(
        "chosen", "default"
    )
    best = min(settings, key=lambda name: overall[name][FMR].area(LIMIT))
    return TuningResult(overall, training, testing, chosen, difference, best if difference[2] < 0 else default)


def measure_held_out(
    embeddings: Floats,
    identities: Integers,
    fold: Integers,
    rules: Mapping[str, Rule],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> HeldOutAreas:
    """Apply steps 3 and 4 of the rule to any qualities.

    Args and errors are those of `tune_settings`, with a `Rule` for each quality.
    """
    folds = int(fold.max()) + 1
    # One seed per fold: with one seed for all, the draws would not be independent.
    seeds = np.random.SeedSequence(seed).generate_state(folds)
    pauc: dict[str, list[float]] = {name: [] for name in rules}
    draws: dict[str, list[NDArray[np.float64]]] = {name: [] for name in rules}
    for index in range(folds):
        own = fold == index
        faces = embeddings[own], identities[own]
        qualities = {name: np.asarray(rule(~own))[own] for name, rule in rules.items()}
        try:
            for name, quality in qualities.items():
                (curve,) = compute_all_pairs_curves(*faces, quality, fmrs=(FMR,), ratios=_RATIOS)
                pauc[name].append(curve.area(LIMIT))
            drawn = resample_persons(
                *faces, qualities, fmr=FMR, limit=LIMIT, resamples=resamples, seed=int(seeds[index])
            )
        except ValueError as error:
            raise InputError(f"people of fold {index + 1}: {error}") from error
        for name in rules:
            draws[name].append(drawn.pauc[name])
    return HeldOutAreas(
        {name: np.array(values) for name, values in pauc.items()},
        {name: np.mean(values, axis=0) for name, values in draws.items()},
    )
