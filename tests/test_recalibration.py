"""The constants of a recalibrated pruned branch, against two plain models in float64."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping

import pytest
import torch
from architectures import ARCHITECTURES
from networks import calibrated, network_input, pictures
from torch import Tensor, nn

from prefiqs_ext import Pruning
from prefiqs_ext.dual import find_recalibration
from prefiqs_ext.recalibration import Recalibration

Constants = dict[str, tuple[Tensor, Tensor]]
ALL = Pruning(layers="conv+linear")


def slow_constants(model: nn.Module, masks: Mapping[str, Tensor], x: Tensor) -> Constants:
    """The definition in float64: one run of two plain models for every call of a pruned layer, in their order.

    The calls of a layer are pooled; each is corrected by the constants of the calls up to it.
    """
    networks = [copy.deepcopy(model).double() for _ in range(2)]
    names = {name for name, mask in masks.items() if not mask.all()}
    for name in names:
        networks[1].get_parameter(f"{name}.weight").data.mul_(masks[name])
    done: list[tuple[Tensor, Tensor]] = []  # of the calls so far
    rows: dict[str, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    constants: Constants = {}
    while True:
        found: list[tuple[str, Tensor]] = []
        for network, corrections in zip(networks, ([], done), strict=True):
            count = 0

            def watch(name: str, corrections: list[tuple[Tensor, Tensor]] = corrections) -> Callable[..., Tensor]:
                def hook(module: nn.Module, inputs: object, result: Tensor) -> Tensor:
                    nonlocal count
                    index, count = count, count + 1
                    axis = -1 if isinstance(module, nn.Linear) else 1
                    if index == len(done):
                        found.append((name, result.movedim(axis, -1).flatten(0, -2).clone()))
                    if index < len(corrections):
                        gain, shift = corrections[index]
                        return (result.movedim(axis, -1) * gain + shift).movedim(-1, axis)
                    return result

                return hook

            hooks = [network.get_submodule(name).register_forward_hook(watch(name)) for name in names]
            with torch.no_grad():
                network(x.double())
            for handle in hooks:
                handle.remove()
        if not found:
            return constants
        (name, dense), (_, pruned) = found
        for kept, values in zip(rows[name], (dense, pruned), strict=True):
            kept.append(values)
        dense, pruned = (torch.cat(kept) for kept in rows[name])
        gain = (dense.std(0, correction=0) / pruned.std(0, correction=0)).clamp(0.2, 5)
        constants[name] = gain, dense.mean(0) - gain * pruned.mean(0)
        done.append(constants[name])


def check_constants(ours: Recalibration, expected: Constants) -> None:
    """Float32 against float64: sums of a few hundred products, and what their rounding does to later layers. A wrong
    order of layers, or a branch that reads the other's values, is off by 1e-2 and more."""
    assert set(ours.layers) == set(expected)
    for name, (gain, shift) in expected.items():
        torch.testing.assert_close(ours.layers[name].gain.double(), gain, rtol=1e-4, atol=0, msg=name)
        torch.testing.assert_close(
            ours.layers[name].shift.double(), shift, rtol=0, atol=1e-4 * float(shift.abs().max()), msg=name
        )


@pytest.mark.parametrize(
    "name", ["mobilefacenet", "weight reuse", "grouped", "ghostnet", "mobilenet", "resnet", "vit", "convnext", "audio"]
)
def test_constants(name: str) -> None:
    build, inputs = ARCHITECTURES[name]
    model, x = build(), inputs(19, seed=3)
    ours = find_recalibration(model, ALL, x)
    check_constants(ours, slow_constants(model, ALL.make_masks(model), x))
    assert max(float((scale.gain - 1).abs().max()) for scale in ours.layers.values()) > 0.1


def test_constants_of_a_residual_network() -> None:
    model, x = calibrated("residual"), network_input(pictures(11, 32))
    masks = Pruning().make_masks(model)
    check_constants(find_recalibration(model, masks, x), slow_constants(model, masks, x))
from prefiqs_ext.dual import dualize
from prefiqs_ext import reference
def test_x():
    for name in ("weight reuse","vit", "audio","grouped"):
        build, inputs = ARCHITECTURES[name]
        model, x = build(), inputs(19, seed=3)
        r = find_recalibration(model, ALL, x)
        ref = reference.score(model, x, ALL, recalibration=r)
        for fold in (True, False):
            g = dualize(model, ALL, example=x, recalibration=r, fold=fold)
            a,b = g(x).chunk(2)
            d = (torch.nn.functional.normalize(a)-torch.nn.functional.normalize(b)).norm(dim=1)
            print(name, fold, (d-ref.distance).abs().max(), ref.distance.mean(), reference.score(model,x,ALL).distance.mean())
