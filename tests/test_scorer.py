"""Scorer and score(): against the float64 reference, OpenCV's SFace, and their own promises."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prefiqs_ext
from prefiqs_ext import Preset, Pruning, ScoreOutput, Scorer, models, reference
from prefiqs_ext.models import weights
from prefiqs_ext.ranking import RANKINGS
from tests import networks

# D is computed in float32 through some fifty layers; the project promises 1e-5 against float64.
D_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def scorer(sface: nn.Module) -> Scorer:
    return Scorer(sface, preset="sface")


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """A quick network on images of any size from 16 x 16 on, embeddings [N, 16]."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 16),
    )
    return network.eval()


@pytest.fixture(scope="module")
def tiny_preset() -> Preset:
    return Preset("tiny", (16, 20), "rgb", (127.5,) * 3, (127.5,) * 3)


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (11, 3, 16, 20), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def small_scorer(small: nn.Module, tiny_preset: Preset) -> Scorer:
    return Scorer(small, preset=tiny_preset)


def assert_same_bits(got: ScoreOutput, expected: ScoreOutput) -> None:
    for name, a, b in zip(ScoreOutput._fields, got, expected, strict=True):
        assert torch.equal(a, b), name


# --- values ----------------------------------------------------------------------------------------------------------


def test_sface_equals_opencv(sface_file: Path, scorer: Scorer, crops: Tensor) -> None:
    cv2 = pytest.importorskip("cv2")
    recogniser = cv2.FaceRecognizerSF.create(str(sface_file), "")
    for crop, embedding in zip(crops, scorer(crops).embedding, strict=True):
        bgr = crop.permute(1, 2, 0).flip(2).contiguous().numpy()
        feature = torch.from_numpy(recogniser.feature(bgr).copy()).flatten()
        torch.testing.assert_close(embedding, feature / feature.norm(), rtol=0, atol=1e-4)


def test_sface_equals_the_reference(scorer: Scorer, crops: Tensor, sface_reference: ScoreOutput) -> None:
    got, expected = scorer(crops), sface_reference
    assert len(crops) >= 20
    torch.testing.assert_close(got.distance.double(), expected.distance, rtol=0, atol=D_TOLERANCE)
    torch.testing.assert_close(got.quality.double(), expected.quality, rtol=0, atol=D_TOLERANCE)
    torch.testing.assert_close(got.embedding.double(), expected.embedding, rtol=0, atol=D_TOLERANCE)
    torch.testing.assert_close(got.pruned_embedding.double(), expected.pruned_embedding, rtol=0, atol=D_TOLERANCE)
    torch.testing.assert_close(got.embedding_norm.double(), expected.embedding_norm, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["iresnet18", pytest.param("iresnet50", marks=pytest.mark.slow)])
@pytest.mark.parametrize("preset", ["arcface", "magface"])
def test_iresnet_equals_the_reference(name: str, preset: str) -> None:
    network = networks.calibrated(name)
    batch = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    got = Scorer(network, preset=preset)(batch)
    expected = reference.score(network, batch, preset=preset)
    assert expected.distance.min() > 0.01  # or the comparison would say nothing
    torch.testing.assert_close(got.distance.double(), expected.distance, rtol=0, atol=D_TOLERANCE)
    torch.testing.assert_close(got.embedding.double(), expected.embedding, rtol=0, atol=D_TOLERANCE)


@pytest.mark.parametrize("layers", ["conv", "conv+linear"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("method", ["magnitude", "random"])
@pytest.mark.parametrize("sparsity", [0.1, 0.4, 0.9])
def test_every_pruning_equals_the_reference(
    small: nn.Module, tiny_preset: Preset, images: Tensor, method: Any, scope: Any, layers: str, sparsity: float
) -> None:
    pruning = Pruning(method=method, sparsity=sparsity, scope=scope, layers=layers)
    got = Scorer(small, pruning, preset=tiny_preset)(images)
    expected = reference.score(small, images, pruning, preset=tiny_preset)
    torch.testing.assert_close(got.distance.double(), expected.distance, rtol=0, atol=D_TOLERANCE)


def test_nothing_pruned_is_no_distance_at_all(small: nn.Module, tiny_preset: Preset, images: Tensor) -> None:
    ones = {name: torch.ones_like(mask) for name, mask in Pruning().make_masks(small).items()}
    for pruning in (Pruning(sparsity=0), ones):
        out = Scorer(small, pruning, preset=tiny_preset)(images)
        assert torch.equal(out.distance, torch.zeros(len(images)))
        assert torch.equal(out.quality, torch.ones(len(images)))
        assert torch.equal(out.embedding, out.pruned_embedding)


def test_masks_of_ones_kept_through_the_pass_give_no_distance(
    small: nn.Module, tiny_preset: Preset, images: Tensor
) -> None:
    masks = {name: torch.ones_like(mask) for name, mask in Pruning().make_masks(small).items()}
    masks["0"][0, 0, 0, 0] = False  # the pair starts at the first layer; every later mask keeps everything
    with torch.no_grad():
        network = copy.deepcopy(small)
        network[0].weight[0, 0, 0, 0] = 0.0  # and what that one removes is nothing
    out = Scorer(network, masks, preset=tiny_preset)(images)
    assert torch.equal(out.distance, torch.zeros(len(images)))


def test_masks_of_your_own(small: nn.Module, tiny_preset: Preset, images: Tensor) -> None:
    pruning = Pruning(sparsity=0.5, layers="3")
    masks = pruning.make_masks(small)
    assert_same_bits(
        Scorer(small, masks, preset=tiny_preset)(images), Scorer(small, pruning, preset=tiny_preset)(images)
    )


def test_floating_images_equal_8_bit_ones(small_scorer: Scorer, images: Tensor) -> None:
    expected = small_scorer(images)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-6), (torch.float16, 2e-3)):
        got = small_scorer(images.to(dtype) / 255)
        torch.testing.assert_close(got.distance, expected.distance, rtol=0, atol=tolerance)


def test_a_little_overshoot_is_clipped(small_scorer: Scorer) -> None:
    edge = torch.tensor([0.0, 1.0]).repeat(160).view(1, 1, 16, 20).expand(1, 3, 16, 20)
    assert_same_bits(small_scorer(edge * 1.0018 - 0.0009), small_scorer(edge))


def test_without_a_preset_the_tensor_goes_in_as_it_is(small: nn.Module) -> None:
    example = torch.randn(2, 3, 24, 17)
    scorer = Scorer(small, example=example)
    expected = reference.score(small, example)
    torch.testing.assert_close(scorer(example).distance.double(), expected.distance, rtol=0, atol=D_TOLERANCE)
    assert scorer(torch.randn(1, 3, 40, 31)).embedding.shape == (1, 16)


# --- promises --------------------------------------------------------------------------------------------------------


def check_bits(scorer: Scorer, batch: Tensor) -> None:
    everything = scorer(batch)
    assert_same_bits(scorer(batch), everything)
    for row in range(0, len(batch), 3):
        alone = scorer(batch[row : row + 1])
        assert_same_bits(alone, ScoreOutput(*(field[row : row + 1] for field in everything)))
    assert_same_bits(scorer(batch[2:7]), ScoreOutput(*(field[2:7] for field in everything)))
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert_same_bits(scorer(batch), everything)
    finally:
        torch.set_num_threads(threads)


def test_a_row_has_the_same_bits_everywhere(
    scorer: Scorer, small_scorer: Scorer, crops: Tensor, images: Tensor
) -> None:
    check_bits(scorer, crops[:10])
    check_bits(small_scorer, images)


def test_an_iresnet_row_has_the_same_bits_everywhere() -> None:
    batch = torch.randint(0, 256, (9, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    check_bits(Scorer(networks.calibrated("iresnet18"), preset="arcface"), batch)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_chunks_change_nothing(small: nn.Module, tiny_preset: Preset, images: Tensor, chunk: int) -> None:
    expected = Scorer(small, preset=tiny_preset)(images)
    assert_same_bits(Scorer(small, preset=tiny_preset, chunk=chunk)(images), expected)


def test_layouts_change_nothing(small_scorer: Scorer, images: Tensor) -> None:
    expected = small_scorer(images)
    assert_same_bits(small_scorer(images.contiguous(memory_format=torch.channels_last)), expected)
    strided = torch.zeros(11, 3, 16, 40, dtype=torch.uint8)[..., ::2].copy_(images)
    assert_same_bits(small_scorer(strided), expected)


def parameter_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in model.parameters())


def test_resident_weights(sface: nn.Module, scorer: Scorer) -> None:
    assert parameter_bytes(sface) < scorer.resident_bytes <= 1.06 * parameter_bytes(sface)
    network = networks.calibrated("iresnet18")
    assert Scorer(network, preset="arcface").resident_bytes <= 1.06 * parameter_bytes(network)


def test_the_callers_model_is_not_changed(small: nn.Module, tiny_preset: Preset, images: Tensor) -> None:
    before = copy.deepcopy(small.state_dict())
    scorer = Scorer(small, preset=tiny_preset)
    expected = scorer(images)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    changed = copy.deepcopy(small)
    scorer = Scorer(changed, preset=tiny_preset)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert_same_bits(scorer(images), expected)


def test_outputs_are_ordinary_tensors(small_scorer: Scorer, images: Tensor) -> None:
    for field in small_scorer(images):
        assert not field.is_inference()
        assert field.dtype == torch.float32


def test_an_empty_batch_gives_empty_tensors(small_scorer: Scorer) -> None:
    out = small_scorer(torch.zeros(0, 3, 16, 20, dtype=torch.uint8))
    assert [tuple(field.shape) for field in out] == [(0,), (0,), (0,), (0, 16), (0, 16), (0,), (0, 0)]
    # A network whose reshape could not run on no rows.
    images = torch.rand(1, 3, networks.ZOO_SIZE, networks.ZOO_SIZE)
    scorer = Scorer(networks.calibrated("mobile"), example=images)
    assert scorer(images[:0]).embedding.shape == scorer(images).embedding[:0].shape


def test_score_uses_the_built_in_network(sface_file: Path, scorer: Scorer, crops: Tensor) -> None:
    assert_same_bits(prefiqs_ext.score(crops[:2]), scorer(crops[:2]))


# --- bad input -------------------------------------------------------------------------------------------------------


BAD_BATCHES: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "not images": (lambda x: {"images": x}, TypeError, "expected a tensor, a NumPy array, .* got dict"),
    "size": (
        lambda x: x[..., :19],
        ValueError,
        r"expected images \[N, 3, 16, 20\] \(preset 'tiny'\), got \[11, 3, 16, 19\]; align and crop them",
    ),
    "two channels": (lambda x: x[:, :2], ValueError, r"got \[11, 2, 16, 20\]; align and crop them"),
    "integers": (lambda x: x.long(), TypeError, r"expected uint8 images of 0-255 or floating .* got torch.int64"),
    "device": (lambda x: x.to("meta"), ValueError, "expected a batch on the scorer's device cpu, got meta"),
    "levels": (lambda x: x.float(), ValueError, r"expected floating images in \[0, 1\], got values from 0 to 255"),
    "normalised": (
        lambda x: x / 127.5 - 1,
        ValueError,
        r"expected floating images in \[0, 1\], got values from -1 to 1; they look normalised already, .* as uint8",
    ),
    "normalised otherwise": (lambda x: x / 60 - 2, ValueError, r"from -2 to 2.25; they look normalised already"),
    "nan": (lambda x: spoiled(x, torch.nan), ValueError, "expected finite values, got NaN or infinity in rows 2, 9"),
    "infinity": (
        lambda x: spoiled(x, torch.inf),
        ValueError,
        "expected finite values, got NaN or infinity in rows 2, 9",
    ),
}


def spoiled(images: Tensor, value: float) -> Tensor:
    batch = images / 255
    batch[2, 0, 3, 4] = batch[9, 2, 0, 0] = value
    return batch


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batches(small_scorer: Scorer, images: Tensor, case: str) -> None:
    change, error, message = BAD_BATCHES[case]
    with pytest.raises(error, match=message) as caught:
        small_scorer(change(images))
    assert "\n" not in str(caught.value)


LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NHWC": (lambda x: x.permute(0, 2, 3, 1), "batch.permute(0, 3, 1, 2)"),
    "HWC": (lambda x: x[0].permute(1, 2, 0), "batch.permute(2, 0, 1)[None]"),
    "N1HW": (lambda x: x[:, :1], "batch.expand(-1, 3, -1, -1)"),
    "NHW": (lambda x: x[:, 0], "batch[:, None].expand(-1, 3, -1, -1)"),
    "HW": (lambda x: x[0, 0], "batch.expand(1, 3, -1, -1)"),
    "RGBA": (lambda x: torch.cat([x, x[:, :1]], dim=1), "batch[:, :3]"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_another_layout_gets_the_line_that_mends_it(small_scorer: Scorer, images: Tensor, case: str) -> None:
    change, remedy = LAYOUTS[case]
    batch = change(images)
    with pytest.raises(ValueError, match=re.escape(f"got {list(batch.shape)}; ")) as caught:
        small_scorer(batch)
    assert str(caught.value).endswith(remedy)
    mended = eval(remedy)
    small_scorer(mended)
    if case in ("NHWC", "HWC", "RGBA"):
        assert torch.equal(mended, images[: len(mended)])


def test_bad_batches_without_a_preset(small: nn.Module) -> None:
    scorer = Scorer(small, example=torch.randn(1, 3, 16, 20))
    with pytest.raises(
        ValueError, match=r"expected a batch of 4 dimensions, got shape \[3, 16, 20\]: .*batch\[None\]$"
    ):
        scorer(torch.randn(3, 16, 20))
    with pytest.raises(TypeError, match=r"expected a float32 or uint8 batch, got torch.float64"):
        scorer(torch.randn(1, 3, 16, 20).double())
    with pytest.raises(RuntimeError, match=r"to have 3 channels, but got 4 channels instead"):
        scorer(torch.randn(1, 4, 16, 20))
    with pytest.raises(ValueError, match=r"NaN or infinity in row 1$"):
        scorer(torch.stack([torch.zeros(3, 16, 20), torch.full((3, 16, 20), torch.nan)]))


def test_embeddings_without_a_direction(tiny_preset: Preset, images: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        network[0].bias.zero_()
    blank = images.clone()
    blank[[1, 4]] = 0  # the preset below maps 0 to 0, and so does the network
    preset = Preset("zero", (16, 20), "rgb", (0.0,) * 3, (255.0,) * 3)
    with pytest.raises(ValueError, match="expected embeddings of finite norm above 0, got none for rows 1, 4"):
        Scorer(network, preset=preset)(blank)
    out = Scorer(network, preset=preset, on_bad="nan")(blank)
    assert out.distance.isnan().nonzero().flatten().tolist() == [1, 4]
    assert out.quality.isnan().nonzero().flatten().tolist() == [1, 4]
    for rank_by in RANKINGS[1:]:
        out = Scorer(network, preset=preset, on_bad="nan", rank_by=rank_by)(blank)
        assert out.score.isnan().nonzero().flatten().tolist() == [1, 4]


BAD_SCORERS: dict[str, tuple[Callable[[nn.Module, Preset], Any], str]] = {
    "train mode": (lambda m, p: Scorer(copy.deepcopy(m).train(), preset=p), "is in train mode: call model.eval"),
    "a layer in train mode": (lambda m, p: Scorer(with_training_layer(m), preset=p), "is in train mode"),
    "no layers": (
        lambda m, p: Scorer(nn.Sequential(nn.Flatten()).eval(), preset=p),
        "the model has no convolution or linear layer",
    ),
    "neither preset nor example": (lambda m, p: Scorer(m), "expected a preset, or an example batch"),
    "unknown preset": (lambda m, p: Scorer(m, preset="arcfase"), "unknown preset 'arcfase'"),
    "unknown model": (lambda m, p: Scorer("sphaceface"), "^no such model or file: sphaceface; known: sface, .*"),
    "a preset as a model": (lambda m, p: Scorer("arcface"), "^no such model or file: arcface; .*'arcface' is a preset"),
    "float32 on CUDA": (
        lambda m, p: Scorer(m, preset=p, device="cuda", dtype=torch.float32),
        "expected dtype torch.float16 or torch.bfloat16 on CUDA",
    ),
    "device": (lambda m, p: Scorer(m, preset=p, device="cuda:99"), "cannot compute on 'cuda:99': "),
    "dtype": (lambda m, p: Scorer(m, preset=p, dtype=torch.float16), "expected dtype torch.float32"),
    "device type": (lambda m, p: Scorer(m, preset=p, device="meta"), "expected device 'cpu' or 'cuda', got 'meta'"),
    "chunk": (lambda m, p: Scorer(m, preset=p, chunk=0), "expected chunk of 1 or more, got 0"),
    "on_bad": (lambda m, p: Scorer(m, preset=p, on_bad="hide"), "expected on_bad 'raise' or 'nan', got 'hide'"),  # type: ignore[arg-type]
    "sparsity": (lambda m, p: Scorer(m, Pruning(sparsity=1.0), preset=p), r"sparsity must be a number in \[0, 1\)"),
    "unknown layer": (lambda m, p: Scorer(m, {"7": torch.ones(1)}, preset=p), "7"),
    "mask shape": (lambda m, p: Scorer(m, {"0": torch.ones(8, 3, 3, dtype=torch.bool)}, preset=p), r"8, 3, 3"),
    "mask dtype": (lambda m, p: Scorer(m, {"0": torch.ones(8, 3, 3, 3)}, preset=p), "float32"),
}


def with_training_layer(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    model[1].train()  # type: ignore[operator, index]
    return model


@pytest.mark.parametrize("case", BAD_SCORERS)
def test_bad_scorers(small: nn.Module, tiny_preset: Preset, case: str) -> None:
    build, message = BAD_SCORERS[case]
    with pytest.raises(ValueError, match=message) as caught:
        build(small, tiny_preset)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Any) -> None:
    for path in (tmp_path / "absent.onnx", str(tmp_path / "absent.onnx"), "absent.onnx"):
        with pytest.raises(FileNotFoundError, match=r"^no such model or file: .*absent\.onnx; known: sface, "):
            Scorer(path, preset="arcface")
    with pytest.raises(TypeError, match="expected the name of a model or its file, got NoneType"):
        Scorer(None)  # type: ignore[arg-type]


def test_the_known_networks() -> None:
    assert models.BUILT_IN == ("sface", "facexzoo", "dlib", "w600k_mbf")
    assert weights.KNOWN["sface"].preset == "sface"
