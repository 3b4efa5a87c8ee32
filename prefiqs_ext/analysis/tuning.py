"""Which pruning serves a network best? The rule by which it is chosen, without anyone's identity.

1. Faces are degraded. The angle between the embeddings of a copy and of its face says how much the copy lost.
2. A pruning is as good as its area is low: the mean angle of the copies that are kept, on average over discarding 0 to
   30 % of them by D.
3. The default is plain D at the paper's sparsity. It stays unless another setting is shown to be better:
   a. On every other face the setting of lowest area is chosen. Of equals the first wins, and the default is the first
      of all. It is measured against the default on the other faces; then the halves change places.
   b. The held-out difference is the mean over the halves of area(chosen) - area(default). For its 95 % interval, faces
      are drawn with replacement in each half, with all their copies, the same draws for both settings. The choices
      stay.
   c. Only if the whole interval lies below 0 is the setting recommended that has the lowest area on all copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.calibration.fit import Numbers, measure_area


class Choice(NamedTuple):
    """What the rule makes of some settings. Areas are in the unit of the angles.

    Attributes:
        areas: Of each setting on all copies; LOWER is better.
        chosen: [2] the setting that is chosen on the even and on the odd faces.
        held_out: [2] its area on the other faces, which had no say.
        held_out_default: [2] that of the default there.
        difference: The mean of held_out - held_out_default, and the ends of its 95 % percentile interval.
        recommended: The setting that the rule recommends.
    """

    areas: dict[str, float]
    chosen: tuple[str, ...]
    held_out: tuple[float, ...]
    held_out_default: tuple[float, ...]
    difference: tuple[float, float, float]
    recommended: str


def choose_setting(
    angle: Numbers,
    face: NDArray[np.int64],
    distances: Mapping[str, Numbers],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> Choice:
    """Apply the rule at the head of this file.

    Args:
        angle: [M] between the embeddings of a copy and of its face.
        face: [M] the number of its face. Even and odd numbers are the halves; both must be there.
        distances: [M] D of the copies by each setting, LOWER is better; the first setting is the default.
        resamples: Draws of faces for the interval, 2 or more.
        seed: Of the draws.
    """
    default = next(iter(distances))

    def measure(name: str, rows: NDArray[np.int64]) -> float:
        return measure_area(angle[rows], -distances[name][rows])

    halves = [np.flatnonzero(face % 2 == half) for half in (0, 1)]
    on_halves = {name: [measure(name, rows) for rows in halves] for name in distances}
    # Chosen on the one half, measured on the other.
    chosen = tuple(min(distances, key=lambda name, half=half: on_halves[name][half]) for half in (0, 1))  # type: ignore[misc]
    held_out = tuple(on_halves[name][1 - half] for half, name in enumerate(chosen))
    held_out_default = tuple(on_halves[default][1 - half] for half in (0, 1))
    random = np.random.default_rng(seed)
    drawn = np.zeros(resamples)
    for half, name in enumerate(chosen):
        own = halves[1 - half]
        of_face = [own[face[own] == number] for number in np.unique(face[own])]
        for draw in range(resamples):
            rows = np.concatenate([of_face[index] for index in random.integers(len(of_face), size=len(of_face))])
            drawn[draw] += (measure(name, rows) - measure(default, rows)) / 2
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    areas = {name: measure(name, np.arange(len(angle))) for name in distances}
    best = min(areas, key=areas.__getitem__)
    return Choice(
        areas=areas,
        chosen=chosen,
        held_out=held_out,
        held_out_default=held_out_default,
        difference=(float(np.mean(held_out) - np.mean(held_out_default)), low, high),
        recommended=best if high < 0 else default,
    )
