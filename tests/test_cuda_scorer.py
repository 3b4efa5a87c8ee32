"""Scorer on a GPU: against the float64 reference and the CPU; its promises under streams, threads and little memory.

Real faces come from where conftest.py finds them.
"""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import prefiqs_ext
from prefiqs_ext import ScoreOutput, Scorer, models, reference
from prefiqs_ext.device import why_no_cuda
from prefiqs_ext.exceptions import MissingWeightsError
from tests import conftest, networks

_REASON = why_no_cuda()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(_REASON is not None, reason=f"no CUDA here: {_REASON}")]

# What the project promises of D in float16 against float64; emulated on the CPU, the error is 5e-4 on SFace.
D_TOLERANCE, SPEARMAN = 3e-3, 0.999
# bfloat16 has 8 times the rounding of float16: as emulated, 4.5e-3 on SFace and 6.3e-3 on a calibrated IResNet-50.
D_TOLERANCE_BFLOAT16 = 8 * D_TOLERANCE
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """Two hundred real faces or fewer, uint8 [N, 3, 112, 112] RGB."""
    files = conftest.list_face_files(least=20)
    files = files[:: max(1, len(files) // 200)]
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def sface_network() -> nn.Module:
    try:
        return models.load("sface")[0]
    except MissingWeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def mobile() -> nn.Module:
    """Quick, with depthwise layers; takes 32 x 32."""
    return networks.calibrated("mobile")


@pytest.fixture(scope="module")
def scorer(mobile: nn.Module) -> Scorer:
    return on_gpu(mobile)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    torch.cuda.synchronize()  # an error of a kernel belongs to the test that launched it


def on_gpu(network: nn.Module, dtype: torch.dtype | None = None) -> Scorer:
    example = networks.network_input(networks.pictures(1, networks.ZOO_SIZE))
    return Scorer(network, example=example, device="cuda", dtype=dtype)


def inputs(count: int, seed: int = 0) -> Tensor:
    return networks.network_input(networks.pictures(count, networks.ZOO_SIZE, seed=seed)).to(GPU)


def assert_same_bits(got: ScoreOutput, expected: ScoreOutput) -> None:
    for name, a, b in zip(ScoreOutput._fields, got, expected, strict=True):
        assert torch.equal(a, b), name


def check_accuracy(distance: Tensor, expected: Tensor, tolerance: float = D_TOLERANCE) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert float((distance.cpu().double() - expected.cpu()).abs().max()) < tolerance
    if tolerance == D_TOLERANCE:
        assert stats.spearmanr(distance.cpu(), expected.cpu()).statistic >= SPEARMAN


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sface_on_real_faces(sface_network: nn.Module, faces: Tensor, dtype: torch.dtype) -> None:
    scorer = Scorer(sface_network, preset="sface", device="cuda", dtype=dtype)
    expected = reference.score(sface_network, faces, preset="sface")
    tolerance = D_TOLERANCE if dtype == torch.float16 else D_TOLERANCE_BFLOAT16
    for batch in (faces.to(GPU), faces.to(GPU) / 255):
        got = scorer(batch)
        check_accuracy(got.distance, expected.distance, tolerance)
        assert all(field.device == GPU and field.dtype == torch.float32 for field in got)
    norms = got.embedding_norm.cpu().double()
    torch.testing.assert_close(norms, expected.embedding_norm, rtol=32 * torch.finfo(dtype).eps, atol=0)


def test_the_cpu_gives_the_same(sface_network: nn.Module, faces: Tensor) -> None:
    expected = Scorer(sface_network, preset="sface")(faces[:20])
    got = Scorer(sface_network, preset="sface", device="cuda")(faces[:20].to(GPU))
    check_accuracy(got.distance, expected.distance.double())


def test_score_runs_where_the_batch_is(sface_network: nn.Module, faces: Tensor) -> None:
    expected = Scorer(sface_network, preset="sface", device="cuda")(faces[:3].to(GPU))
    assert_same_bits(prefiqs_ext.score(faces[:3].to(GPU)), expected)


def test_a_calibrated_iresnet50() -> None:
    network, batch = networks.calibrated("iresnet50"), networks.pictures(24)
    expected = reference.score(network, batch, preset="arcface")
    check_accuracy(Scorer(network, preset="arcface", device="cuda")(batch.to(GPU)).distance, expected.distance)


@pytest.mark.parametrize("name", networks.ZOO)
@pytest.mark.parametrize("fold", [True, False])
def test_networks_of_every_kind(name: str, fold: bool) -> None:
    network, batch = networks.calibrated(name), inputs(5)
    expected = reference.score(network, batch.cpu())
    scorer = Scorer(network, example=batch[:1], device="cuda", fold=fold)
    check_accuracy(scorer(batch).distance, expected.distance, 2 * D_TOLERANCE)  # embeddings of 32, no average over 512


def test_a_model_on_the_gpu_is_read_only(mobile: nn.Module, scorer: Scorer) -> None:
    model = copy.deepcopy(mobile).to(GPU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = Scorer(model, example=inputs(1))
    assert (made.device, made.dtype) == (GPU, torch.float16)
    assert_same_bits(made(inputs(3)), scorer(inputs(3)))
    assert all(value.is_cuda and torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_on_the_device() -> None:
    network = networks.calibrated("iresnet50")
    half = 2 * sum(t.numel() for t in (*network.parameters(), *network.buffers()))
    gc.collect()
    before = torch.cuda.memory_allocated()
    scorer = Scorer(network, preset="arcface", device="cuda")
    gc.collect()
    assert scorer.resident_bytes <= 1.08 * half
    # The allocator's blocks are of 512 bytes.
    assert torch.cuda.memory_allocated() - before <= 1.09 * half


# --- promises --------------------------------------------------------------------------------------------------------


def test_a_row_has_the_same_bits_everywhere(sface_network: nn.Module, faces: Tensor) -> None:
    scorer = Scorer(sface_network, preset="sface", device="cuda", chunk=50)
    batch = faces.to(GPU)
    everything = scorer(batch)
    for rows in (slice(0, 1), slice(3, 5), slice(7, 40), slice(60, 61)):
        assert_same_bits(scorer(batch[rows]), ScoreOutput(*(field[rows] for field in everything)))
    assert_same_bits(scorer(batch.contiguous(memory_format=torch.channels_last)), everything)
    assert_same_bits(Scorer(sface_network, preset="sface", device="cuda")(batch), everything)


def test_graphs_give_the_bits_of_plain_calls(scorer: Scorer) -> None:
    batch = inputs(11)
    plain = scorer(batch)  # a shape is recorded when it comes again
    for _ in range(3):
        assert_same_bits(scorer(batch), plain)
    other = inputs(11, seed=1)
    assert not torch.equal(scorer(other).distance, plain.distance)
    assert_same_bits(scorer(batch), plain)


def test_many_shapes(scorer: Scorer) -> None:
    expected = scorer(inputs(12))
    batch = inputs(12)
    for count in [1, 2, 3, 4, 5, 6, 7] * 3 + [7, 1, 7, 1]:
        assert_same_bits(scorer(batch[:count]), ScoreOutput(*(field[:count] for field in expected)))


def test_inputs_may_be_freed_and_results_kept(scorer: Scorer) -> None:
    expected = [scorer(inputs(9, seed=seed)) for seed in range(3)]
    kept = []
    for turn in range(30):
        batch = inputs(9, seed=turn % 3)
        kept.append(scorer(batch))
        del batch
        torch.full((9, 3, 32, 32), torch.nan, device=GPU)  # takes the memory that the batch had
    for turn, got in enumerate(kept):
        assert_same_bits(got, expected[turn % 3])


def test_streams_may_change(mobile: nn.Module) -> None:
    scorer = on_gpu(mobile)
    batches = [inputs(8, seed=seed) for seed in range(3)]
    expected = [scorer(batch) for batch in batches]
    streams = [torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.current_stream()]
    torch.cuda.synchronize()
    results = []
    for turn in range(30):
        with torch.cuda.stream(streams[turn % 3]):
            results.append(scorer(batches[turn % 2 + turn % 3 // 2]))
    torch.cuda.synchronize()
    for turn, got in enumerate(results):
        assert_same_bits(got, expected[turn % 2 + turn % 3 // 2])


def test_threads(mobile: nn.Module) -> None:
    scorer = on_gpu(mobile)
    batches = [inputs(count, seed=count) for count in (1, 2, 3, 4, 5, 6)]
    expected = [scorer(batch) for batch in batches]
    torch.cuda.synchronize()

    def run(turn: int) -> ScoreOutput:
        with torch.cuda.stream(torch.cuda.Stream()):
            output = scorer(batches[turn % 6])
            torch.cuda.current_stream().synchronize()
        return output

    with ThreadPoolExecutor(6) as pool:
        for turn, got in enumerate(pool.map(run, range(60))):
            assert_same_bits(got, expected[turn % 6])


def test_copies(scorer: Scorer) -> None:
    batch = inputs(3)
    expected = scorer(batch)
    for made in (copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):
        for _ in range(3):
            assert_same_bits(made(batch), expected)


def test_too_little_memory_names_a_chunk() -> None:
    network = networks.calibrated("iresnet18")
    scorer = Scorer(network, preset="arcface", device="cuda", chunk=4096)
    small, large = networks.pictures(8).to(GPU), torch.zeros(4096, 3, 112, 112, dtype=torch.uint8, device=GPU)
    expected = scorer(small)
    gc.collect()
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_allocated() + 2**30  # one layer's 4096 pairs of [64, 112, 112] alone need 13 GB
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(GPU).total_memory)
    try:
        for _ in range(3):
            with pytest.raises(MemoryError, match=r"^cuda:0 has too little memory for 4096 images together: .*=2048$"):
                scorer(large)
            assert_same_bits(scorer(small), expected)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_same_bits(scorer(small), expected)


# --- input -----------------------------------------------------------------------------------------------------------


def test_bad_batches(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="expected a batch on the scorer's device cuda:0, got cpu"):
        scorer(inputs(2).cpu())
    spoiled = inputs(3)
    spoiled[1, 0, 2, 2] = torch.nan
    with pytest.raises(ValueError, match="expected finite values, got NaN or infinity in row 1"):
        scorer(spoiled)


def test_an_empty_batch_gives_empty_tensors(scorer: Scorer) -> None:
    out = scorer(inputs(1)[:0])
    assert [tuple(field.shape) for field in out] == [(0,), (0,), (0, 32), (0, 32), (0,)]
    assert all(field.device == GPU for field in out)


def test_one_wait_for_the_device(scorer: Scorer) -> None:
    batch = inputs(2)
    scorer(batch)
    for _ in range(2):  # recorded, and replayed
        scorer(batch)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scorer(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in caught if "synchroniz" in str(each.message)]) == 1


def test_files(sface_network: nn.Module, faces: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    from prefiqs_ext.files import score_files

    paths = []
    for index, face in enumerate(faces[:10]):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(face.permute(1, 2, 0).numpy()).save(paths[-1])
    scorer = Scorer(sface_network, preset="sface", device="cuda", on_bad="nan")
    expected = scorer(faces[:10].to(GPU))
    scored = list(score_files(paths, scorer, aligned=True, batch_size=3))
    assert [one.path for one in scored] == paths
    assert [one.records[0].distance for one in scored] == expected.distance.tolist()
    assert torch.equal(torch.cat([one.embeddings for one in scored]), expected.embedding.cpu())
