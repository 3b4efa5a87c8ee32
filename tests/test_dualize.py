"""dualize: what is shared, what is paired, and what a value goes through on the way."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from duals import TOLERANCE, Net, Outputs, calls, check, randn, seeded, tokens
from networks import ZOO, calibrated, network_input, pictures
from oracle import expected_pair
from torch import Tensor, fx, nn

from prefiqs_ext.dual import DualConv2d, dualize, duplicate
from prefiqs_ext.pruning import Pruning


def rows_of(graph: fx.GraphModule, x: Tensor) -> dict[str, int]:
    """Rows of every layer's result, by the layer's name."""
    rows = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n.op == "call_module":
                rows[str(n.target)] = len(result)  # type: ignore[arg-type]
            return result

    Watch(graph).run(x)
    return rows


@pytest.mark.parametrize(
    "pruning",
    [
        Pruning(),
        Pruning(layers="conv+linear", scope="global"),
        Pruning(method="random", sparsity=0.9),
        Pruning(layers=["*.fc", "fc", "head.*", "*11.2", "*19.2"], sparsity=0.7),
    ],
    ids=["conv", "all, global", "random", "last layer"],
)
@pytest.mark.parametrize("name", ZOO)
def test_networks(name: str, pruning: Pruning) -> None:
    if not isinstance(pruning.layers, str):  # a pattern that matches nothing is an error of Pruning
        layers = [n for n, m in calibrated(name).named_modules() if isinstance(m, nn.Linear)]
        pruning = Pruning(layers=layers, sparsity=0.7)
    check(calibrated(name), network_input(pictures(3, 32, seed=5)), pruning)


def test_iresnet18() -> None:
    check(calibrated("iresnet18"), network_input(pictures(2, seed=5)))


def test_the_pair_starts_at_the_first_layer_that_loses_a_weight() -> None:
    model = calibrated("residual")
    masks = {name: torch.ones_like(mask) for name, mask in Pruning().make_masks(model).items()}
    masks["blocks.2.conv2"][0, 0] = False
    x = network_input(pictures(3, 32))
    graph = dualize(model, masks, example=x)
    rows = rows_of(graph, x)
    first = list(rows).index("blocks.2.conv2")
    assert list(rows.values()) == [3] * first + [6] * (len(rows) - first)
    assert 4 < first < len(rows) - 4
    # A mask that removes nothing costs nothing: only the one layer holds bits.
    masked = [name for name, m in graph.named_modules() if isinstance(m, DualConv2d) and m.mask is not None]
    assert masked == ["blocks.2.conv2"]


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("layers", ["blocks.1.conv1", "blocks.1.conv2", "blocks.2.downsample.0", "conv2", "stem.0"])
def test_the_pair_starts_inside_a_residual_block(layers: str, fold: bool) -> None:
    """Fused, the shared shortcut goes into the convolution as it is; unfolded, it is duplicated before the sum."""
    graph = check(calibrated("residual"), network_input(pictures(2, 32)), Pruning(layers=layers), fold=fold)
    # The one convolution that is not pruned and adds a paired shortcut gets its own source duplicated.
    assert calls(graph).count("duplicate") == (layers != "stem.0" if not fold else layers == "blocks.2.downsample.0")


def test_concat_of_shared_and_paired() -> None:
    graph = check(calibrated("concat"), network_input(pictures(2, 32)), Pruning(layers="narrow.*"))
    assert calls(graph).count("duplicate") == 2
    assert rows_of(graph, network_input(pictures(2, 32)))["pool"] == 2


def test_a_shared_value_is_duplicated_once() -> None:
    model = Net(lambda m, x: (m.late(x) + x.sigmoid()) * x.sigmoid() - torch.cat([x, m.late(x)], 1)[:, 2:6])
    graph = check(model, randn(2, 3, 6, 6), Pruning(layers="late"))
    assert calls(graph).count("duplicate") == 3  # two sigmoids and x


@pytest.mark.parametrize("fold", [True, False])
def test_sparsity_zero_gives_equal_halves(fold: bool) -> None:
    """Everything is computed once, and duplicated at the end."""
    x = network_input(pictures(2, 32))
    graph = check(calibrated("mobile"), x, Pruning(sparsity=0), fold=fold)
    dense, pruned = graph(x).chunk(2)
    assert torch.equal(dense, pruned)
    assert max(rows_of(graph, x).values()) == 2
    assert [node.target for node in graph.graph.nodes][-2:] == [duplicate, "output"]


def test_weight_reuse() -> None:
    """One module, owned once, called on a shared and on paired values."""
    graph = check(calibrated("reuse"), network_input(pictures(2, 32)), Pruning(layers=["conv"]))
    paired = [node.kwargs.get("paired", False) for node in graph.graph.nodes if node.target == "conv"]
    assert paired == [False, True, True]
    assert sum(isinstance(module, DualConv2d) for module in graph.modules()) == 2


def squeeze_excite(m: Net, x: Tensor) -> Tensor:
    n, c, _, _ = x.size()
    return x * m.linear(x.mean((2, 3))).sigmoid().view(n, c, 1, 1).expand_as(x)


def windows(m: Net, x: Tensor) -> Tensor:
    """Window attention: windows join the batch, [N * windows, ...], and leave it again."""
    n, c, h, w = x.shape
    parts = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
    parts = m.linear(parts) + parts.mean(1, keepdim=True)
    parts = m.linear(parts.flatten(0, 1)).view(-1, 4, c)
    return parts.view(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def heads_first(m: Net, x: Tensor) -> Tensor:
    """Queries, keys and values in one tensor, [3, N, heads, tokens, channels], as vision transformers have them."""
    n, c, h, w = x.shape
    q, k, v = torch.stack([m.linear(x.flatten(2).mT)] * 3, 2).reshape(n, h * w, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c).mT.reshape(x.shape)


ACCEPTED: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "size of a shared value": lambda m, x: m.late(x).view(x.size(0), 2, -1).unsqueeze(1),
    "shape of a shared value": lambda m, x: m.late(x).reshape(x.shape) + m.late(x).view(x.size()),
    "size of a paired value": lambda m, x: x.view(m.late(x).shape[0], 2, -1).unsqueeze(1),
    "multiple of a size": lambda m, x: m.late(x).view(x.size(0) * 2, -1).view(x.size(0), 4, -1).unsqueeze(-1),
    "expanded parameter": lambda m, x: m.late(x) + m.gain.unsqueeze(0).expand(x.shape[0], -1, 4, 4),
    "ones of a size": lambda m, x: torch.cat(
        [m.late(x), x.new_ones(x.size(0), 1, 4, 4), x.new_ones(1, 1, 1, 1) * x], 1
    ),
    "layer scale": lambda m, x: x + m.gain * m.late(x),
    "squeeze and excite": squeeze_excite,
    "tokens": tokens,
    "windows": windows,
    "rank 3": lambda m, x: m.linear(x.flatten(2).mT).mT.unsqueeze(-1),
    "channel shuffle": lambda m, x: m.late(x).view(x.shape[0], 2, 2, 4, 4).transpose(1, 2).flatten(1, 2),
    "flip, roll and softmax of channels": lambda m, x: x.flip(1).roll(1, 1).softmax(1) + x.sort(1)[0] + x.cumsum(2),
    "chunk": lambda m, x: torch.cat([m.late(x).chunk(2, 1)[0], x.chunk(2, dim=1)[1]], 1),
    "extremes": lambda m, x: x.amax(1, keepdim=True) + x.max(dim=1, keepdim=True)[0] + m.late(x),
    "interpolation": lambda m, x: F.interpolate(m.late(x), scale_factor=2) + F.pad(x, (2, 2, 2, 2)),
    "rows second": lambda m, x: m.linear(x.flatten(2).permute(2, 0, 1)).permute(1, 2, 0).unsqueeze(-1),
    "heads first": heads_first,
    "size with the rows second": lambda m, x: m.late(x).movedim(0, 1).reshape(x.movedim(0, 1).shape).movedim(1, 0),
    "normalisation": lambda m, x: nn.functional.normalize(m.late(x)) + F.layer_norm(x, x.shape[1:]),
}


@pytest.mark.parametrize("layers", ["*", "conv", "late"])
@pytest.mark.parametrize("form", ACCEPTED)
def test_operations_on_the_pair(form: str, layers: str) -> None:
    """Everything pruned; the first layer only, so that all is paired; a later one, so that both kinds meet."""
    linear = form in ("squeeze and excite", "tokens", "windows", "rank 3", "rows second", "heads first")
    late = "linear" if linear else "late"
    check(Net(ACCEPTED[form]), randn(3, 3, 6, 6), Pruning(layers=[late if layers == "late" else layers]))


class Fixed(nn.Module):
    """Written for one image, as exporters write networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.late, self.linear = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 8)
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.late(x).view(1, 4, -1) + torch.reshape(x, (1, -1, 16)) + x.reshape([1, 4, 16])  # rows 4, columns 16
        return self.linear(x.mean(-1).expand(1, 4)).reshape(1, 8)


@pytest.mark.parametrize("layers", ["conv", "late", "linear"])
def test_a_constant_batch_is_freed(layers: str) -> None:
    model, x, pruning = Fixed(), randn(3, 3, 6, 6), Pruning(layers=[layers])
    graph = dualize(model, pruning, example=x[:1])
    one = [expected_pair(model, pruning.make_masks(model), row[None]) for row in x]
    expected = torch.cat([pair[half : half + 1] for half in (0, 1) for pair in one])
    torch.testing.assert_close(graph(x).double(), expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def graph_module() -> nn.Module:
    """As other tools make them: with a method as a function, which torch.fx cannot trace again."""
    layers, graph = Net(lambda m, x: x), fx.Graph()
    x = graph.call_module("late", (graph.call_module("conv", (graph.placeholder("x"),)),))
    x = graph.call_function(torch.Tensor.expand, (x, (-1, 4, -1, -1)))
    graph.output(graph.call_method("mean", (x, (2, 3))))
    return nn.Sequential(fx.GraphModule(layers, graph)).eval()


@pytest.mark.parametrize("graph", [False, True])
def test_an_export_is_silent(graph: bool, capfd: pytest.CaptureFixture[str]) -> None:
    # torch.fx cannot trace the comparison.
    model = graph_module() if graph else Net(lambda m, x: m.late(x) if x.shape[1] == 4 else x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dualize(model, example=randn(1, 3, 6, 6))
    assert capfd.readouterr() == ("", "")


class InPlace(nn.Module):
    """A pre-activation block in which relu, in place, also changes the shortcut; and a batch changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.late = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1)
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        x = self.conv(x)
        before = x.mean((2, 3), keepdim=True)
        shortcut = x
        x = self.late(self.relu(x))
        shortcut += 1
        x += shortcut - before
        return F.elu(x, inplace=True).flatten(1)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("layers", ["conv", "late"])
def test_operations_in_place(layers: str, fold: bool) -> None:
    x = randn(2, 3, 6, 6)
    before = x.clone()
    check(InPlace(), x, Pruning(layers=[layers]), fold=fold)
    assert torch.equal(x, before)


class Functional(nn.Module):
    """F.conv2d, F.conv1d and F.linear on parameters of their own or of modules; one weight with two strides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.line = nn.Conv2d(3, 4, 3), nn.Conv1d(4, 4, 3)
        self.weight, self.bias = nn.Parameter(torch.empty(4, 2, 3, 3)), nn.Parameter(torch.empty(4))
        self.linear = nn.Linear(4, 6)
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.conv2d(x, self.conv.weight, stride=2) + F.conv2d(input=x, weight=self.conv.weight, stride=(2, 2))
        x = F.conv2d(x, self.weight, self.bias, 1, padding="same", groups=2) + F.conv2d(
            x, self.weight, None, 1, 1, 1, 2
        )
        x = F.conv1d(x.flatten(2), self.line.weight, self.line.bias, padding=1)
        return F.linear(x.mean(-1), self.linear.weight, bias=self.linear.bias)


def test_functional_forms() -> None:
    graph = check(Functional(), randn(2, 3, 9, 9))
    # One weight under two biases is two layers; conv's two calls are one.
    assert sum(isinstance(module, DualConv2d) for module in graph.modules()) == 4
    assert not {"conv1d", "conv2d", "linear"} & set(calls(graph))


def test_a_layer_by_itself() -> None:
    check(seeded(nn.Linear(5, 4)), randn(3, 5))


def test_audio() -> None:
    model = nn.Sequential(
        *(nn.Conv1d(2, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU()),
        *(nn.Conv1d(8, 8, 3, groups=8), nn.Conv1d(8, 6, 1), nn.PReLU(6), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
    )
    check(seeded(model), randn(3, 2, 40))


@pytest.mark.parametrize(
    "collect",
    [
        lambda x, e: (e, x.mean((2, 3))),
        lambda x, e: [x, [e.argmax(1, keepdim=True), e], e + 1],
        lambda x, e: {"map": x, "scores": (e.norm(dim=1), e), "other": e * 2},
    ],
)
def test_the_first_2d_floating_output_is_the_embedding(collect: Callable[[Tensor, Tensor], object]) -> None:
    model, x = Outputs(collect), randn(2, 3, 6, 6)
    expected = expected_pair(Outputs(lambda x, e: e), Pruning().make_masks(model), x)
    torch.testing.assert_close(dualize(model, example=x)(x).double(), expected, rtol=0, atol=1e-5)
