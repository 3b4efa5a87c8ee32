"""BufferedGraph: a graph's results in kept buffers give the bits of the plain graph, whatever reads them and when."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from prefiqs_ext import Pruning
from prefiqs_ext.dual import BufferedGraph, dualize
from prefiqs_ext.dual.runtime import heuristics, tiling
from prefiqs_ext.dual.shapes import observe_shapes
from tests.duals import rescale
from tests.networks import calibrated, pictures


class Crossing(nn.Module):
    """Values that are read late, through views, twice, and beside one another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, padding=1)
        self.second = nn.Conv2d(24, 24, 3, padding=1)
        self.third = nn.Conv2d(24, 24, 1)
        self.fourth = nn.Conv2d(12, 8, 3, stride=2)
        self.linear = nn.Linear(8 + 24, 16)

    def forward(self, x: Tensor) -> Tensor:
        early = self.first(x)
        view = early[:, :12]
        late = self.third(torch.relu(self.second(early)) + early)
        late = self.second(late) * torch.sigmoid(self.second(early))
        narrow = self.fourth(view)  # reads what `first` wrote, through a view, after three others have written
        return self.linear(torch.cat([narrow.mean((2, 3)), late.amax((2, 3))], dim=1))


class Ending(nn.Module):
    """Its last convolution's result is the embedding itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Conv2d(8, 16, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x))).flatten(1)


NETWORKS = {"crossing": (Crossing, (3, 17, 15)), "ending": (Ending, (3, 15, 15))}


def dual(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    batch = torch.randn(5, *shape)
    return dualize(build().eval(), Pruning(), example=batch), batch


@pytest.mark.parametrize("rescaled", [False, True], ids=["", "rescaled"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_bits_are_those_of_the_plain_graph(name: str, rescaled: bool) -> None:
    graph, batch = dual(name)
    if rescaled:
        rescale(graph)
    buffered = BufferedGraph(graph, batch, chunk=5)
    assert len(buffered._parts[0].places) > 0
    with torch.inference_mode():
        for count in (2, 5, 1, 5):
            kept = buffered(batch[:count])
            expected = graph(batch[:count])
            buffered(-batch[:count])  # must not reach into what was returned before
            assert torch.equal(kept, expected)


@pytest.mark.parametrize("images", [1, 2])
def test_large_maps_go_a_few_images_at_a_time(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pictures(5, (112, 112), seed=0).float()
    graph = dualize(calibrated("iresnet18"), Pruning(), example=batch)
    values = observe_shapes(graph, batch[:1])
    widest = 4 * (2 * 64 * 112 * 112) * 2  # bytes that the widest layer, 64 channels of 112 x 112, reads and writes
    monkeypatch.setattr(heuristics, "CACHE_BYTES", widest * images)
    cut = tiling.find_cut(graph, values, 5)
    assert cut is not None
    buffered = BufferedGraph(graph, batch, chunk=5)
    assert buffered._early_images == images
    assert [place.shape for place in buffered._joined] == [values[cut.node]]
    early, late = buffered._parts
    assert early.places
    assert late.places
    with torch.inference_mode():
        for count in (5, 1, 3, 5):
            kept = buffered(batch[:count])
            expected = graph(batch[:count])
            buffered(batch[-count:])
            assert torch.equal(kept, expected)


def test_sface_is_cut_where_its_maps_are_small(sface: nn.Module) -> None:
    images = pictures(1, (112, 112), seed=0)
    graph = dualize(sface, Pruning(), example=images)
    cut = tiling.find_cut(graph, observe_shapes(graph, images), 16)
    assert cut is not None
    assert cut.shape == ((2, 256, 14, 14), torch.float32)
    assert tiling.find_cut(graph, observe_shapes(graph, images), 1) is None  # nothing to divide


def test_an_image_of_several_rows_is_not_cut() -> None:
    images = pictures(1, (112, 112), seed=0).float()
    graph = dualize(calibrated("iresnet18"), Pruning(), example=images)
    shapes = observe_shapes(graph, images)
    assert tiling.find_cut(graph, shapes, 16) is not None
    frames = {node: shape._replace(size=(3 * shape.size[0], *shape.size[1:])) for node, shape in shapes.items()}
    assert tiling.find_cut(graph, frames, 16) is None


def test_values_that_are_read_across_a_place_forbid_to_cut_there() -> None:
    graph, _ = dual("crossing")
    names = [node.name for node in tiling._find_crossings(graph, list(graph.graph.nodes))]
    assert names == ["model_first"]


def test_an_iresnet_needs_few_buffers() -> None:
    images = pictures(3, (112, 112), seed=0).float()
    graph = dualize(calibrated("iresnet18"), Pruning(), example=images)
    buffered = BufferedGraph(graph, images, chunk=1)
    assert len(buffered._parts[0].places) > 15
    assert len({place.buffer for place in buffered._parts[0].places}) <= 4
    with torch.inference_mode():
        assert torch.equal(buffered(images), graph(images))


def test_another_size_runs_on_the_plain_graph() -> None:
    graph, batch = dual("crossing")
    wider = torch.randn(2, 3, 19, 21)
    with torch.inference_mode():
        assert torch.equal(BufferedGraph(graph, batch, chunk=5)(wider), graph(wider))


def test_threads_do_not_share_buffers() -> None:
    graph, batch = dual("crossing")
    buffered = BufferedGraph(graph, batch, chunk=5)

    def run(sign: int) -> Tensor:
        with torch.inference_mode():
            return buffered(sign * batch)

    signs = [1, -1] * 20
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, signs))
    with torch.inference_mode():
        expected = {sign: graph(sign * batch) for sign in (1, -1)}
    assert all(torch.equal(result, expected[sign]) for sign, result in zip(signs, results, strict=True))


def test_a_pickle_carries_no_buffers() -> None:
    graph, batch = dual("crossing")
    buffered = BufferedGraph(graph, batch, chunk=5)
    size = len(pickle.dumps(buffered))
    with torch.inference_mode():
        expected = buffered(batch)
        assert len(pickle.dumps(buffered)) == size
        assert torch.equal(pickle.loads(pickle.dumps(buffered))(batch), expected)
