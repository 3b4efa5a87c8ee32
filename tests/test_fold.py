"""Folding: only where nothing else reads what disappears, and never into the masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from duals import ALL, calls, check_folding, randn, seeded
from networks import ZOO, calibrated, network_input, pictures
from torch import Tensor, nn

from prefiqs_ext.dual import DualConv2d, DualLinear, dualize
from prefiqs_ext.models.preset import PRESETS
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.pruning_masks import pack_mask


def test_folding_rounds_once() -> None:
    """Weights, bias and tap_shift are the float64 products, rounded to float32 at the end."""
    model = seeded(
        nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.Flatten())
    )
    mask = ALL.make_masks(model)["1"]
    before, convolution, after, _ = model.double()
    scale_in = before.weight / (before.running_var + before.eps).sqrt()
    shift_in = before.bias - before.running_mean * scale_in
    scale_out = after.weight / (after.running_var + after.eps).sqrt()
    layer = dualize(model.float(), ALL, example=randn(1, 6, 5, 5)).get_submodule("1")
    assert isinstance(layer, DualConv2d)
    in_group = torch.tensor([[0, 1, 2]] * 4 + [[3, 4, 5]] * 4)  # the input channels of each filter's group
    weight = convolution.weight.double() * scale_out[:, None, None, None]
    expected_shift = torch.stack([(w * shift_in[in_group][..., None, None]).sum(1) for w in (weight, weight * mask)])
    half_a_unit = {"rtol": 2**-24, "atol": 1e-12}  # of float32's last place
    torch.testing.assert_close(layer.weight.double(), weight * scale_in[in_group][..., None, None], **half_a_unit)
    assert layer.tap_shift is not None
    torch.testing.assert_close(layer.tap_shift.double(), expected_shift, **half_a_unit)
    assert layer.bias is not None
    expected_bias = (convolution.bias.double() - after.running_mean) * scale_out + after.bias
    torch.testing.assert_close(layer.bias.double(), expected_bias, rtol=2**-24, atol=1e-7)  # atol: it cancels


def test_masks_come_from_the_raw_weights() -> None:
    """The scales of these batch norms would prune other weights; filters scaled by 0 keep their masks."""
    model = seeded(nn.Sequential(nn.BatchNorm2d(5), nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Flatten()))
    norm = model.get_submodule("2")
    norm.weight.data = torch.tensor([1e-4, -3.0, 0.0, 1e4, -0.5, 0.0])  # type: ignore[union-attr, assignment]
    folded = check_folding(model, randn(2, 5, 6, 6))
    layer = folded.get_submodule("1")
    assert isinstance(layer, DualConv2d)
    assert layer.mask is not None
    assert torch.equal(layer.mask, pack_mask(ALL.make_masks(model)["1"]))
    assert calls(folded) == ["DualConv2d", "Flatten"]


Form = Callable[["Around", Tensor], Tensor]


class Around(nn.Module):
    """before -> convolution -> after -> flat, with parameters for both."""

    def __init__(self, before: Form | None = None, after: Form | None = None) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.one = nn.Parameter(torch.tensor([1.7]))
        self.three = nn.Parameter(torch.tensor([0.4, -1.3, 2.1]).view(1, 3, 1, 1))
        self.four = nn.Parameter(torch.tensor([0.4, -1.3, 2.1, 0.7]).view(4, 1, 1))
        self.slopes = nn.Parameter(torch.tensor([0.4, -1.3, 0.0, 0.7]))
        self.row = nn.Parameter(torch.tensor([0.4, -1.3, 2.1]))
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]))
        nn.init.normal_(self.conv.weight, generator=torch.Generator().manual_seed(0))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.before is None else self.before(self, x)
        x = self.conv(x)
        return (x if self.after is None else self.after(self, x)).flatten(1)


def augmented(x: Tensor) -> Tensor:
    x -= 0.5
    x /= 0.25
    x *= 2
    x += 1
    return x


BEFORE: dict[str, Form] = {
    "numbers": lambda m, x: (x - 0.5) / 0.25,
    "from a number": lambda m, x: 2 * (1 - x) + 3,
    "parameters": lambda m, x: (x * m.three + m.one).div(m.one),
    "buffer": lambda m, x: torch.sub(x, m.mean.view(1, -1, 1, 1)),
    "in place": lambda m, x: x.mul_(2.0).add_(m.three),
    "augmented": lambda m, x: augmented(x),
    "cast": lambda m, x: x.to(m.one.dtype).type(m.one.dtype) * 3,
}
AFTER: dict[str, Form] = {
    "numbers": lambda m, x: x.mul(3).sub(0.5),
    "from a number": lambda m, x: 1 - x,
    "parameters": lambda m, x: torch.add(m.four, x * m.one),
    "batch norm in parts": lambda m, x: (x - m.four) / (m.four + 3) * m.one - m.four,
    "dropout": lambda m, x: F.dropout(F.dropout(x * 2, 0.5, m.training), training=False),
    "relu": lambda m, x: F.relu(x),
    "relu in place": lambda m, x: torch.relu_(x.add_(1)),
    "torch.relu": lambda m, x: torch.relu(x),
    "leaky relu": lambda m, x: F.leaky_relu(x, 0.3, inplace=True),
    "default leaky relu": lambda m, x: F.leaky_relu(x),
    "prelu": lambda m, x: F.prelu(2 * x, m.slopes),
    "one slope": lambda m, x: F.prelu(x, weight=m.one),
}


@pytest.mark.parametrize("form", BEFORE)
def test_forms_folded_before(form: str) -> None:
    assert calls(check_folding(Around(before=BEFORE[form]), randn(2, 3, 7, 6))) == ["DualConv2d", "flatten"]


@pytest.mark.parametrize("form", AFTER)
def test_forms_folded_after(form: str) -> None:
    assert calls(check_folding(Around(after=AFTER[form]), randn(2, 3, 7, 6))) == ["DualConv2d", "flatten"]


@pytest.mark.parametrize("activation", [nn.ReLU(True), nn.LeakyReLU(0.2), nn.PReLU(), nn.PReLU(4)], ids=repr)
def test_activation_modules(activation: nn.Module) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4), activation, nn.Flatten()))
    assert calls(check_folding(model, randn(2, 3, 7, 6))) == ["DualConv2d", "Flatten"]


# What is not the same for all pixels of a channel, not affine, or read by something else, stays.
LEFT_BEFORE: dict[str, tuple[Form, list[str]]] = {
    "per pixel": (lambda m, x: x * m.row, ["mul"]),
    "read twice": (
        lambda m, x: (x - 1) + (x - 1).abs().mean((2, 3), keepdim=True),
        ["sub", "sub", "abs", "mean", "add"],
    ),
    "power": (lambda m, x: x**2, ["pow"]),
    "of a mask": (lambda m, x: (x > 0) * m.one, ["gt", "mul"]),
    "depends on the size": (lambda m, x: x * (1 / x.size(2)), ["size", "truediv", "mul"]),
    "reciprocal": (lambda m, x: 1 / (x**2 + 1), ["pow", "add", "truediv"]),
}
LEFT_AFTER: dict[str, tuple[Form, list[str]]] = {
    "square": (lambda m, x: x * x, ["mul"]),
    "twice": (lambda m, x: x + x, ["add"]),
    "scaled addition": (lambda m, x: torch.add(x, m.four, alpha=2), ["add"]),
    "broadcast residual": (lambda m, x: x + x[:, :1], ["getitem", "add"]),
    "read twice": (lambda m, x: torch.cat([x, 2 * x], 1), ["mul", "cat"]),
    "relu6": (lambda m, x: F.relu6(x), ["relu6"]),
    "after the activation": (lambda m, x: 2 * F.relu(x) + 1, ["mul", "add"]),
}


@pytest.mark.parametrize("form", LEFT_BEFORE)
def test_forms_left_before(form: str) -> None:
    before, operations = LEFT_BEFORE[form]
    assert calls(check_folding(Around(before=before), randn(2, 3, 7, 3))) == [*operations, "DualConv2d", "flatten"]


@pytest.mark.parametrize("form", LEFT_AFTER)
def test_forms_left_after(form: str) -> None:
    after, operations = LEFT_AFTER[form]
    assert calls(check_folding(Around(after=after), randn(2, 3, 7, 6))) == ["DualConv2d", *operations, "flatten"]


class Fork(nn.Module):
    """A batch norm read by several layers: by two convolutions, and by the sum too where `by_sum`."""

    def __init__(self, by_sum: bool) -> None:
        super().__init__()
        self.by_sum = by_sum
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.PReLU(4)
        self.bn = nn.BatchNorm2d(4)
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.act(self.stem(x)))
        y = self.left(x) + self.right(x)
        return (y + x if self.by_sum else y).flatten(1)


@pytest.mark.parametrize("by_sum", [False, True])
def test_an_affine_read_by_several(by_sum: bool) -> None:
    expected = ["DualConv2d", "FrozenNorm", *["DualConv2d"] * 2, "add", "flatten"]
    if not by_sum:
        expected = [*["DualConv2d"] * 3, "flatten"]
    assert calls(check_folding(seeded(Fork(by_sum)), randn(2, 3, 6, 6))) == expected


class Sum(nn.Module):
    """conv(x) + shortcut in the order and with the shortcut asked for; the convolution may come before the shortcut."""

    def __init__(self, shortcut: str, conv_first: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv, self.bn, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(4)
        kinds = {"identity": nn.Identity(), "pool": nn.MaxPool2d(3, 1, 1), "conv": nn.Conv2d(4, 4, 1)}
        self.shortcut = nn.AdaptiveAvgPool2d(1) if shortcut == "mean" else kinds[shortcut]
        self.conv_first = conv_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.conv_first:
            y = self.bn(self.conv(x))
            y = y + self.shortcut(x)
        else:
            y = self.shortcut(x)
            y += self.bn(self.conv(x))
        return self.act(y).flatten(1)


@pytest.mark.parametrize("conv_first", [False, True])
@pytest.mark.parametrize(
    ("shortcut", "layers"),
    [
        ("identity", "*"),
        ("identity", "conv"),
        ("pool", "*"),
        ("pool", "conv"),
        *(("conv", n) for n in ("*", "conv", "shortcut")),
    ],
)
def test_residuals(shortcut: str, layers: str, conv_first: bool) -> None:
    """Shared and paired residuals; pruning the shortcut alone gives a paired residual to a convolution not pruned."""
    model = seeded(Sum(shortcut, conv_first))
    folded = check_folding(model, randn(1, 3, 6, 5), Pruning(layers=[layers]))
    between = {"identity": [], "pool": ["MaxPool2d"], "conv": ["DualConv2d"]}[shortcut]
    assert [name for name in calls(folded) if name != "duplicate"] == ["DualConv2d", *between, "DualConv2d", "flatten"]


def test_a_broadcast_residual_is_not_folded() -> None:
    folded = check_folding(seeded(Sum("mean", True)), randn(2, 3, 6, 5))
    assert calls(folded) == ["DualConv2d", "DualConv2d", "AdaptiveAvgPool2d", "add", "PReLU", "flatten"]


def test_a_shared_residual_is_not_duplicated() -> None:
    folded = check_folding(seeded(Sum("identity", True)), randn(1, 3, 6, 5), Pruning(layers=["conv"]))
    call = next(node for node in folded.graph.nodes if node.target == "conv")
    assert [node.target for node in call.args] == ["stem", "stem"]
    assert "duplicate" not in calls(folded)


@pytest.mark.parametrize("rank", [2, 3])
def test_batch_norm_after_a_linear_layer(rank: int) -> None:
    """[N, C] only: of [N, T, C] a BatchNorm1d scales the T."""
    model = seeded(nn.Sequential(nn.Linear(7, 5), nn.Dropout(), nn.BatchNorm1d(5), nn.Flatten()))
    x = randn(3, 7) if rank == 2 else randn(3, 5, 7)
    folded = check_folding(model, x)
    assert calls(folded) == ["DualLinear", *["FrozenNorm"] * (rank - 2), "Flatten"]
    assert isinstance(folded.get_submodule("0"), DualLinear)


def test_nothing_is_folded_into_a_linear_layer_from_before() -> None:
    """A linear layer has one bias for both branches, and the shift gives each another one."""
    assert calls(check_folding(seeded(nn.Sequential(nn.BatchNorm1d(7), nn.Linear(7, 5))), randn(3, 7))) == [
        "FrozenNorm",
        "DualLinear",
    ]


def test_a_layer_called_twice_is_left_alone() -> None:
    conv, act = nn.Conv2d(3, 3, 3, padding=1), nn.PReLU(3)
    model = seeded(nn.Sequential(nn.BatchNorm2d(3), conv, act, nn.BatchNorm2d(3), conv, nn.Flatten()))
    assert calls(check_folding(model, randn(2, 3, 6, 6))) == [
        *("FrozenNorm", "DualConv2d", "PReLU", "FrozenNorm", "DualConv2d", "Flatten")
    ]


@pytest.mark.parametrize("preset", ["arcface", "magface", "adaface", "sface"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_presets_fold_into_the_first_convolution(preset: str, dtype: torch.dtype) -> None:
    """uint8 images reach it as they are; BGR stays one flip of them."""
    own = PRESETS[preset]
    rest = seeded(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.PReLU(8), nn.Conv2d(8, 4, 3), nn.Flatten()))
    model = nn.Sequential(own.normalize(), rest).eval()
    pixels = pictures(2, (16, 15))
    folded = check_folding(model, pixels.to(dtype))
    assert calls(folded) == [*["flip"] * (own.colour == "bgr"), "DualConv2d", "DualConv2d", "Flatten"]
    assert torch.equal(folded(pixels), folded(pixels.float()))


@pytest.mark.parametrize("cast", [lambda x: x / 255, lambda x: x.float(), lambda x: x.to(torch.float32) - 127.5])
def test_uint8_without_a_preset(cast: Callable[[Tensor], Tensor]) -> None:
    model = Around(before=lambda m, x: cast(x))
    assert calls(check_folding(model, pictures(2, 9), dtype=torch.float32)) == ["DualConv2d", "flatten"]


def test_uint8_arithmetic_is_not_folded() -> None:
    """uint8 + 200 wraps at 256: it is not affine."""
    model = Around(before=lambda m, x: (x + 200).float())
    assert calls(check_folding(model, pictures(2, 9), dtype=torch.float32)) == ["add", "DualConv2d", "flatten"]


@pytest.mark.parametrize("name", [*ZOO, "iresnet18"])
@pytest.mark.parametrize("layers", ["conv", "conv+linear"])
def test_fused_equals_unfused(name: str, layers: str) -> None:
    model = calibrated(name)
    x = network_input(pictures(2, 32 if name in ZOO else 112, seed=4))
    check_folding(model, x, Pruning(layers=layers))


def test_iresnet_blocks() -> None:
    """Two convolutions a block, three where it downsamples, and between them nothing at all."""
    model = calibrated("iresnet18")
    folded = dualize(model, example=network_input(pictures(1)))
    names = calls(folded)
    assert names == ["DualConv2d"] * (1 + 4 * (3 + 2)) + ["FrozenNorm", "flatten", "DualLinear"]
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for block, count in (("0", 3), ("1", 2)):
            own = [node for node in folded.graph.nodes if str(node.target).startswith(f"{stage}.{block}.")]
            assert len(own) == count
            assert len([node for node in own if len(node.args) == 2]) == 1  # one of them adds the shortcut
