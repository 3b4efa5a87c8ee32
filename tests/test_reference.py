"""The reference against torch.nn.utils.prune, numbers worked out by hand, and presets spelled out."""

from __future__ import annotations

import math

import pytest
import torch
from networks import ZOO, calibrated, network_input, pictures
from torch import nn
from torch.nn.functional import cosine_similarity
from torch.nn.utils import prune

from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.reference import score


@pytest.mark.parametrize("name", ["iresnet18", *ZOO])
def test_against_torch_prune(name: str) -> None:
    model = calibrated(name).double()
    batch = network_input(pictures(3, 32 if name in ZOO else 112, seed=2)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # weights that were float32 can tie at the threshold; these cannot
                module.weight += 1e-9 * torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
    out = score(model, batch)
    with torch.no_grad():
        dense = model(batch)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                prune.l1_unstructured(module, "weight", amount=0.4)
        pruned = model(batch)
    # |e - p| and sqrt(2 - 2 cos) are one number; at these D the cosine form loses four digits of float64 at most.
    expected = (2 - 2 * cosine_similarity(dense, pruned, dim=1)).sqrt()
    torch.testing.assert_close(out.distance, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(out.quality, 1 - expected / 2, rtol=1e-9, atol=0)
    torch.testing.assert_close(out.embedding_norm, dense.norm(dim=1))
    torch.testing.assert_close(out.embedding * out.embedding_norm[:, None], dense)
    torch.testing.assert_close(out.pruned_embedding * pruned.norm(dim=1, keepdim=True), pruned)
    assert (out.distance > 0.1).all()
    assert len(set(out.distance.tolist())) == 3


def linear(rows: list[list[float]]) -> nn.Module:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return nn.Sequential(layer)


HALF = Pruning(sparsity=0.5, layers="conv+linear")


def test_by_hand() -> None:
    # Of 4, 3, 1, 2 the 1 and the 2 go: (1, 1) -> dense (7, 3), pruned (7, 0); (0, 1) -> (3, 2) and (3, 0).
    out = score(linear([[4.0, 3.0], [1.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), HALF)
    assert out.embedding_norm.tolist() == pytest.approx([math.sqrt(58), math.sqrt(13)], rel=1e-15)
    # Dense and pruned directions lie at angles atan(3/7) and atan(2/3); the chord is 2 sin(angle / 2).
    chords = [2 * math.sin(math.atan2(3, 7) / 2), 2 * math.sin(math.atan2(2, 3) / 2)]
    assert out.distance.tolist() == pytest.approx(chords, rel=1e-14)
    assert out.quality.tolist() == pytest.approx([1 - chord / 2 for chord in chords], rel=1e-14)
    assert out.pruned_embedding.tolist() == [[1, 0], [1, 0]]


def test_opposite_embeddings_are_at_two() -> None:
    # A weight of 4 masks one of -3 in the dense network; (1, 1.5) -> 4 - 4.5 dense, 4 once the -3 is gone.
    out = score(linear([[4.0, -3.0], [4.0, -3.0]]), torch.tensor([[1.0, 1.5]]), HALF)
    assert out.distance.item() == pytest.approx(2, rel=1e-15)
    assert out.quality.item() == pytest.approx(0, abs=1e-15)


def test_zero_pruned_embedding_is_at_distance_one() -> None:
    out = score(linear([[4.0, 3.0], [1.0, 2.0]]), torch.tensor([[3.0, -4.0]]), HALF)
    assert out.pruned_embedding.tolist() == [[0, 0]]
    assert out.distance.item() == pytest.approx(1, rel=1e-15)
    assert out.quality.item() == pytest.approx(0.5, rel=1e-15)


def test_sparsity_zero_gives_exactly_zero() -> None:
    out = score(calibrated("concat"), network_input(pictures(2, 32)), Pruning(sparsity=0.0))
    assert out.distance.tolist() == [0, 0]
    assert out.quality.tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_first_order_theory_at_low_sparsity() -> None:
    """D is near |J (theta_pruned - theta)|, a forward-mode product (PreFIQs' own argument), when little is pruned."""
    model = calibrated("residual").double()
    batch = network_input(pictures(4, 32, seed=5)).double()
    pruning = Pruning(sparsity=0.02)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    masks = pruning.make_masks(model)
    change = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for name, mask in masks.items():
        change[f"{name}.weight"] = -parameters[f"{name}.weight"] * ~mask

    def embed(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.normalize(torch.func.functional_call(model, values, (batch,)))

    _, moved = torch.func.jvp(embed, (parameters,), (change,))
    # 2 % of the smallest weights: what remains beyond the first order is a few per cent of D.
    torch.testing.assert_close(score(model, batch, pruning).distance, moved.norm(dim=1), rtol=0.1, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dtype_and_untouched_model(dtype: torch.dtype) -> None:
    model = calibrated("mobile").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    out = score(model, network_input(pictures(2, 32)), dtype=dtype)
    assert {value.dtype for value in out} == {dtype}
    assert model.training
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_preset(colour: str) -> None:
    preset = Preset("test", (4, 5), colour, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))
    pixels = torch.randint(0, 256, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten())
    prepared = torch.empty(2, 3, 4, 5, dtype=torch.float64)
    for channel in range(3):
        source = channel if colour == "rgb" else 2 - channel
        prepared[:, channel] = (pixels[:, source].double() - preset.mean[channel]) / preset.std[channel]
    expected = score(model, prepared)
    for batch in (pixels, pixels.double() / 255):
        for got, want in zip(score(model, batch, preset=preset), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_preset_by_name_and_clipping() -> None:
    model = calibrated("groups")
    pixels = pictures(2, 32, seed=6)
    pixels[:, :, 0] = 0
    pixels[:, :, 1] = 255
    floating = pixels.double() / 255
    floating[:, :, 0] -= 1e-3
    floating[:, :, 1] += 1e-3
    expected = score(model, (pixels.double() - 127.5) / 127.5)
    for batch in (pixels, floating):
        torch.testing.assert_close(score(model, batch, preset="arcface").distance, expected.distance)
