"""What FROQ, GraFIQs and SER-FIQ, which run the caller's own network, want of it, and that they leave it as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import calibrate, network_input, pictures
from torch import nn

from prefiqs_ext import Preset, methods
from prefiqs_ext.methods import FROQ, GraFIQs
from prefiqs_ext.methods.froq import LayerSelection
from prefiqs_ext.models.ir import IR

PRESET = Preset("small", (48, 48), "bgr", (127.5,) * 3, (127.5,) * 3)
IMAGES = pictures(3, 48, seed=3)
NAMES = ("froq", "grafiqs", "serfiq")


@pytest.fixture(scope="module")
def shared() -> nn.Module:
    return calibrate(IR([64, 128, 128, 256, 512], 16, last_size=3), network_input(pictures(4, 48)))


@pytest.fixture
def network(shared: nn.Module) -> nn.Module:
    return copy.deepcopy(shared)


def made(name: str, network: nn.Module) -> Any:
    method = methods.create(name, network, PRESET)
    if isinstance(method, FROQ):
        method.selection = LayerSelection(("body.0", "output_layer"), 0.5, 20, 0)
    return method


def fail(*_args: object) -> None:
    raise RuntimeError("planted")


@pytest.mark.parametrize("name", NAMES)
def test_leaves_the_network_alone(name: str, network: nn.Module) -> None:
    network.input_layer[0].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    learnt = [p.requires_grad for p in network.parameters()]
    method = made(name, network)
    method.score(IMAGES)
    last = network.output_layer[4]
    planted = last.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        method.score(IMAGES)
    planted.remove()
    assert torch.is_grad_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert not any(m.training for m in network.modules())
    assert [p.requires_grad for p in network.parameters()] == learnt
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_what_the_network_must_be(name: str, network: nn.Module) -> None:
    for change, message in (
        (lambda n: n.train(), f"{name}: 'the model' is in train mode: call model.eval"),
        (lambda n: n.body[0].res_layer[0].train(), rf"{name}: 'body\.0\.res_layer\.0' is in train mode"),
        (lambda n: n.double(), f"{name}: expected float32 parameters, got torch.float64 .* call model.float"),
        (lambda n: n.to("meta"), f"{name}: expected a model on the CPU, got .* on meta: call model.cpu"),
    ):
        changed = copy.deepcopy(network)
        change(changed)
        with pytest.raises(ValueError, match=message):
            methods.create(name, changed, PRESET)


@pytest.mark.parametrize("name", NAMES)
def test_train_mode_afterwards_moves_no_statistics(name: str, network: nn.Module) -> None:
    method = made(name, network)
    norm = network.body[0].res_layer[0].train()
    before = norm.running_mean.clone()
    for use in (method.score, method.fit) if method.fit_images else (method.score,):
        with pytest.raises(ValueError, match="train mode"):
            use(pictures(20, 48))
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("name", NAMES)
def test_inference_mode_changes_nothing(name: str, network: nn.Module) -> None:
    method = made(name, network)
    expected = method.score(IMAGES)
    with torch.inference_mode():
        found, of_own = method.score(IMAGES), method.score(IMAGES.clone())
    assert torch.equal(found, expected)
    assert torch.equal(of_own, expected)


def test_a_stage_of_several_outputs_is_refused(network: nn.Module) -> None:
    network.body[1].register_forward_hook(lambda _module, _args, output: (output, output))
    network.body[2].register_forward_pre_hook(lambda _module, args: args[0][0])
    stages = ["body.0", "body.1", "body.3", "body.4"]
    with pytest.raises(ValueError, match="expected a tensor from the stage of block2: choose other stages"):
        GraFIQs(network, PRESET, stages=stages).score(IMAGES)
