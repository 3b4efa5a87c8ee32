"""Converted graphs in half precision, with the operators of CUDA emulated on the CPU: what is rounded, and what is not.

`test_cuda_scorer.py` asks the same of a GPU.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, fx, nn

from prefiqs_ext import Preset, Pruning, ScoreOutput, Scorer, ops, reference
from prefiqs_ext.dual import CudaGraphs, compare_branches, convert_to_half, dualize
from tests import duals, networks
from tests.half_emulation import HALF, Emulation
from tests.oracle import expected_pair

# Of the largest value, in units of the type's rounding: some ten to fifty roundings, which add up like their square
# root (measured: 2 to 4). A wrong dtype that is only rounding would pass, so dtypes are looked at as well.
ROUNDINGS = 16
# What the project promises of D in float16 against float64.
D_TOLERANCE, SPEARMAN = 3e-3, 0.999
CPU = torch.device("cpu")


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch) -> Emulation:
    emulated = Emulation()
    emulated.install(monkeypatch)
    return emulated


def half_graph(model: nn.Module, example: Tensor, dtype: torch.dtype, *, fold: bool = True) -> fx.GraphModule:
    graph = dualize(model, Pruning(), example=example, fold=fold)
    convert_to_half(graph, CPU, dtype)
    return graph


def check(
    model: nn.Module, x: Tensor, emulation: Emulation, dtype: torch.dtype = torch.float16, *, fold: bool = True
) -> fx.GraphModule:
    """Close to two float64 models; all layers in half precision, only those at the end with float32 results."""
    graph = half_graph(model, x, dtype, fold=fold)
    emulation.dtypes.clear()
    with torch.inference_mode():
        pair = graph(x)
    expected = expected_pair(model, Pruning().make_masks(model), x)
    assert pair.dtype == torch.float32
    assert float((pair - expected).abs().max() / expected.abs().max()) < ROUNDINGS * torch.finfo(dtype).eps
    assert set(emulation.dtypes[:-1]) <= {dtype}
    assert emulation.dtypes[-1] == torch.float32
    return graph


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", networks.ZOO)
def test_networks_of_every_kind(name: str, fold: bool, dtype: torch.dtype, emulation: Emulation) -> None:
    images = networks.network_input(networks.pictures(3, networks.ZOO_SIZE))
    check(networks.calibrated(name), images, emulation, dtype, fold=fold)


class Mixed(nn.Module):
    """What a forward may say of types: casts, constants, one module before and after the last layer, a late skip."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.late = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.constant = nn.Parameter(torch.empty(8, 1, 1))
        duals.seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.stem(x))
        if self.kind == "casts":
            x = torch.softmax(x.float().to(torch.float32), dim=1, dtype=torch.float32) * self.constant
        elif self.kind == "modules":
            x = self.norm(x)
        elif self.kind == "factories":
            x = x + torch.ones(8, 1, 1, device=torch.device("cpu"), dtype=torch.float32) * x.new_ones(1)
        skip = x
        x = self.late(x)
        if self.kind == "skip":
            x = torch.cat([x, skip, torch.sin(self.constant).expand(x.shape[0], -1, x.shape[2], x.shape[3])], dim=1)
        elif self.kind == "residual":
            x = x + skip
        return F.adaptive_avg_pool2d(x, 2).flatten(1) * 3


@pytest.mark.parametrize("kind", ["casts", "modules", "factories", "skip", "residual"])
def test_types_meet(kind: str, emulation: Emulation) -> None:
    check(Mixed(kind), duals.randn(3, 3, 15, 13), emulation)


def test_attention_written_out(emulation: Emulation) -> None:
    check(duals.Net(duals.tokens), duals.randn(3, 3, 8, 9), emulation)


def test_a_module_used_before_and_after_the_last_layer_stays_one(emulation: Emulation) -> None:
    shared = nn.GroupNorm(2, 8)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), shared, nn.AvgPool2d(2), nn.Conv2d(8, 8, 1), nn.AvgPool2d(2), shared, nn.Flatten()
    )
    duals.seeded(model)
    x = duals.randn(2, 3, 6, 6)
    graph = half_graph(model, x, torch.float16)
    pair, expected = graph(x), expected_pair(model, Pruning().make_masks(model), x)
    assert set(emulation.dtypes) == {torch.float16}
    assert float((pair - expected).abs().max() / expected.abs().max()) < ROUNDINGS * torch.finfo(torch.float16).eps


def test_levels_go_in_as_they_are(emulation: Emulation) -> None:
    preset = Preset.resolve("arcface")
    model = nn.Sequential(preset.normalize(), networks.calibrated("mobile")).eval()
    images = networks.pictures(3, networks.ZOO_SIZE)
    graph = check(model, images, emulation)
    taken: list[torch.dtype] = []
    first = graph.get_submodule(next(str(node.target) for node in graph.graph.nodes if node.op == "call_module"))
    first.register_forward_pre_hook(lambda _, given: taken.append(given[0].dtype))
    with torch.inference_mode():
        graph(images)
        graph(images.float())
    assert taken == [torch.uint8, torch.float16]


def test_weights_in_half_the_rest_as_it_was(emulation: Emulation) -> None:
    graph = check(networks.calibrated("residual"), networks.network_input(networks.pictures(2, 32)), emulation)
    kinds = {
        name.rpartition(".")[2]: buffer.dtype for name, buffer in graph.named_buffers() if buffer.is_floating_point()
    }
    assert kinds == {
        "weight": torch.float16,
        "bias": torch.float32,
        "tap_shift": torch.float32,
        "slope": torch.float32,
    }
    for name, buffer in graph.named_buffers():
        if name.endswith("weight") and buffer.dim() == 4:
            assert buffer.is_contiguous(memory_format=torch.channels_last)


def test_scales_and_biases_of_two_rows_stay_float32(emulation: Emulation) -> None:
    images = networks.network_input(networks.pictures(2, 32))
    graph = dualize(networks.calibrated("residual"), Pruning(), example=images)
    duals.rescale(graph)
    expected = graph(images)
    convert_to_half(graph, CPU, torch.float16)
    pair = graph(images)
    terms = [b for name, b in graph.named_buffers() if name.endswith(("pruned_scale", "bias"))]
    assert {t.dtype for t in terms} == {torch.float32}
    assert any(t.dim() == 2 for t in terms)
    assert float((pair - expected).abs().max() / expected.abs().max()) < ROUNDINGS * torch.finfo(torch.float16).eps


# --- the Scorer ------------------------------------------------------------------------------------------------------


class Eager:
    """In place of a recording: the function itself."""

    def __init__(self, function: Any, *_: Any) -> None:
        self.replay = function


@pytest.fixture
def in_half(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scorer]:
    """Makes Scorers that compute as on CUDA, but on the CPU."""
    monkeypatch.setattr("prefiqs_ext.dual.runtime.cuda_graphs.CudaRecording", Eager)

    def record(graph: fx.GraphModule, *_: Any) -> CudaGraphs:
        return CudaGraphs(partial(compare_branches, graph))

    monkeypatch.setattr("prefiqs_ext.scorer.make_comparison", record)

    def make(*args: Any, dtype: torch.dtype = torch.float16, **kwargs: Any) -> Scorer:
        monkeypatch.setattr("prefiqs_ext.scorer.resolve_device", lambda *_: (CPU, dtype))
        return Scorer(*args, **kwargs)

    return make


def half_bytes(model: nn.Module) -> int:
    return 2 * sum(t.numel() for t in (*model.parameters(), *model.buffers()))


@pytest.mark.slow
def test_sface_on_real_faces(
    in_half: Callable[..., Scorer], sface: nn.Module, crops: Tensor, sface_reference: ScoreOutput
) -> None:
    scorer = in_half(sface, preset="sface")
    expected, got = sface_reference.distance[:20], scorer(crops[:20])
    assert float((got.distance - expected).abs().max()) < D_TOLERANCE
    assert spearmanr(got.distance, expected).statistic >= SPEARMAN
    # Weights of one float16 model, one bit more for each that can be pruned (1/16), biases and slopes twice as wide.
    assert scorer.resident_bytes <= 1.08 * half_bytes(sface)


@pytest.mark.slow
def test_an_iresnet(in_half: Callable[..., Scorer]) -> None:
    network, batch = networks.calibrated("iresnet50"), networks.pictures(6)
    scorer = in_half(network, preset="arcface")
    expected, got = reference.score(network, batch, preset="arcface"), scorer(batch)
    assert float((got.distance - expected.distance).abs().max()) < D_TOLERANCE
    assert scorer.resident_bytes <= 1.08 * half_bytes(network)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.PReLU(8), nn.Conv2d(8, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()


TINY = Preset("tiny", (16, 20), "bgr", (127.5,) * 3, (127.5,) * 3)


def images(count: int = 7) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_however_a_batch_comes(in_half: Callable[..., Scorer]) -> None:
    """Close, as the emulation's sums depend on the batch; the kernels' do not, which test_cuda_scorer.py looks at."""
    scorer = in_half(small(), preset=TINY)
    everything = scorer(images())
    assert torch.equal(scorer(images()).distance, everything.distance)  # recorded now
    channels_last = images().contiguous(memory_format=torch.channels_last)
    copied = copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))
    for got in (scorer(channels_last), scorer(images() / 255), *(each(images()) for each in copied)):
        torch.testing.assert_close(got.distance, everything.distance, rtol=0, atol=D_TOLERANCE)
    torch.testing.assert_close(scorer(images()[2:5]).distance, everything.distance[2:5], rtol=0, atol=D_TOLERANCE)


@pytest.mark.parametrize("dtype", HALF)
def test_overflow_is_found_where_it_can_be(in_half: Callable[..., Scorer], dtype: torch.dtype) -> None:
    network = small()
    with torch.no_grad():
        network[0].weight *= 1e6  # its results are beyond float16, within float32 and bfloat16
        network[2].weight *= 1e-6
    if dtype == torch.bfloat16:
        in_half(network, preset=TINY, dtype=dtype)
        return
    with pytest.raises(ValueError, match=r"NaN or infinity in torch.float16 on cpu; try dtype=torch.bfloat16"):
        in_half(network, preset=TINY, dtype=dtype)


def test_overflow_of_an_image_names_the_remedy(in_half: Callable[..., Scorer]) -> None:
    scorer = in_half(small(), example=torch.randn(1, 3, 16, 20))
    with pytest.raises(ValueError, match=r"for row 1; .* with dtype=torch.bfloat16 if they overflow, or on_bad='nan'"):
        scorer(torch.stack([torch.ones(3, 16, 20), torch.full((3, 16, 20), 1e30)]))


def test_a_wrong_kernel_is_found(
    in_half: Callable[..., Scorer],
    emulation: Emulation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shifted(src: Tensor, weight: Tensor, *more: Any, **named: Any) -> Tensor:
        return emulation.dual_conv2d(src, weight, *more, **named).roll(int(weight.dtype == torch.float16), 1)

    monkeypatch.setattr("prefiqs_ext.ops.dual_conv2d", shifted)
    with pytest.raises(RuntimeError, match=r"differs from the CPU's by .* of its size, expected at most 0.031"):
        in_half(networks.calibrated("mobile"), example=torch.rand(1, 3, networks.ZOO_SIZE, networks.ZOO_SIZE))


def test_too_little_memory_names_a_chunk(in_half: Callable[..., Scorer]) -> None:
    scorer = in_half(small(), preset=TINY, chunk=6)

    def starved(rows: Tensor) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nAnd much more.")

    scorer._run = starved
    with pytest.raises(MemoryError, match=r"cpu has too little memory for 6 images together: try chunk=3$"):
        scorer(images())
    with pytest.raises(MemoryError, match=r"cpu has too little memory for one image: free some of it, or use another"):
        scorer(images()[:1])


@pytest.mark.parametrize(
    "starve",
    [
        lambda rows: torch.empty(2**60, dtype=torch.uint8),
        lambda rows: ops.dual_linear(torch.zeros(1, 1).expand(2**24, 1), torch.zeros(1, 1).expand(2**24, 1)),
    ],
    ids=["torch", "operator"],
)
def test_too_little_memory_on_the_cpu_names_a_chunk(starve: Callable[[Tensor], Any]) -> None:
    scorer = Scorer(small(), preset=TINY, chunk=4)
    scorer._run = starve
    with pytest.raises(MemoryError, match=r"cpu has too little memory for 4 images together: try chunk=2$"):
        scorer(images())


def test_a_scorer_stays_where_it_was_made(in_half: Callable[..., Scorer]) -> None:
    for scorer in (Scorer(small(), preset=TINY), in_half(small(), preset=TINY)):
        expected = scorer(images())
        for move in (lambda s: s.double(), lambda s: s.to("meta"), lambda s: nn.Sequential(s).to(torch.float64)):
            with pytest.raises(ValueError, match=r"stays where it was made, on cpu in .*: construct another"):
                move(scorer)
        assert scorer.to("cpu", scorer.dtype).eval() is scorer
        assert torch.equal(scorer(images()).distance, expected.distance)
