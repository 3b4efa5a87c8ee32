"""Norms of layers' outputs beside the pair: against plain modules, in kept buffers, exported and in half precision."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prefiqs_ext import Pruning
from prefiqs_ext.dual import BufferedGraph, check_half, convert_to_half, dualize, list_layers
from prefiqs_ext.dual.runtime import heuristics, tiling
from prefiqs_ext.dual.shapes import observe_shapes
from prefiqs_ext.exceptions import InputError
from tests.duals import ALL, randn, seeded
from tests.half_emulation import HALF, Emulation

# Float32 sums of a few hundred products, against float64: 1e-6 of the largest. A norm of the pruned branch, or
# of a value before its activation, is off by 1e-2 and more.
TOLERANCE = 1e-5


class Net(nn.Module):
    """A shared layer, residual, activations, a layer called twice, windows (several rows an image), and a 1-d one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.line = nn.Conv1d(6, 5, 3)
        self.window = nn.Linear(6, 6)
        self.head = nn.Linear(6 + 5, 9)
        self.token = nn.Parameter(torch.empty(1, 9))
        self.other = nn.Linear(9, 9)
        self.unused = nn.Linear(2, 2)
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.twice(x) + x)
        y = self.twice(y)
        windows = y.permute(0, 2, 3, 1).reshape(-1, 9, 6)  # 6 x 9 pixels: 6 rows for an image
        windows = self.window(windows).reshape(y.shape[0], 54, 6)
        line = self.line(y.flatten(2))
        return self.head(torch.cat([windows.mean(1), line.mean(2)], dim=1)) + self.other(self.token)


# "stem" is not pruned, so its output is shared.
PRUNING = {name: mask for name, mask in ALL.make_masks(Net()).items() if name in ("twice", "line", "window", "head")}
NAMES = ["head", "stem", "window", "twice", "line"]  # not in the graph's order


def expected_norms(net: Net, x: Tensor) -> Tensor:
    """The norms, with what is folded into each layer written out. Nothing is folded into one that is called twice."""
    net, x = net.double(), x.double()
    stem = F.relu(net.norm(net.stem(x)))
    twice = net.twice(stem)
    again = net.twice(F.relu(twice + stem))
    window, line = net.window(again.permute(0, 2, 3, 1)), net.line(again.flatten(2))
    head = net.head(torch.cat([window.mean((1, 2)), line.mean(2)], dim=1)) + net.other(net.token)
    values = {"stem": stem, "twice": twice, "window": window, "line": line, "head": head}
    return torch.stack([values[name].flatten(1).norm(dim=1) for name in NAMES], dim=1)


def images(count: int = 5) -> Tensor:
    return randn(count, 3, 13, 19)


def convert(**options: object) -> fx.GraphModule:
    return dualize(Net(), PRUNING, example=images(), norms=NAMES, **options)  # type: ignore[arg-type]


def test_norms_are_those_of_the_model() -> None:
    x = images()
    graph = convert()
    for rows in (x, x[-1:]):
        pair, norms = graph(rows)
        assert norms.dtype == torch.float32
        torch.testing.assert_close(norms.double(), expected_norms(Net(), rows), rtol=TOLERANCE, atol=0.0)
        assert torch.equal(pair, dualize(Net(), PRUNING, example=x)(rows))
    assert graph(x[:0])[1].shape == (0, 5)


def test_without_folding_a_layer_is_taken_by_itself() -> None:
    x, net = images(), Net()
    norms = convert(fold=False)(x)[1]
    stem = net.double().stem(x.double()).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms[:, NAMES.index("stem")].double(), stem, rtol=TOLERANCE, atol=0.0)


def test_layers_are_listed_in_order() -> None:
    assert list_layers(dualize(Net(), PRUNING, example=images())) == ("stem", "twice", "window", "line", "head")


@pytest.mark.parametrize("name", ["norm", "unused", "other", "nothing"])
def test_a_layer_that_the_graph_lacks_is_refused(name: str) -> None:
    message = f"^expected norms of layers that the network calls, got '{name}'; there are 'stem', 'twice', 'window',"
    with pytest.raises(InputError, match=message):
        dualize(Net(), PRUNING, example=images(), norms=["stem", name])


def test_kept_buffers_give_the_same_bits() -> None:
    graph, x = convert(), images()
    buffered = BufferedGraph(graph, x, chunk=5)
    plain = BufferedGraph(dualize(Net(), PRUNING, example=x), x, chunk=5)
    assert buffered._parts[0].places == plain._parts[0].places  # norms keep no buffer busy
    with torch.inference_mode():
        for count in (2, 5, 1):
            kept = buffered(x[:count])
            buffered(-x[:count])  # must not reach into what was returned before
            assert all(map(torch.equal, kept, graph(x[:count])))
        assert all(map(torch.equal, pickle.loads(pickle.dumps(buffered))(x), graph(x)))


def chain() -> nn.Module:
    """Convolutions on ever smaller maps, each of which may end the part that runs a few images at a time."""
    layers: list[nn.Module] = []
    for inside, out in itertools.pairwise((3, 16, 16, 24, 32)):
        layers += [nn.Conv2d(inside, out, 3, stride=2), nn.BatchNorm2d(out), nn.PReLU(out)]
    return seeded(nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 2 * 2, 16)), seed=1)


def test_norms_come_out_of_the_part_that_runs_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = randn(5, 3, 61, 57)
    model = chain()
    plain = dualize(model, Pruning(), example=batch)
    layers = list(list_layers(plain))
    graph = dualize(model, Pruning(), example=batch, norms=layers)
    monkeypatch.setattr(heuristics, "CACHE_BYTES", 160_000)  # what the first layer reads and writes for one image
    monkeypatch.setattr(heuristics, "HIDING_OPERATIONS", 1000)  # every layer waits for what it reads
    cuts = [tiling.find_cut(each, observe_shapes(each, batch[:1]), 5) for each in (plain, graph)]
    assert cuts[0] is not None
    assert cuts[1] is not None
    assert cuts[0].node.target == cuts[1].node.target == layers[1]
    buffered = BufferedGraph(graph, batch, chunk=5)
    expected = BufferedGraph(plain, batch, chunk=5)
    assert [part.places for part in buffered._parts] == [part.places for part in expected._parts]
    with torch.inference_mode():
        for count in (5, 1, 3):
            kept = buffered(batch[:count])
            buffered(batch[-count:])
            assert all(map(torch.equal, kept, graph(batch[:count])))


@pytest.mark.parametrize("dtype", HALF)
def test_in_half_precision_values_are_read_as_they_are(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x, emulation = convert(), images(), Emulation()
    expected = graph(x)
    convert_to_half(graph, torch.device("cpu"), dtype)
    emulation.install(monkeypatch)
    check_half(graph, x, expected, torch.device("cpu"), dtype)
    pair, norms = graph(x)
    assert pair.dtype == norms.dtype == torch.float32
    # In the graph's order: the windows are cut in float32, and the last layer's result is float32.
    assert emulation.normed[:5] == [dtype, dtype, torch.float32, dtype, torch.float32]
    with pytest.raises(RuntimeError, match="the vector of layers' norms in"):
        check_half(graph, x, (expected[0], 2 * expected[1]), torch.device("cpu"), dtype)


def test_export_with_a_dynamic_batch() -> None:
    graph, x = convert(), images()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(graph, (x,), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        for rows in (x, x[:1]):
            assert all(map(torch.equal, exported(rows), graph(rows)))


def test_compile() -> None:
    graph, x = convert(), images()
    compiled = torch.compile(graph, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert all(map(torch.equal, compiled(x), graph(x)))
