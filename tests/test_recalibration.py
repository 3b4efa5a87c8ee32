"""The constants of a recalibrated pruned branch, and graphs with them, against two plain models in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES
from duals import ALL, randn, seeded
from networks import calibrated, network_input, pictures
from recalibrated import Constants, embed_recalibrated, slow_constants
from torch import Tensor, nn

from prefiqs_ext import Pruning, Recalibration, reference, sensitivity
from prefiqs_ext.dual import dualize, find_recalibration
from prefiqs_ext.dual.convert import layers
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.recalibration import ChannelScale

# Float32 against float64: sums of a few hundred products, and what their rounding does to later layers. A wrong order
# of layers, or a branch that reads the other's values, is off by 1e-2 and more.
ROUNDING = 1e-4


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A network of ARCHITECTURES, or "residual", and a batch for it."""
    if name == "residual":
        return calibrated("residual"), network_input(pictures(9, 32))
    make, inputs = ARCHITECTURES[name]
    return make(), inputs(9, seed=3)


def as_doubles(recalibration: Recalibration) -> Constants:
    return {name: (gain.double(), shift.double()) for name, (gain, shift) in recalibration.layers.items()}


@pytest.mark.parametrize("name", ["residual", "weight reuse", "grouped", "mobilefacenet", "vit", "audio"])
def test_constants_and_pairs(name: str) -> None:
    """Depthwise, grouped, one-dimensional and linear layers; "weight reuse" calls a convolution three times."""
    model, x = build(name)
    masks = ALL.make_masks(model)
    found = find_recalibration(model, ALL, x)
    expected = slow_constants(model, masks, x)
    assert set(found.layers) == set(expected)
    assert max(float((gain - 1).abs().max()) for gain, _ in expected.values()) > 0.1
    for layer, (gain, shift) in expected.items():
        ours = found.layers[layer]
        torch.testing.assert_close(ours.gain.double(), gain, rtol=ROUNDING, atol=0)
        torch.testing.assert_close(ours.shift.double(), shift, rtol=0, atol=ROUNDING * float(shift.abs().max()))

    dense, pruned = embed_recalibrated(model, masks, as_doubles(found), x)
    by_reference = reference.score(model, x, ALL, recalibration=found)
    torch.testing.assert_close(by_reference.distance, (dense - pruned).norm(dim=1), rtol=0, atol=1e-12)
    assert float((by_reference.distance - reference.score(model, x, ALL).distance).abs().min()) > 1e-3
    for fold in (True, False):
        halves = dualize(model, ALL, example=x, recalibration=found, fold=fold)(x).chunk(2)
        for ours, theirs in zip(halves, (dense, pruned), strict=True):
            # Rounding of float32; 1e-5 is how close D is to the reference everywhere.
            torch.testing.assert_close(F.normalize(ours.double()), theirs, rtol=0, atol=1e-5)


def test_identity_is_plain() -> None:
    """With gain 1 and shift 0 nothing is added but a multiplication by 1."""
    model, x = build("residual")
    scales = {name: ChannelScale(torch.ones(len(m)), torch.zeros(len(m))) for name, m in ALL.make_masks(model).items()}
    plain, ours = (dualize(model, ALL, example=x, recalibration=r)(x) for r in (None, Recalibration(scales)))
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_channels_that_do_not_vary() -> None:
    """Channel 0 is constant in both branches, channel 1 in the dense one but for rounding, channel 2 loses all of its
    weights, channel 3 nearly all: the ratio of its deviations is above the largest gain."""
    model = seeded(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten()))
    conv = model[0]
    assert isinstance(conv, nn.Conv2d)
    conv.weight.data[0] = 0
    conv.weight.data[1] *= 1e-7
    mask = torch.ones_like(conv.weight, dtype=torch.bool)
    mask[:2, 0] = False
    mask[2] = False
    mask[3].view(-1)[1:] = False
    x = 3 * randn(9, 3, 6, 6)
    (gain, shift) = find_recalibration(model, {"0": mask}, x).layers["0"]
    assert gain[:3].tolist() == [1, 1, 1]
    assert gain[3] == 5
    assert gain[4] == pytest.approx(1, abs=1e-6)  # nothing was pruned there
    dense = F.conv2d(x, conv.weight, conv.bias).mean((0, 2, 3))
    pruned = F.conv2d(x, conv.weight * mask, conv.bias).mean((0, 2, 3))
    torch.testing.assert_close(gain * pruned + shift, dense, rtol=0, atol=1e-5)


class Functional(nn.Conv2d):
    """Its module's output is not the convolution's, and the parent uses its weight in a second way."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.weight, self.bias, padding=1))


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Functional(3, 3, 3)
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.conv(x), weight=self.conv.weight, stride=2).flatten(1)


def test_a_layer_is_known_by_its_weight() -> None:
    model, x = Parent().eval(), randn(9, 3, 7, 7)
    found = find_recalibration(model, ALL, x)
    assert set(found.layers) == {"conv"}
    ours = dualize(model, ALL, example=x, recalibration=found)(x).chunk(2)[1]
    expected = reference.score(model, x, ALL, recalibration=found).pruned_embedding
    torch.testing.assert_close(F.normalize(ours.double()), expected, rtol=0, atol=1e-5)
    gain, shift = (vector.view(-1, 1, 1).double() for vector in found.layers["conv"])
    weight = model.conv.weight.double() * ALL.make_masks(model)["conv"]
    assert model.conv.bias is not None
    inside = F.relu(gain * F.conv2d(x.double(), weight, model.conv.bias.double(), padding=1) + shift)
    by_hand = gain * F.conv2d(inside, weight, stride=2) + shift
    torch.testing.assert_close(F.normalize(by_hand.flatten(1)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["residual", "vit"])
def test_the_self_check_sees_the_constants(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build(name)
    found = find_recalibration(model, ALL, x)

    build_right = layers.Layer.build_module

    def build_wrong(layer: layers.Layer) -> nn.Module:
        gain, shift = layer.recalibration or (None, None)
        if gain is not None and shift is not None:
            layer.recalibration = ChannelScale(gain, shift.roll(1))
        return build_right(layer)

    monkeypatch.setattr(layers.Layer, "build_module", build_wrong)
    with pytest.raises(RuntimeError, match=r"the pruned half and the model with masked weights at N = . differ"):
        dualize(model, ALL, example=x, recalibration=found)


class Cast(nn.Module):
    """A batch is float32; the network of the test is float64."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


@pytest.mark.parametrize("name", ["weight reuse", "vit"])
def test_sensitivity_is_the_derivative(name: str) -> None:
    """Central differences in float64, as in test_analysis_sensitivity.py; gains and shifts move with the weights."""
    model, x = build(name)
    pruning = Pruning(sparsity=0.1, layers="conv+linear")
    masks, constants = pruning.make_masks(model), as_doubles(find_recalibration(model, pruning, x))
    step, moved = 1e-7, []
    for t in (step, -step):
        soft = {layer: 1 - t * (~mask).double() for layer, mask in masks.items()}
        partly = {layer: (1 + t * (gain - 1), t * shift) for layer, (gain, shift) in constants.items()}
        moved.append(embed_recalibrated(model, soft, partly, x)[1])
    expected = torch.linalg.vector_norm((moved[0] - moved[1]) / (2 * step), dim=1)
    network = nn.Sequential(Cast(), model.double()).eval()
    named = {f"1.{layer}": ChannelScale(gain.float(), shift.float()) for layer, (gain, shift) in constants.items()}
    own = Pruning(sparsity=0.1, layers=list(named))
    ours = sensitivity(x, network, own, recalibration=Recalibration(named), chunk=4)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
    assert not torch.allclose(ours, sensitivity(x, network, own), rtol=0.01)


def test_recalibrated_d_approaches_sensitivity() -> None:
    """The less is pruned, the closer. Gains and shifts are found for each pruning."""
    model, x = build("residual")
    errors = []
    for sparsity in (0.02, 0.5):
        pruning = Pruning(sparsity=sparsity)
        found = find_recalibration(model, pruning, x)
        distance = reference.score(model, x, pruning, recalibration=found).distance
        ours = sensitivity(x, model, pruning, recalibration=found)
        errors.append(float((ours / distance - 1).abs().mean()))
    assert errors[0] < 0.05
    assert errors[1] > 3 * errors[0]


def scale(**changes: Tensor) -> ChannelScale:
    return ChannelScale(torch.ones(3), torch.zeros(3))._replace(**changes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([scale()], "expected gains and shifts by the names of layers, got list"),
        ({3: scale()}, "expected the name of a layer, got int"),
        ({"a": torch.ones(2, 3)}, "expected a pair of tensors, gain and shift, for 'a', got Tensor"),
        ({"a": (1.0, 0.0)}, "expected a pair of tensors"),
        ({"a": scale(gain=torch.ones(3).double())}, r"float32 \[channels\] for 'a', got torch.float64 \[3\]"),
        ({"a": scale(shift=torch.zeros(4))}, r"got torch.float32 \[4\]"),
        ({"a": scale(gain=torch.ones(3, 1))}, r"got torch.float32 \[3, 1\]"),
        ({"a": ChannelScale(torch.ones(0), torch.ones(0))}, r"got torch.float32 \[0\]"),
        ({"a": scale(shift=torch.tensor([0, torch.nan, 0]))}, "expected finite gains and shifts"),
        ({"a": scale(gain=torch.tensor([1, 0.1, 1]))}, "expected gains from 0.2 to 5.0, got 0.1 to 1 for 'a'"),
        ({"a": ChannelScale(torch.ones(1 << 20), torch.ones(1 << 20))}, "at most 524288 channels, got 1048576"),
    ],
)
def test_constants_that_cannot_be(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Recalibration(given)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_the_recalibration_of_another_network_is_refused() -> None:
    model, x = build("grouped")
    found = find_recalibration(model, Pruning(), x)
    short = Recalibration({name: scale() for name in found.layers})
    first, *others = found.layers
    partial = Recalibration({name: found.layers[name] for name in others})
    only_linear = Pruning(layers="*.2")
    for recalibration, pruning, message in (
        (short, Pruning(), r"of this network, whose '0' has 16 channels, got 3"),
        (found, only_linear, r"got one of '0', which is not pruned"),
    ):
        for call in (
            lambda p=pruning, r=recalibration: dualize(model, p, example=x, recalibration=r),
            lambda p=pruning, r=recalibration: reference.score(model, x, p, recalibration=r),
            lambda p=pruning, r=recalibration: sensitivity(x, model, p, recalibration=r),
        ):
            with pytest.raises(InputError, match=message):
                call()
    with pytest.raises(InputError, match=f"got none of {first!r}, which is pruned"):
        dualize(model, Pruning(), example=x, recalibration=partial)
    with pytest.raises(InputError, match="the layer '0' gives NaN or infinity on these images"):
        find_recalibration(model, Pruning(), x * torch.inf)
