"""Recalibration by its definition: two plain models in float64, watched and corrected by hooks."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Constants = dict[str, tuple[Tensor, Tensor]]
"""By the name of a layer, its gain and shift, float64 [Co]."""


def slow_constants(model: nn.Module, masks: Mapping[str, Tensor], x: Tensor) -> Constants:
    """One run of the two models for every call of a pruned layer, in their order.

    The calls of a layer are pooled; each is corrected by the constants of the calls up to it.
    """
    names = {name for name, mask in masks.items() if not mask.all()}
    dense, pruned = make_branches(model, masks)
    done: list[tuple[Tensor, Tensor]] = []  # the constants of the calls so far, in order
    seen: dict[str, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    constants: Constants = {}
    while True:
        calls = record_calls(dense, names, x, []), record_calls(pruned, names, x, done)
        if len(done) == len(calls[0]):
            return constants
        name = calls[0][len(done)][0]
        for kept, branch in zip(seen[name], calls, strict=True):
            kept.append(branch[len(done)][1])
        theirs, ours = (torch.cat(kept) for kept in seen[name])
        gain = (theirs.std(0, correction=0) / ours.std(0, correction=0)).clamp(0.2, 5)
        constants[name] = gain, theirs.mean(0) - gain * ours.mean(0)
        done.append(constants[name])


def make_branches(model: nn.Module, masks: Mapping[str, Tensor]) -> tuple[nn.Module, nn.Module]:
    """Copies in float64, the second one pruned."""
    dense, pruned = (copy.deepcopy(model).double() for _ in range(2))
    for name, mask in masks.items():
        pruned.get_parameter(f"{name}.weight").data.mul_(mask)
    return dense, pruned


def record_calls(
    network: nn.Module, names: set[str], x: Tensor, corrections: list[tuple[Tensor, Tensor]]
) -> list[tuple[str, Tensor]]:
    """The calls of these layers: name, and raw output [rows, Co]. The first ones are corrected in their order."""
    calls: list[tuple[str, Tensor]] = []

    def make_hook(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(layer: nn.Module, inputs: object, result: Tensor) -> Tensor:
            axis, index = -1 if isinstance(layer, nn.Linear) else 1, len(calls)
            rows = result.movedim(axis, -1)
            calls.append((name, rows.flatten(0, -2).clone()))
            if index >= len(corrections):
                return result
            gain, shift = corrections[index]
            return (rows * gain + shift).movedim(-1, axis)

        return hook

    handles = [network.get_submodule(name).register_forward_hook(make_hook(name)) for name in sorted(names)]
    with torch.no_grad():
        network(x.double())
    for handle in handles:
        handle.remove()
    return calls


def embed_recalibrated(
    model: nn.Module, masks: Mapping[str, Tensor], constants: Constants, x: Tensor
) -> tuple[Tensor, Tensor]:
    """The embeddings of the dense and of the recalibrated branch, normalised, in float64."""
    dense, pruned = make_branches(model, masks)
    for name, (gain, shift) in constants.items():

        def hook(
            layer: nn.Module, inputs: object, result: Tensor, gain: Tensor = gain, shift: Tensor = shift
        ) -> Tensor:
            axis = -1 if isinstance(layer, nn.Linear) else 1
            return (result.movedim(axis, -1) * gain + shift).movedim(-1, axis)

        pruned.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        raw = dense(x.double()), pruned(x.double())
    first, second = (nn.functional.normalize(rows, eps=0) for rows in raw)
    return first, second
