"""D with other kinds of pruning, and its first-order estimate.

For each: how large D is, how widely it spreads over the images, and whether it orders them as the paper's setting does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from prefiqs_ext.analysis.sensitivity import sensitivity
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BASE = Pruning()
"""The paper's setting, which the others are compared with."""

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
    """D with one kind of pruning at one sparsity, over all images.

    Attributes:
        kind: What differs from BASE; or that this is the first-order estimate of D, with BASE's kind of pruning.
        sparsity: The fraction of weights that is pruned, from 0 to below 1.
        median: Of D over the images.
        low: The value of D that 5 % of the images are below.
        high: The value of D that 95 % of the images are below.
        agreement: Spearman's rank correlation with D under BASE, up to 1.
        with_d: Spearman's rank correlation of the estimate with D at the same sparsity. None for a pruning.
        ratio: The median over the images of estimate over D at the same sparsity. None for a pruning.
    """

    kind: str
    sparsity: float
    median: float
    low: float
    high: float
    agreement: float
    with_d: float | None = None
    ratio: float | None = None


def measure_variations(
    network: nn.Module,
    preset: Preset,
    images: Tensor,
    sparsities: Sequence[float] = SPARSITIES,
    *,
    output: int | str | None = None,
) -> Iterator[Variation]:
    """Measure D by every kind of pruning at every sparsity, then estimate it at every sparsity.

    Args:
        network: In eval mode, on the CPU. Kinds of pruning that it has no layers for are ignored.
        preset: The input that it wants.
        images: uint8 [N, 3, H, W], RGB, of the preset's size, all of them faces.
        sparsities: Fractions of weights to prune.
        output: Which of the network's several outputs is the embedding, as Scorer takes it.

    Yields:
        Variations, `count_variations` of them.
    """

    def measure_distance(pruning: Pruning) -> NDArray[np.float32]:
        distance: NDArray[np.float32] = Scorer(network, pruning, preset=preset, output=output)(images).distance.numpy()
        return distance

    base = measure_distance(BASE)
    plain: dict[float, NDArray[np.float32]] = {}
    for kind, settings in list_kinds(network):
        for sparsity in sparsities:
            distance = measure_distance(Pruning(sparsity=sparsity, **settings))  # type: ignore[arg-type]
            if kind == "magnitude":
                plain[sparsity] = distance
            yield _summarise(kind, sparsity, distance, base)
    for sparsity in sparsities:
        estimate = sensitivity(images, network, Pruning(sparsity=sparsity), preset=preset, output=output).numpy()
        distance = plain[sparsity]
        with_d, ratio = spearmanr(estimate, distance).statistic, np.median(estimate / distance)
        yield _summarise(_ESTIMATE, sparsity, estimate, base, float(with_d), float(ratio))


def count_variations(network: nn.Module, sparsities: Sequence[float] = SPARSITIES) -> int:
    """Count what `measure_variations` gives."""
    return (len(list_kinds(network)) + 1) * len(sparsities)


def list_kinds(network: nn.Module) -> list[tuple[str, dict[str, str]]]:
    """List the kinds of pruning that differ for this network, each with the arguments of Pruning that make it."""
    has_linear = any(isinstance(module, nn.Linear) for module in network.modules())
    return [(kind, settings) for kind, settings in _KINDS if has_linear or settings.get("layers") != "conv+linear"]


def _summarise(
    kind: str,
    sparsity: float,
    values: NDArray[np.float32],
    base: NDArray[np.float32],
    with_d: float | None = None,
    ratio: float | None = None,
) -> Variation:
    low, median, high = np.quantile(values, _QUANTILES).tolist()
    agreement = float(spearmanr(values, base).statistic)
    return Variation(kind, sparsity, median, low, high, agreement, with_d, ratio)
