"""Cheaper passes: pruning limited to late layers shares everything before them.

Both branches are one until the first layer that loses a weight. Pruning only the last layers, which make up a given
share of the multiply-adds, costs little more than recognition alone; whether its order of images is still that of the
full setting is a matter of the network, so it is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.inputs import example_images, levels
from prefiqs_ext.models.normalize import NormalizedNetwork
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.utils.timing import time_interleaved

SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)


@dataclass(frozen=True)
class Cost:
    """One setting. share: of the multiply-adds of prunable layers, from the first pruned layer on; 0 is recognition
    alone, nothing pruned. first: that layer. layers: all of them, for Pruning(layers=...). milliseconds: of an image,
    the median over rounds. of_recognition, of_full: its time over recognition's and over that of share 1, medians of
    the rounds' ratios, with their extremes. agreement: Spearman's rank correlation of D with that of share 1; NaN for
    share 0."""

    share: float
    first: str
    layers: tuple[str, ...]
    milliseconds: float
    of_recognition: tuple[float, float, float]
    of_full: tuple[float, float, float]
    agreement: float


def measure_late_layers(
    network: nn.Module,
    preset: Preset,
    images: Tensor,
    pruning: Pruning = Pruning(),  # noqa: B008, frozen
    *,
    shares: Sequence[float] = SHARES,
    rounds: int = 5,
    batch: int = 16,
    output: int | str | None = None,
) -> list[Cost]:
    """The cost of limiting `pruning` (its layers are "conv", "conv+linear" or patterns) to late layers.

    images: uint8 [N, 3, H, W] of the preset's size; all are scored once for the agreement, the first `batch` of them in
    each round for the time. Contenders take turns in each round. shares: in (0, 1], 1 among them. output: as
    Scorer takes it. ValueError otherwise.
    """
    if 1 not in shares or not all(0 < share <= 1 for share in shares) or not len(images):
        raise InputError(
            f"expected images, and shares above 0 and up to 1, 1 among them, got {len(images)} and {list(shares)}"
        )
    order = _by_execution(network, preset, list(pruning.masks(network)))
    total = sum(operations for _, operations in order)
    scorers = {0.0: Scorer(network, replace(pruning, sparsity=0.0, method="magnitude"), preset=preset, output=output)}
    layers: dict[float, tuple[str, ...]] = {0.0: ()}
    for share in sorted(shares):
        layers[share] = _latest(order, share * total)
        scorers[share] = Scorer(network, replace(pruning, layers=layers[share]), preset=preset, output=output)
    drifts = {share: scorer(images).distance.numpy() for share, scorer in scorers.items()}
    contenders = {share: partial(scorer, images[:batch]) for share, scorer in scorers.items()}
    seconds = {
        share: np.array(values) for share, values in time_interleaved(contenders, rounds=rounds, warmup=0).items()
    }
    full = max(scorers)
    return [
        Cost(
            share,
            layers[share][0] if layers[share] else "",
            layers[share],
            1000 * float(np.median(seconds[share])) / len(images[:batch]),
            _spread(seconds[share] / seconds[0.0]),
            _spread(seconds[share] / seconds[full]),
            float(spearmanr(drifts[share], drifts[full]).statistic) if share else float("nan"),
        )
        for share in sorted(scorers, reverse=True)
    ]


def _by_execution(network: nn.Module, preset: Preset, names: Sequence[str]) -> list[tuple[str, int]]:
    """The named layers in the order in which they run, each with its multiply-adds for one image."""
    order: dict[str, int] = {}
    with ExitStack() as stack, torch.no_grad():
        for name in names:

            def count(module: nn.Module, _: object, result: Tensor, name: str = name) -> None:
                weight = module.get_parameter("weight")
                order[name] = order.get(name, 0) + result.numel() * weight[0].numel()

            stack.enter_context(network.get_submodule(name).register_forward_hook(count))
        NormalizedNetwork(preset, network)(levels(example_images(preset), preset))
    return list(order.items())


def _latest(order: Sequence[tuple[str, int]], operations: float) -> tuple[str, ...]:
    """The longest end of the list with at most so many operations, of one layer at least."""
    chosen: list[str] = []
    left = operations * (1 + 1e-9)
    for name, own in reversed(order):
        left -= own
        if left < 0 and chosen:
            break
        chosen.append(name)
    return tuple(reversed(chosen))


def _spread(ratios: np.ndarray) -> tuple[float, float, float]:
    return float(np.median(ratios)), float(ratios.min()), float(ratios.max())
