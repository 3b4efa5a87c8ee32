"""Pruning masks against torch.nn.utils.prune, hand-made cases and a plain Python loop over the packed bits."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from networks import ZOO, calibrated
from oracle import unpack_mask
from torch import Tensor, nn
from torch.nn.utils import prune

import prefiqs_ext
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.pruning_masks import pack_mask

NETWORKS = ["iresnet18", *ZOO]
KINDS = {"conv": (nn.Conv1d, nn.Conv2d), "conv+linear": (nn.Conv1d, nn.Conv2d, nn.Linear)}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return calibrated(request.param)


def has_deciding_tie(weights: list[Tensor], sparsity: float) -> bool:
    """Whether the last weight removed and the first kept are equal in magnitude, so that the order decides."""
    ranked = torch.cat([w.detach().abs().flatten() for w in weights]).sort().values
    count = round(sparsity * len(ranked))
    return 0 < count < len(ranked) and bool(ranked[count - 1] == ranked[count])


def masks_by_torch(model: nn.Module, pruning: Pruning) -> Iterator[tuple[str, Tensor, bool]]:
    """(name, mask, whether a tie decided it) for each layer."""
    model = copy.deepcopy(model)
    kinds = KINDS[str(pruning.layers)]
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    weights = {name: layer.weight for name, layer in layers.items()}
    if pruning.scope == "global":
        pairs = [(layer, "weight") for layer in layers.values()]
        prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=pruning.sparsity)
    else:
        for layer in layers.values():
            prune.l1_unstructured(layer, "weight", amount=pruning.sparsity)
    for name, layer in layers.items():
        ranked = list(weights.values()) if pruning.scope == "global" else [weights[name]]
        yield name, layer.weight_mask.bool(), has_deciding_tie(ranked, pruning.sparsity)


SCOPES = ("layer", "global")
CASES = [
    *(
        (name, scope, layers, sparsity)
        for name in ZOO
        for scope in SCOPES
        for layers in KINDS
        for sparsity in (0.1, 0.4, 0.77)
    ),
    ("iresnet18", "layer", "conv", 0.4),
    pytest.param("iresnet18", "global", "conv", 0.4, marks=pytest.mark.slow),  # torch's own top-k takes the time
]


@pytest.mark.parametrize(("name", "scope", "layers", "sparsity"), CASES)
def test_magnitude_equals_torch_prune(name: str, scope: str, layers: str, sparsity: float) -> None:
    model = calibrated(name)
    pruning = Pruning(sparsity=sparsity, scope=scope, layers=layers)
    masks = pruning.make_masks(model)
    expected = list(masks_by_torch(model, pruning))
    assert list(masks) == [name for name, _, _ in expected]
    free = [(name, mask) for name, mask, tie in expected if not tie]
    for name, mask in free:
        assert torch.equal(masks[name], mask), name
    # Random float32 weights seldom tie at the threshold: the comparison must not become empty.
    assert len(free) >= 0.8 * len(expected)


@pytest.mark.parametrize("method", ["magnitude", "random"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_counts_are_python_rounding(network: nn.Module, method: str, scope: str) -> None:
    for sparsity in (0.0, 0.25, 0.4, 0.99):
        masks = Pruning(method=method, sparsity=sparsity, scope=scope).make_masks(network)
        groups = [list(masks.values())] if scope == "global" else [[mask] for mask in masks.values()]
        for group in groups:
            size = sum(mask.numel() for mask in group)
            assert sum(int((~mask).sum()) for mask in group) == round(sparsity * size)


@pytest.mark.parametrize(
    ("size", "sparsity", "removed"),
    [(5, 0.5, 2), (7, 0.5, 4), (9, 0.5, 4), (1, 0.4, 0), (1, 0.6, 1), (3, 0.99, 3), (10, 0.25, 2), (14, 0.25, 4)],
)
def test_halves_round_to_even(size: int, sparsity: float, removed: int) -> None:
    layer = nn.Linear(size, 1)
    mask = Pruning(sparsity=sparsity, layers="conv+linear").make_masks(nn.Sequential(layer))["0"]
    assert int((~mask).sum()) == removed


def conv_of(values: list[float]) -> nn.Conv2d:
    conv = nn.Conv2d(1, 1, (1, len(values)), bias=False)
    conv.weight.data = torch.tensor(values).view(1, 1, 1, -1)
    return conv


def test_ties_go_by_lowest_flat_index() -> None:
    model = nn.Sequential(conv_of([2.0, -1.0, 1.0, 0.5, -1.0, 1.0]))
    mask = Pruning(sparsity=0.5).make_masks(model)["0"]
    # Of six, three go: 0.5, then the first two of the four ones, whatever their sign.
    assert mask.flatten().tolist() == [True, False, False, False, True, True]


def test_flat_index_is_oihw_whatever_the_storage() -> None:
    conv = nn.Conv2d(2, 2, 2, bias=False)
    nn.init.ones_(conv.weight)
    plain = Pruning(sparsity=0.375).make_masks(conv)[""]
    assert plain.flatten().tolist() == [False] * 6 + [True] * 10
    last = Pruning(sparsity=0.375).make_masks(conv.to(memory_format=torch.channels_last))[""]
    assert torch.equal(last, plain)


def test_global_ties_go_by_named_modules_order() -> None:
    model = nn.Sequential(conv_of([1.0, 3.0]), nn.Sequential(conv_of([-1.0, 0.25, 1.0])), conv_of([1.0, 1.0, 1.0]))
    masks = Pruning(sparsity=0.5, scope="global").make_masks(model)
    # Of eight, four go: 0.25, then the first three ones: 0[0], 1.0[0], 1.0[2].
    assert {name: mask.flatten().tolist() for name, mask in masks.items()} == {
        "0": [False, True],
        "1.0": [False, False, False],
        "2": [True, True, True],
    }


def test_zero_and_subnormal_weights_rank_by_magnitude() -> None:
    mask = Pruning(sparsity=0.6).make_masks(conv_of([1e-41, -0.0, 2.0, 0.0, -1e-42]))[""]
    assert mask.flatten().tolist() == [True, False, True, False, False]


def test_float64_weights_are_ranked_in_float64() -> None:
    conv = conv_of([1.0, 1.0, 1.0]).double()
    conv.weight.data[..., 0] += 1e-12
    assert Pruning(sparsity=0.3).make_masks(conv)[""].flatten().tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(dtype: torch.dtype) -> None:
    half, full = nn.Conv2d(8, 8, 3).to(dtype), nn.Conv2d(8, 8, 3)
    full.weight.data = half.weight.data.float()
    assert torch.equal(Pruning().make_masks(half)[""], Pruning().make_masks(full)[""])


@pytest.mark.parametrize("method", ["magnitude", "random"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_masks_are_reproducible_and_leave_the_weights(network: nn.Module, method: str, scope: str) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pruning = Pruning(method=method, scope=scope, layers="conv+linear", seed=3)
    first = pruning.make_masks(network)
    torch.rand(7)  # the global generator plays no part
    second = pruning.make_masks(network)
    assert list(first) == list(second)
    for name, mask in first.items():
        assert mask.dtype == torch.bool
        assert mask.shape == network.get_submodule(name).weight.shape
        assert torch.equal(mask, second[name])
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_random_masks_depend_on_seed_and_layer_alone() -> None:
    model = calibrated("residual")
    masks = Pruning(method="random").make_masks(model)
    other = Pruning(method="random", seed=1).make_masks(model)
    alone = Pruning(method="random", layers="blocks.1.conv2").make_masks(model)
    assert torch.equal(alone["blocks.1.conv2"], masks["blocks.1.conv2"])
    size, sparsity = masks["conv2"].numel(), 0.4
    # Two independent masks of the same shape agree on a fraction p of n weights with deviation sqrt(p (1 - p) / n).
    agree = sparsity**2 + (1 - sparsity) ** 2
    slack = 5 * math.sqrt(agree * (1 - agree) / size)
    for a, b in [(masks["conv1"], masks["conv2"]), (masks["conv2"], other["conv2"])]:
        assert abs((a == b).double().mean().item() - agree) < slack


def test_random_ignores_magnitude() -> None:
    model = calibrated("residual")
    name = "blocks.2.conv1"
    weight, mask = model.get_submodule(name).weight, Pruning(method="random").make_masks(model)[name]
    kept, removed = weight[mask].abs().mean().item(), weight[~mask].abs().mean().item()
    assert 0.9 < kept / removed < 1.1  # 6912 weights: the ratio's deviation is about 0.02


def test_a_shared_module_is_one_layer() -> None:
    conv = nn.Conv2d(4, 4, 1)
    shared, single = nn.ModuleList([conv, nn.Conv2d(4, 4, 1), conv]), nn.ModuleList([conv, nn.Conv2d(4, 4, 1)])
    single[1] = shared[1]
    for scope in ("layer", "global"):
        masks, expected = (Pruning(scope=scope).make_masks(model) for model in (shared, single))
        assert list(masks) == ["0", "1"]
        assert all(torch.equal(masks[name], expected[name]) for name in masks)


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("conv", ["stem.0", "narrow.0", "wide.0"]),
        ("conv+linear", ["stem.0", "narrow.0", "wide.0", "head.2"]),
        ("head.*", ["head.2"]),
        ("[nw]*.0", ["narrow.0", "wide.0"]),
        (["head.*", "stem.?"], ["stem.0", "head.2"]),
    ],
)
def test_choice_of_layers(layers: str | list[str], names: list[str]) -> None:
    assert list(Pruning(layers=layers).make_masks(calibrated("concat"))) == names


def test_pruning_is_a_value() -> None:
    assert Pruning(layers=["a", "b"]) == Pruning(layers=("a", "b"))
    assert hash(Pruning(layers=["a"])) == hash(Pruning(layers=("a",)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be a number in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, "sparsity must be a number"),
        ({"sparsity": math.nan}, "got nan"),
        ({"sparsity": "0.4"}, "got '0.4'"),
        ({"method": "l1"}, "must be one of magnitude, random, structured, or n:m .*got 'l1'"),
        ({"scope": "model"}, "must be one of layer, global, got 'model'"),
        ({"layers": []}, r"name patterns, got \[\]"),
        ({"layers": [3]}, r"name patterns, got \[3\]"),
        ({"layers": None}, "name patterns, got None"),
        ({"seed": 0.5}, "seed must be an integer, got 0.5"),
    ],
)
def test_bad_settings(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Pruning(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        (nn.Sequential(nn.ReLU()), "conv", "no convolution or linear layer to prune: Sequential"),
        (nn.Sequential(nn.Linear(2, 2)), "conv", "use layers='conv\\+linear'"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
            "1",
            "pattern '1' matches no convolution or linear layer; there are 0",
        ),
        (nn.Sequential(nn.Linear(2, 2)), ["0", "body.*"], "pattern 'body.\\*' matches no"),
    ],
)
def test_nothing_to_prune(model: nn.Module, layers: str | list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Pruning(layers=layers).make_masks(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_non_finite_weights(value: float, method: str) -> None:
    model = calibrated("groups")
    model[3].weight.data[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="layer '3' has NaN or infinite values"):
        Pruning(method=method).make_masks(model)


# (weight shape, groups do not matter: the second size is already C / g)
SHAPES = [
    (4, 3, 3, 3),
    (5, 1, 3, 3),
    (2, 7, 1, 1),
    (3, 8, 2, 4),
    (6, 64, 1, 1),
    (2, 33, 3, 3),
    (3, 5, 3),
    (4, 31),
    (4, 65),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_bits(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.6
    packed = pack_mask(mask)
    four = mask if mask.dim() == 4 else mask.view(*shape, *([1] * (3 - len(shape)))).unsqueeze(2)
    out_channels, in_channels, kh, kw = four.shape
    words = [[0] * math.ceil(in_channels * kh * kw / 32) for _ in range(out_channels)]
    for o in range(out_channels):
        for r in range(kh):
            for s in range(kw):
                for c in range(in_channels):
                    k = (r * kw + s) * in_channels + c
                    words[o][k // 32] |= int(four[o, c, r, s]) << (k % 32)
    assert packed.dtype == torch.int32
    assert [[word & 0xFFFFFFFF for word in row] for row in packed.tolist()] == words
    assert torch.equal(unpack_mask(packed, shape), mask)
    if mask.dim() == 4:
        assert torch.equal(pack_mask(mask.to(memory_format=torch.channels_last)), packed)


def test_pack_refuses() -> None:
    with pytest.raises(ValueError, match=r"mask must be bool \[Co, C/g, ...\], got torch.float32 \[2, 2\]"):
        pack_mask(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"got torch.bool \[2\]"):
        pack_mask(torch.ones(2, dtype=torch.bool))


def test_a_pruning_is_described_without_torch() -> None:
    code = (
        "import sys, types\n"
        f"package = types.ModuleType('prefiqs_ext'); package.__path__ = {list(prefiqs_ext.__path__)}\n"
        "sys.modules['prefiqs_ext'] = package  # without what the package's own __init__ may load\n"
        "from prefiqs_ext.pruning import Pruning\n"
        "print(Pruning('2:4').sparsity, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0.5 False\n"
