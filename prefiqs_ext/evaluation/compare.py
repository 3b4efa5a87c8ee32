"""Data and qualities -> curves and intervals, whatever says which images are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.all_pairs import all_pairs
from prefiqs_ext.evaluation.bootstrap import Resampled, bootstrap
from prefiqs_ext.evaluation.bootstrap_pairs import bootstrap_pairs
from prefiqs_ext.evaluation.datasets import Data
from prefiqs_ext.evaluation.datasets.readers import Images
from prefiqs_ext.evaluation.datasets.templates import Templates, template_embeddings, template_qualities
from prefiqs_ext.evaluation.edc import FMRS, LIMIT, Curve, Mode, error_versus_discard, ratios_to
from prefiqs_ext.exceptions import InputError

_PAIRS = 100_000  # at a time


@dataclass(frozen=True)
class Protocol:
    """How to measure. limit: the end of the partial area. resamples: draws for intervals, 0 for none; modes other than
    rethresholded have none."""

    mode: Mode = "rethresholded"
    fmrs: tuple[float, ...] = FMRS
    max_discard: float = 0.95
    resamples: int = 500
    seed: int = 0

    @property
    def limit(self) -> float:
        return 0.2 if self.mode == "fixed-threshold" else LIMIT

    @property
    def ratios(self) -> NDArray[np.float64]:
        return ratios_to(self.max_discard)

    @property
    def intervals(self) -> bool:
        return self.resamples > 0 and self.mode == "rethresholded"


class Comparison(NamedTuple):
    curves: dict[str, list[Curve]]
    """Of each method, one an FMR."""
    draws: dict[float, Resampled]
    """Of each FMR that gets intervals: none that cannot be measured."""


def check(data: Data) -> None:
    """ValueError where nothing can be measured, whatever is computed of the images."""
    if isinstance(data, Images):
        counts = np.bincount(data.identities)
        mated, non_mated = bool((counts > 1).any()), bool(np.count_nonzero(counts) > 1)
    else:
        mated, non_mated = bool(data.mated.any()), not bool(data.mated.all())
    if not (mated and non_mated):
        raise InputError(f"expected mated and non-mated pairs, got no {'non-mated' if mated else 'mated'} one")


def compare(
    data: Data, embeddings: NDArray[np.floating], qualities: Mapping[str, NDArray[np.floating]], protocol: Protocol
) -> Comparison:
    """Images without a list are compared each with every other. embeddings: [N, d] of the images, L2-normalised;
    qualities: [N] HIGHER is better. ValueError: as error_versus_discard."""
    if isinstance(data, Images):
        return _every_pair(data, embeddings, qualities, protocol)
    if isinstance(data, Templates):
        embeddings = template_embeddings(embeddings, data)
        qualities = {name: template_qualities(of_images, data) for name, of_images in qualities.items()}
    return _listed_pairs(data.pairs, data.mated, embeddings, qualities, protocol)


def _every_pair(
    data: Images, embeddings: NDArray[np.floating], qualities: Mapping[str, NDArray[np.floating]], protocol: Protocol
) -> Comparison:
    fmrs, mode, ratios = protocol.fmrs, protocol.mode, protocol.ratios
    curves = {
        name: all_pairs(embeddings, data.identities, quality, fmrs=fmrs, mode=mode, ratios=ratios)
        for name, quality in qualities.items()
    }
    draws = {}
    for fmr in _drawn(curves, protocol):
        draws[fmr] = bootstrap(
            embeddings, data.identities, qualities, fmr=fmr, resamples=protocol.resamples, seed=protocol.seed
        )
    return Comparison(curves, draws)


def _listed_pairs(
    pairs: NDArray[np.integer],
    mated: NDArray[np.bool_],
    embeddings: NDArray[np.floating],
    qualities: Mapping[str, NDArray[np.floating]],
    protocol: Protocol,
) -> Comparison:
    scores = _similarities(embeddings, pairs)
    curves: dict[str, list[Curve]] = {}
    for name, quality in qualities.items():
        curves[name] = [
            error_versus_discard(scores, mated, pairs, quality, fmr=fmr, mode=protocol.mode, ratios=protocol.ratios)
            for fmr in protocol.fmrs
        ]
    draws = {}
    for fmr in _drawn(curves, protocol):
        draws[fmr] = bootstrap_pairs(
            scores, mated, pairs, qualities, fmr=fmr, resamples=protocol.resamples, seed=protocol.seed
        )
    return Comparison(curves, draws)


def _drawn(curves: Mapping[str, list[Curve]], protocol: Protocol) -> list[float]:
    """The FMRs that get intervals."""
    return [curve.fmr for curve in next(iter(curves.values())) if protocol.intervals and curve.measurable]


def _similarities(embeddings: NDArray[np.floating], pairs: NDArray[np.integer]) -> NDArray[np.float64]:
    """[P] cosines, a few pairs at a time: a benchmark may have millions, of embeddings of 2 kB."""
    parts = np.array_split(pairs, len(pairs) // _PAIRS + 1)
    return np.concatenate([np.einsum("pd,pd->p", *embeddings[part.T], dtype=np.float64) for part in parts])
