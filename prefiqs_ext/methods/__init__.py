"""Training-free face image quality methods behind one small protocol; a method is one class in one file."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.methods.baselines import Brightness, Random, Sharpness
from prefiqs_ext.methods.combined import Combined
from prefiqs_ext.methods.froq import FROQ
from prefiqs_ext.methods.grafiqs import GraFIQs
from prefiqs_ext.methods.labels import optimise
from prefiqs_ext.methods.method import Method
from prefiqs_ext.methods.prefiqs import EmbeddingNorm, PreFIQs
from prefiqs_ext.methods.serfiq import SERFIQ
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning

_METHODS: dict[str, Callable[[nn.Module, Preset, Pruning, int, int | str | None], Method]] = {
    "prefiqs": PreFIQs,
    "grafiqs": lambda network, preset, pruning, seed, output: GraFIQs(network, preset),
    "froq": lambda network, preset, pruning, seed, output: FROQ(network, preset, seed=seed, output=output),
    "serfiq": lambda network, preset, pruning, seed, output: SERFIQ(network, preset, seed=seed, output=output),
    "norm": EmbeddingNorm,
    "prefiqs+norm": Combined,
    "random": Random,
    "sharpness": Sharpness,
    "brightness": Brightness,
}
NAMES: tuple[str, ...] = tuple(_METHODS)

__all__ = ["FROQ", "NAMES", "SERFIQ", "GraFIQs", "Method", "create", "optimise"]


def create(
    name: str,
    network: nn.Module,
    preset: Preset,
    *,
    pruning: Pruning = Pruning(),  # noqa: B008, frozen
    seed: int = 0,
    output: int | str | None = None,
) -> Method:
    """The method of that name, one of NAMES, for a network in eval mode, in float32 and on the CPU, and its preset.

    pruning: what "prefiqs" and "prefiqs+norm" prune. seed: of what is drawn at random. output: which of
    several outputs is the embedding, as Scorer takes it. ValueError for another name.
    """
    if name not in _METHODS:
        raise InputError(f"expected a method of {', '.join(NAMES)}, got {name!r}")
    return _METHODS[name](network, preset, pruning, seed, output)
