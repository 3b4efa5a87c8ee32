"""From data and qualities to curves and intervals, whatever says which images are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.all_pairs import compute_curves_of_qualities
from prefiqs_ext.evaluation.array_types import Floats, Integers
from prefiqs_ext.evaluation.bootstrap import BootstrapDraws, resample_persons
from prefiqs_ext.evaluation.bootstrap_pairs import resample_pairs
from prefiqs_ext.evaluation.datasets import Data
from prefiqs_ext.evaluation.datasets.ijbc import Templates, pool_embeddings, pool_qualities
from prefiqs_ext.evaluation.datasets.readers import Images
from prefiqs_ext.evaluation.edc import FMRS, LIMIT, Curve, Mode, error_versus_discard, select_ratios
from prefiqs_ext.exceptions import InputError

_PAIRS = 100_000  # at a time: two embeddings of 2 kB each make 400 MB


@dataclass(frozen=True)
class Protocol:
    """How to measure.

    Attributes:
        mode: The rule of the curves and areas, see `edc`.
        fmrs: False match rates, in (0, 1).
        max_discard: The highest discard ratio.
        resamples: Draws for intervals, 0 for none. Only mode "rethresholded" has intervals.
        seed: Of the draws.
    """

    mode: Mode = "rethresholded"
    fmrs: tuple[float, ...] = FMRS
    max_discard: float = 0.95
    resamples: int = 500
    seed: int = 0

    @property
    def limit(self) -> float:
        """The discard ratio at which the partial area ends.

        It is 0.2 for fixed-threshold, as in arXiv 2303.13294, otherwise LIMIT.
        """
        return 0.2 if self.mode == "fixed-threshold" else LIMIT

    @property
    def ratios(self) -> NDArray[np.float64]:
        """The discard ratios up to max_discard."""
        return select_ratios(self.max_discard)

    @property
    def intervals(self) -> bool:
        """Whether there are intervals."""
        return self.resamples > 0 and self.mode == "rethresholded"


class Comparison(NamedTuple):
    """What a comparison of methods gave.

    Attributes:
        curves: Of each method, one per FMR.
        draws: Of each FMR that gets intervals. An FMR that cannot be measured gets none.
    """

    curves: dict[str, list[Curve]]
    draws: dict[float, BootstrapDraws]


def check_data(data: Data) -> None:
    """Check that the data have mated and non-mated pairs, before anything is computed.

    Raises:
        InputError: One of the kinds is missing.
    """
    if isinstance(data, Images):
        counts = np.bincount(data.identities)
        mated, non_mated = bool((counts > 1).any()), bool(np.count_nonzero(counts) > 1)
    else:
        mated, non_mated = bool(data.mated.any()), not bool(data.mated.all())
    if not (mated and non_mated):
        raise InputError(f"expected mated and non-mated pairs, got no {'non-mated' if mated else 'mated'} one")


def compare(data: Data, embeddings: Floats, qualities: Mapping[str, Floats], protocol: Protocol) -> Comparison:
    """Compare methods by their curves and, if the protocol asks for them, intervals.

    Images without a list of pairs are compared each with every other.

    Args:
        data: What `read_data` gave.
        embeddings: [N, d] of the images, L2-normalised.
        qualities: [N] of each method, HIGHER is better.
        protocol: How to measure.

    Raises:
        InputError: As error_versus_discard.
    """
    if isinstance(data, Images):
        return _compare_all_pairs(data, embeddings, qualities, protocol)
    if isinstance(data, Templates):
        embeddings = pool_embeddings(embeddings, data)
        qualities = {name: pool_qualities(of_images, data) for name, of_images in qualities.items()}
    return _compare_list(data.pairs, data.mated, embeddings, qualities, protocol)


def _compare_all_pairs(
    data: Images, embeddings: Floats, qualities: Mapping[str, Floats], protocol: Protocol
) -> Comparison:
    fmrs, mode, ratios = protocol.fmrs, protocol.mode, protocol.ratios
    curves = compute_curves_of_qualities(embeddings, data.identities, qualities, fmrs=fmrs, mode=mode, ratios=ratios)
    draws = resample_persons(
        embeddings,
        data.identities,
        qualities,
        fmrs=_select_fmrs(curves, protocol),
        resamples=protocol.resamples,
        seed=protocol.seed,
    )
    return Comparison(curves, draws)


def _compare_list(
    pairs: Integers,
    mated: NDArray[np.bool_],
    embeddings: Floats,
    qualities: Mapping[str, Floats],
    protocol: Protocol,
) -> Comparison:
    scores = compute_similarities(embeddings, pairs)
    curves: dict[str, list[Curve]] = {}
    for name, quality in qualities.items():
        curves[name] = [
            error_versus_discard(scores, mated, pairs, quality, fmr=fmr, mode=protocol.mode, ratios=protocol.ratios)
            for fmr in protocol.fmrs
        ]
    draws = {}
    for fmr in _select_fmrs(curves, protocol):
        draws[fmr] = resample_pairs(
            scores, mated, pairs, qualities, fmr=fmr, resamples=protocol.resamples, seed=protocol.seed
        )
    return Comparison(curves, draws)


def _select_fmrs(curves: Mapping[str, list[Curve]], protocol: Protocol) -> list[float]:
    """The FMRs that get intervals."""
    return [curve.fmr for curve in next(iter(curves.values())) if protocol.intervals and curve.measurable]


def compute_similarities(embeddings: Floats, pairs: Integers) -> NDArray[np.float64]:
    """Compute the cosines [P] of pairs [P, 2] of embeddings of length 1, a few at a time: there may be millions."""
    parts = np.array_split(pairs, len(pairs) // _PAIRS + 1)
    return np.concatenate([np.einsum("pd,pd->p", *embeddings[part.T], dtype=np.float64) for part in parts])
