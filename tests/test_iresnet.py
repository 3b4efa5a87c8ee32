"""IResNet: names, shapes, sizes and cost against figures published for these networks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from networks import calibrated, network_input, pictures
from torch import Tensor, nn

from prefiqs_ext.models import iresnet

DEPTHS = ["iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200"]


@cache
def build(name: str) -> nn.Module:
    """Without storage: only shapes matter here, except where a forward pass is tested."""
    with torch.device("meta"):
        return getattr(iresnet, name)().eval()


def batch_norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def iresnet50_entries() -> Iterator[tuple[str, tuple[int, ...]]]:
    """What an insightface arcface_torch IResNet-50 checkpoint holds, in its order."""
    yield "conv1.weight", (64, 3, 3, 3)
    yield from batch_norm("bn1", 64)
    yield "prelu.weight", (64,)
    inside = 64
    for stage, (blocks, channels) in enumerate([(3, 64), (4, 128), (14, 256), (3, 512)], start=1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            yield from batch_norm(f"{prefix}.bn1", inside)
            yield f"{prefix}.conv1.weight", (channels, inside, 3, 3)
            yield from batch_norm(f"{prefix}.bn2", channels)
            yield f"{prefix}.prelu.weight", (channels,)
            yield f"{prefix}.conv2.weight", (channels, channels, 3, 3)
            yield from batch_norm(f"{prefix}.bn3", channels)
            if block == 0:
                yield f"{prefix}.downsample.0.weight", (channels, inside, 1, 1)
                yield from batch_norm(f"{prefix}.downsample.1", channels)
            inside = channels
    yield from batch_norm("bn2", 512)
    yield "fc.weight", (512, 25088)
    yield "fc.bias", (512,)
    yield from batch_norm("features", 512)


def test_state_dict_of_iresnet50() -> None:
    entries = [(name, tuple(value.shape)) for name, value in build("iresnet50").state_dict().items()]
    assert entries == list(iresnet50_entries())


# Millions of convolution parameters of the published networks.
@pytest.mark.parametrize(("name", "millions"), list(zip(DEPTHS, [11.2, 21.3, 30.7, 52.2, 105.8], strict=True)))
def test_parameter_counts(name: str, millions: float) -> None:
    model = build(name)
    convolutions = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))
    assert round(convolutions / 1e6, 1) == millions
    assert model.fc.weight.numel() == 25088 * 512


@pytest.mark.parametrize(("name", "giga"), [("iresnet50", 6.3), ("iresnet100", 12.1)])
def test_multiply_adds(name: str, giga: float) -> None:
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        per_output = module.weight[0].numel()  # one multiply-add per weight of the output's channel
        total += output.numel() * per_output

    model = build(name)
    handles = [
        module.register_forward_hook(count) for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    embedding = model(torch.empty(1, 3, 112, 112, device="meta"))
    for handle in handles:
        handle.remove()
    assert embedding.shape == (1, 512)
    assert round(total / 1e9, 1) == giga


@pytest.mark.parametrize("name", DEPTHS)
def test_settings(name: str) -> None:
    model = getattr(iresnet, name)() if name == "iresnet18" else build(name)
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert {norm.eps for norm in norms} == {1e-5}
    assert all(conv.bias is None for conv in model.modules() if isinstance(conv, nn.Conv2d))
    assert not model.features.weight.requires_grad
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    if name == "iresnet18":
        assert torch.equal(model.features.weight, torch.ones(512))


def test_forward_spelled_out_by_names() -> None:
    """The same sums written from the state dict alone, with functional calls, as any other reader of it would."""
    model = calibrated("iresnet18")
    state = model.state_dict()
    functional = nn.functional

    def norm(x: Tensor, name: str) -> Tensor:
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *parts, training=False, eps=1e-5)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    with torch.no_grad():
        image = network_input(pictures(2, seed=4))
        x = functional.prelu(norm(conv(image, "conv1"), "bn1"), state["prelu.weight"])
        for stage in range(1, 5):
            for block in range(2):
                prefix, stride = f"layer{stage}.{block}", 2 if block == 0 else 1
                y = norm(conv(norm(x, f"{prefix}.bn1"), f"{prefix}.conv1"), f"{prefix}.bn2")
                y = functional.prelu(y, state[f"{prefix}.prelu.weight"])
                y = norm(conv(y, f"{prefix}.conv2", stride), f"{prefix}.bn3")
                if block == 0:
                    x = norm(conv(x, f"{prefix}.downsample.0", stride), f"{prefix}.downsample.1")
                x = x + y
        x = functional.linear(norm(x, "bn2").flatten(1), state["fc.weight"], state["fc.bias"])
        expected = norm(x, "features")
        # The same operations in the same order: any difference would be a difference of structure.
        torch.testing.assert_close(model(image), expected, rtol=1e-5, atol=1e-5)


def test_num_features() -> None:
    with torch.device("meta"):
        model = iresnet.iresnet18(num_features=128)
        assert model(torch.empty(2, 3, 112, 112)).shape == (2, 128)
