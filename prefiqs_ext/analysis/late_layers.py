"""Cheaper scoring: pruning only late layers, so that the two branches share everything before them.

The dense and the pruned network compute the same until the first layer that loses a weight. If only the last layers
are pruned, scoring costs little more than recognition alone. Whether the scores still order images as pruning all
layers does depends on the network, so it is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.inputs import make_example_images, scale_to_levels
from prefiqs_ext.models.normalize import NormalizedNetwork
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.utils.timing import time_interleaved

SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)


@dataclass(frozen=True)
class Cost:
    """What it costs to prune only the last layers, and what it does to the scores.

    Attributes:
        share: The share of the multiply-adds that lies in the pruned layers, from 0 to 1; 0 is recognition alone, with
            nothing pruned. Only layers that the pruning could take count.
        first: The first pruned layer; empty where nothing is pruned.
        layers: All pruned layers, as ``Pruning(layers=...)`` takes them.
        milliseconds: The time for one image, the median over the rounds; LOWER is better.
        of_recognition: That time over the time of recognition alone: median over the rounds, lowest, highest.
        of_full: That time over the time with all layers pruned: median over the rounds, lowest, highest.
        agreement: Spearman's rank correlation of D with D of all layers pruned, up to 1; HIGHER is better. NaN where
            nothing is pruned.
    """

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
    """Measure time and agreement with pruning limited to late layers.

    All settings are timed in turn, round after round, so that a machine that slows down slows all of them.

    Args:
        network: In eval mode, on the CPU.
        preset: The input that it wants.
        images: uint8 [N, 3, H, W], RGB, of the preset's size. All are scored for the agreement; the first `batch` of
            them are scored in each round for the time.
        pruning: What is limited to late layers. Its layers are "conv", "conv+linear" or patterns.
        shares: Of the multiply-adds, each above 0 and at most 1, with 1 among them.
        rounds: The number of times that each setting is timed.
        batch: The number of images that are timed together.
        output: Which of the network's several outputs is the embedding, as Scorer takes it.

    Returns:
        One Cost per share, the largest first, and recognition alone at the end.

    Raises:
        InputError: there are no images, or a share is not as above.
    """
    if 1 not in shares or not all(0 < share <= 1 for share in shares) or not len(images):
        raise InputError(
            f"expected images, and shares above 0 and up to 1, 1 among them, got {len(images)} and {list(shares)}"
        )
    order = _list_by_execution(network, preset, list(pruning.make_masks(network)))
    total = sum(operations for _, operations in order)
    scorers = {0.0: Scorer(network, replace(pruning, sparsity=0.0, method="magnitude"), preset=preset, output=output)}
    layers: dict[float, tuple[str, ...]] = {0.0: ()}
    for share in sorted(shares):
        layers[share] = _choose_latest(order, share * total)
        scorers[share] = Scorer(network, replace(pruning, layers=layers[share]), preset=preset, output=output)
    distances = {share: scorer(images).distance.numpy() for share, scorer in scorers.items()}
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
            _summarise(seconds[share] / seconds[0.0]),
            _summarise(seconds[share] / seconds[full]),
            float(spearmanr(distances[share], distances[full]).statistic) if share else float("nan"),
        )
        for share in sorted(scorers, reverse=True)
    ]


def _list_by_execution(network: nn.Module, preset: Preset, names: Sequence[str]) -> list[tuple[str, int]]:
    """List the named layers in the order in which they run, each with its multiply-adds for one image."""
    order: dict[str, int] = {}
    with ExitStack() as stack, torch.no_grad():
        for name in names:

            def count(module: nn.Module, _: object, result: Tensor, name: str = name) -> None:
                weight = module.get_parameter("weight")
                order[name] = order.get(name, 0) + result.numel() * weight[0].numel()

            stack.enter_context(network.get_submodule(name).register_forward_hook(count))
        NormalizedNetwork(preset, network)(scale_to_levels(make_example_images(preset), preset))
    return list(order.items())


def _choose_latest(order: Sequence[tuple[str, int]], operations: float) -> tuple[str, ...]:
    """Choose the last layers: as many as have no more operations than given, and at least one."""
    chosen: list[str] = []
    left = operations * (1 + 1e-9)
    for name, own in reversed(order):
        left -= own
        if left < 0 and chosen:
            break
        chosen.append(name)
    return tuple(reversed(chosen))


def _summarise(ratios: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return median, lowest and highest."""
    return float(np.median(ratios)), float(ratios.min()), float(ratios.max())
