"""The Scorer in bfloat16 on the CPU, by the real operators: its numbers, its promises, and what it refuses."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from prefiqs_ext import Preset, Pruning, ScoreOutput, Scorer, Settings, reference
from prefiqs_ext.dual import check_half, compare_branches, convert_to_half, dualize
from prefiqs_ext.models import iresnet
from tests import networks
from tests.calibrations import make_calibration
from tests.half_emulation import HALF
from tests.test_scorer import assert_same_bits, check_bits

BFLOAT16, CPU = torch.bfloat16, torch.device("cpu")
SMALL = Preset("small", (networks.ZOO_SIZE, networks.ZOO_SIZE), "rgb", (127.5,) * 3, (127.5,) * 3)
# Of a norm, relative, and of an embedding as an angle: some ten to fifty roundings of up to 2**-8, which add up like
# their square root (measured: angles up to 0.03). A layer that is left out, or a wrong branch, is off by 0.1 and more.
ROUNDING = 0.04


def images(count: int = 7, *, seed: int = 4) -> Tensor:
    return networks.pictures(count, networks.ZOO_SIZE, seed=seed)


def plain_scores(scorer: Scorer, batch: Tensor) -> tuple[Tensor, ...]:
    """D, embeddings and norms by the graph as it is, whose results have no places."""
    with torch.inference_mode():
        return compare_branches(scorer._dual, batch)


@pytest.mark.parametrize("name", networks.ZOO)
def test_networks_of_every_kind(name: str) -> None:
    """Near two float64 models; the same bits in kept buffers and without, and for levels of any type."""
    model = networks.calibrated(name)
    scorer, batch = Scorer(model, preset=SMALL, dtype=BFLOAT16), images()
    got, expected = scorer(batch), reference.score(model, batch, preset=SMALL)
    assert got.embedding.dtype == got.distance.dtype == torch.float32
    for ours, theirs in ((got.embedding, expected.embedding), (got.pruned_embedding, expected.pruned_embedding)):
        assert float((ours.double() * theirs).sum(1).min()) > 1 - ROUNDING**2 / 2
    torch.testing.assert_close(got.embedding_norm.double(), expected.embedding_norm, rtol=ROUNDING, atol=0)
    assert_same_bits(scorer(batch / 255), got)
    distance, embedding, pruned_embedding, norm, layer_norms = plain_scores(scorer, batch)
    assert torch.equal(distance, got.distance)
    assert torch.equal(embedding, got.embedding)
    assert torch.equal(pruned_embedding, got.pruned_embedding)
    assert torch.equal(norm, got.embedding_norm)
    assert layer_norms.shape == (len(batch), 0)


@pytest.mark.parametrize("isa", ["amx-emulated", "avx512bf16-emulated"])
def test_kernels_that_multiply_bfloat16(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole network by other kernels, which add in another order and round a source in float32: near the same D."""
    scorer, batch = Scorer(networks.calibrated("residual"), preset=SMALL, dtype=BFLOAT16), images(2)
    monkeypatch.setenv("PREFIQS_CPU_ISA", "scalar")
    expected = scorer(batch)
    monkeypatch.setenv("PREFIQS_CPU_ISA", isa)
    got = scorer(batch)
    assert not torch.equal(got.embedding, expected.embedding)
    assert float((got.embedding * expected.embedding).sum(1).min()) > 1 - ROUNDING**2 / 2
    assert float((got.distance - expected.distance).abs().max()) < ROUNDING
    assert_same_bits(scorer(batch[1:2]), ScoreOutput(*(field[1:2] for field in got)))


def test_a_row_has_the_same_bits_everywhere() -> None:
    model, batch = networks.calibrated("residual"), images(9)
    scorer = Scorer(model, preset=SMALL, dtype=BFLOAT16)
    check_bits(scorer, batch)
    for chunk in (1, 2, 64):
        assert_same_bits(Scorer(model, preset=SMALL, dtype=BFLOAT16, chunk=chunk)(batch), scorer(batch))


@pytest.mark.slow
def test_sface_on_real_faces(sface: nn.Module, crops: Tensor, sface_reference: ScoreOutput) -> None:
    scorer, expected = Scorer(sface, preset="sface", dtype=BFLOAT16), sface_reference
    got = scorer(crops)
    # What the project promises of bfloat16 against float64 (measured on 500 faces: docs/usage.md).
    assert float((got.distance - expected.distance).abs().max()) <= 1e-2
    assert spearmanr(got.distance, expected.distance).statistic >= 0.999
    cosine = (got.embedding * expected.embedding).sum(1)
    assert float(cosine.mean()) >= 0.9999
    assert float(cosine.min()) >= 0.999
    # The graph is cut in two, as in float32, at another number of images.
    assert_same_bits(scorer(crops[1:2]), ScoreOutput(*(field[1:2] for field in got)))
    assert all(map(torch.equal, plain_scores(scorer, crops[:4])[:2], (got.distance[:4], got.embedding[:4])))
    # bfloat16 weights and a bit for each: 17/32 of float32; biases, slopes and tap shifts stay float32.
    assert scorer.resident_bytes <= 0.56 * float32_bytes(sface)


def test_weights_of_an_iresnet() -> None:
    model = iresnet.IResNet((1, 1, 1, 1), 512).eval()
    assert Scorer(model, preset="arcface", dtype=BFLOAT16).resident_bytes <= 0.56 * float32_bytes(model)


def float32_bytes(model: nn.Module) -> int:
    return 4 * sum(t.numel() for t in (*model.parameters(), *model.buffers()))


class Single(nn.Module):
    """One convolution, the last layer as well as the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)).amax((2, 3))


def test_the_last_layers_results_are_not_rounded() -> None:
    """Also where the last layer reads the images themselves, as levels of 8 bits or as floats."""
    preset = replace(SMALL, mean=(0.0,) * 3, std=(255.0,) * 3)
    scorer, exact = (Scorer(Single().eval(), preset=preset, dtype=dtype) for dtype in (BFLOAT16, torch.float32))
    batch = images()
    got = scorer(batch)
    assert_same_bits(scorer(batch / 255), got)
    assert not bool((got.embedding_norm == got.embedding_norm.bfloat16().float()).all())
    # 27 products of weights rounded by up to 2**-8 each, not all alike.
    torch.testing.assert_close(got.embedding_norm, exact(batch).embedding_norm, rtol=2**-9, atol=0)
    by_tensor = Scorer(Single().eval(), example=batch.float(), dtype=BFLOAT16)
    assert_same_bits(by_tensor(batch), by_tensor(batch.float()))


def test_norms_of_layers() -> None:
    model = networks.calibrated("residual")
    names = Scorer(model, preset=SMALL).list_layers()[::3]
    scorer, exact = (Scorer(model, preset=SMALL, dtype=dtype, layers=names) for dtype in (BFLOAT16, torch.float32))
    got, expected = scorer(images()), exact(images())
    assert got.layer_norms.dtype == torch.float32
    torch.testing.assert_close(got.layer_norms, expected.layer_norms, rtol=ROUNDING, atol=0)
    assert torch.equal(got.distance, Scorer(model, preset=SMALL, dtype=BFLOAT16)(images()).distance)


def test_recalibrated_pruning_is_found_in_float32() -> None:
    model, seen = networks.calibrated("residual"), images(12, seed=5)
    scorer, exact = (Scorer(model, preset=SMALL, dtype=dtype, recalibrate=seen) for dtype in (BFLOAT16, torch.float32))
    assert scorer.recalibration == exact.recalibration
    assert scorer.recalibration is not None
    got, expected = scorer(images()), exact(images())
    torch.testing.assert_close(got.distance, expected.distance, rtol=0, atol=ROUNDING)
    plain = Scorer(model, preset=SMALL, dtype=BFLOAT16)(images())
    assert float((got.distance - plain.distance).abs().max()) > ROUNDING


def test_embeddings_without_a_direction() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    preset = replace(SMALL, mean=(0.0,) * 3, std=(255.0,) * 3)
    blank = images()
    blank[[1, 4]] = 0
    with pytest.raises(ValueError, match=r"expected embeddings of finite norm above 0, got none for rows 1, 4; .* or"):
        Scorer(network, preset=preset, dtype=BFLOAT16)(blank)
    out = Scorer(network, preset=preset, dtype=BFLOAT16, on_bad="nan")(blank)
    assert out.distance.isnan().nonzero().flatten().tolist() == [1, 4]


def test_pickled() -> None:
    scorer = Scorer(networks.calibrated("residual"), preset=SMALL, dtype=BFLOAT16)
    expected = scorer(images())  # which fills the kept buffers
    file = io.BytesIO()
    torch.save(scorer, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), pickle.loads(pickle.dumps(scorer))):
        assert (other.dtype, other.resident_bytes) == (BFLOAT16, scorer.resident_bytes)
        assert_same_bits(other(images()), expected)


def test_compiled_and_exported() -> None:
    x = networks.network_input(images(4))
    scorer = Scorer(networks.calibrated("reuse"), example=x, dtype=BFLOAT16)
    compiled = torch.compile(scorer.forward, backend="aot_eager", fullgraph=True)
    program = torch.export.export(scorer, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=1)},))
    with torch.no_grad():
        assert_same_bits(ScoreOutput(*compiled(x)), scorer(x))
        for rows in (x, x[:1]):
            assert_same_bits(ScoreOutput(*program.module()(rows)), scorer(rows))


def test_settings_make_the_same_scorer_again() -> None:
    model = networks.calibrated("residual")
    scorer = Scorer(model, preset=SMALL, dtype=BFLOAT16)
    settings = scorer.settings
    assert (settings.device, settings.dtype) == ("cpu", "bfloat16")
    assert Settings._from_json(json.loads(settings.to_json())) == settings
    assert_same_bits(Scorer.from_settings(settings, model)(images()), scorer(images()))
    assert Scorer.from_settings(settings, model, dtype=torch.float32).settings.dtype == "float32"
    calibrated = settings.with_calibration(make_calibration())
    assert Scorer.from_settings(calibrated, model).settings == calibrated
    with pytest.raises(ValueError, match=r"expected to compute in bfloat16 on cpu, .* got float32 on cpu"):
        Scorer.from_settings(calibrated, model, dtype=torch.float32)


# --- a D that rounding drowns ----------------------------------------------------------------------------------------

DROWNED = (
    r"^expected a pruning whose D stands out from rounding in torch.bfloat16, got D of \S+, to which rounding adds "
    r"\S+: take dtype=torch.float32 on the CPU, dtype=torch.float16 on CUDA or a larger sparsity$"
)


@pytest.mark.parametrize("rank_by", [None, "norm"])
def test_a_distance_that_is_rounding_is_refused(rank_by: str | None) -> None:
    """Whatever ranks: D and the quality are among the results."""
    model = networks.calibrated("residual")
    small = Pruning(sparsity=0.02)
    with pytest.raises(ValueError, match=DROWNED):
        Scorer(model, small, preset=SMALL, dtype=BFLOAT16, rank_by=rank_by)  # type: ignore[arg-type]
    Scorer(model, small, preset=SMALL)


def test_what_is_refused_has_lost_its_order() -> None:
    """D of many images keeps its order where it is taken, and has lost it where it is refused."""
    model, batch = networks.calibrated("residual"), images(60)
    exact = {sparsity: Scorer(model, Pruning(sparsity=sparsity), preset=SMALL) for sparsity in (0.4, 0.02)}
    orders = {}
    for sparsity, scorer in exact.items():
        graph = dualize(nn.Sequential(SMALL.normalize(), model).eval(), Pruning(sparsity=sparsity), example=batch)
        convert_to_half(graph, CPU, BFLOAT16)
        with torch.inference_mode():
            orders[sparsity] = spearmanr(compare_branches(graph, batch)[0], scorer(batch).distance).statistic
    assert orders[0.4] > 0.995
    assert orders[0.02] < 0.95


def test_no_distance_at_all_is_taken() -> None:
    """The branches are rounded alike where they are alike: D is 0 in any type."""
    model = networks.calibrated("residual")
    out = Scorer(model, Pruning(sparsity=0.0), preset=SMALL, dtype=BFLOAT16)(images())
    assert torch.equal(out.distance, torch.zeros(7))


@pytest.mark.parametrize("dtype", HALF)
def test_the_median_of_the_images_decides(dtype: torch.dtype) -> None:
    """D is 0.02; the results given to the check are off by known vectors across it."""
    directions = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    dense, step, across = (directions[first : first + 5] for first in (0, 5, 10))
    expected = torch.cat([dense, torch.nn.functional.normalize(dense + 0.02 * step)])

    def check(*noise: float) -> None:
        rounded = torch.cat([dense, expected[5:] + 0.02 * torch.tensor(noise)[:, None] * across])
        check_half(lambda _: rounded, torch.zeros(5), expected, CPU, dtype)  # type: ignore[arg-type]

    check(0.01, 0.05, 0.02, 0.06, 0.04)
    check(0.01, 0.5, 0.02, 0.6, 0.04)  # two of five
    remedy = "on the CPU, .* on CUDA or" if dtype == BFLOAT16 else "dtype=torch.float32 on the CPU or"
    with pytest.raises(ValueError, match=rf"in {dtype}, got D of 0.02, to which rounding adds 0.002: take .*{remedy}"):
        check(0.1, 0.01, 0.2, 0.01, 0.1)
