"""D under other prunings, and its first-order estimate: how much, how spread, and does the order stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor, nn

from prefiqs_ext.analysis.sensitivity import sensitivity
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BASE = Pruning()
"""What the others are compared with: the paper's setting."""

_QUANTILES = (0.05, 0.5, 0.95)
_ESTIMATE = "first-order estimate"

_KINDS: tuple[tuple[str, dict[str, str]], ...] = (
    ("magnitude", {}),
    ("magnitude, all layers ranked together", {"scope": "global"}),
    ("magnitude, linear layers too", {"layers": "conv+linear"}),
    ("random", {"method": "random"}),
    ("structured", {"method": "structured"}),
)


@dataclass(frozen=True)
class Variation:
    """One setting. kind: what differs from BASE, or the first-order estimate of it. median, low, high: of D over the
    images, at 50, 5 and 95 %. agreement: Spearman's rank correlation with D under BASE. with_d: with D under the same
    pruning, and ratio: the median of estimate over D; both only for the estimate."""

    kind: str
    sparsity: float
    median: float
    low: float
    high: float
    agreement: float
    with_d: float | None = None
    ratio: float | None = None


def vary(
    network: nn.Module,
    preset: Preset,
    images: Tensor,
    sparsities: Sequence[float] = SPARSITIES,
    *,
    output: int | str | None = None,
) -> Iterator[Variation]:
    """Every kind of pruning at every sparsity, then the estimate at every sparsity; `count_variations` of them.

    network: in eval mode; kinds that it has no layers for are left out. images: uint8 [N, 3, H, W] of the preset's
    size, all of them faces. output: as Scorer takes it.
    """

    def drift_of(pruning: Pruning) -> np.ndarray:
        distance: np.ndarray = Scorer(network, pruning, preset=preset, output=output)(images).distance.numpy()
        return distance

    base = drift_of(BASE)
    plain: dict[float, np.ndarray] = {}
    for kind, settings in kinds(network):
        for sparsity in sparsities:
            drift = drift_of(Pruning(sparsity=sparsity, **settings))  # type: ignore[arg-type]
            if kind == "magnitude":
                plain[sparsity] = drift
            yield _variation(kind, sparsity, drift, base)
    for sparsity in sparsities:
        estimate = sensitivity(images, network, Pruning(sparsity=sparsity), preset=preset, output=output).numpy()
        drift = plain[sparsity]
        with_d, ratio = spearmanr(estimate, drift).statistic, np.median(estimate / drift)
        yield _variation(_ESTIMATE, sparsity, estimate, base, float(with_d), float(ratio))


def count_variations(network: nn.Module, sparsities: Sequence[float] = SPARSITIES) -> int:
    return (len(kinds(network)) + 1) * len(sparsities)


def kinds(network: nn.Module) -> list[tuple[str, dict[str, str]]]:
    """The kinds of pruning that differ for this network, with the settings that make them."""
    has_linear = any(isinstance(module, nn.Linear) for module in network.modules())
    return [(kind, settings) for kind, settings in _KINDS if has_linear or settings.get("layers") != "conv+linear"]


def _variation(
    kind: str,
    sparsity: float,
    values: np.ndarray,
    base: np.ndarray,
    with_d: float | None = None,
    ratio: float | None = None,
) -> Variation:
    low, median, high = np.quantile(values, _QUANTILES).tolist()
    agreement = float(spearmanr(values, base).statistic)
    return Variation(kind, sparsity, median, low, high, agreement, with_d, ratio)
