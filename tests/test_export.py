"""The exported ONNX file, in ONNX Runtime and OpenVINO, against the Scorer that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from architectures import ARCHITECTURES
from calibrations import make_calibration
from networks import ZOO_SIZE, calibrated, network_input, pictures
from oracle import unpack_mask as slow_unpack_mask
from torch import Tensor, nn

from prefiqs_ext import Preset, Pruning, ScoreOutput, Scorer, export_onnx, onnx_export
from prefiqs_ext.exceptions import FileAccessError, InputError, InputTypeError, UnsupportedNetworkError
from prefiqs_ext.models import PRESETS
from prefiqs_ext.onnx_export import OUTPUTS, OnnxSize
from prefiqs_ext.pruning_masks import pack_mask, unpack_mask
from tests.command import Command

SMALL = replace(PRESETS["arcface"], name="small", size=(ZOO_SIZE, ZOO_SIZE), colour="bgr", std=(127.5, 120.0, 110.0))
TOLERANCE = 1e-5
"""Of numbers that are at most 2 in size. Both sides are float32; the largest difference that was seen is 2e-6."""
Run = Callable[[Path, Tensor], dict[str, np.ndarray]]


def run_onnxruntime(file: Path, images: Tensor) -> dict[str, np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == list(OUTPUTS)
    return dict(zip(OUTPUTS, session.run(None, {"images": images.numpy()}), strict=True))


def run_openvino(file: Path, images: Tensor) -> dict[str, np.ndarray]:
    openvino = pytest.importorskip("openvino")
    # Elsewhere than on AVX2 its default is a shorter format.
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {output.any_name: value for output, value in compiled(images.numpy()).items()}


def assert_same(found: dict[str, np.ndarray], expected: ScoreOutput, *, score: float = TOLERANCE) -> None:
    """`score`: the tolerance of the score, relative where it is above 1."""
    for name in ("distance", "quality", "embedding"):
        np.testing.assert_allclose(found[name], getattr(expected, name), rtol=0, atol=TOLERANCE, err_msg=name)
    np.testing.assert_allclose(found["embedding_norm"], expected.embedding_norm, rtol=TOLERANCE)
    np.testing.assert_allclose(found["score"], expected.score, rtol=score, atol=score)
    assert all(value.dtype == np.float32 for value in found.values())


def make_images(scorer: Scorer, dtype: torch.dtype, count: int = 3) -> Tensor:
    assert scorer.preset is not None
    images = pictures(count, scorer.preset.size)
    return images if dtype == torch.uint8 else images / 255


class Exported(NamedTuple):
    scorer: Scorer
    file: Path
    dtype: torch.dtype
    size: OnnxSize


@pytest.fixture(
    scope="module",
    params=[("sface", torch.uint8), ("w600k_mbf", torch.float32), ("facexzoo", torch.float32), ("r18", torch.uint8)],
    ids=lambda param: param[0],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Whole networks: three of the built-in ones with their weights, and a random IResNet-18."""
    name, dtype = request.param
    if name == "r18":
        scorer = Scorer(calibrated("iresnet18"), preset="arcface")
    else:
        request.getfixturevalue(f"{name}_file")
        scorer = Scorer(name)
    file = tmp_path_factory.mktemp("export") / f"{name}.onnx"
    return Exported(scorer, file, dtype, export_onnx(scorer, file, input_dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_onnxruntime, run_openvino])
def test_whole_networks(exported: Exported, run: Run) -> None:
    images = make_images(exported.scorer, exported.dtype)
    for rows in (images[:1], images):
        assert_same(run(exported.file, rows), exported.scorer(rows))


@pytest.mark.slow
def test_a_file_holds_each_weight_once(exported: Exported) -> None:
    """Masks of a byte per weight make it a quarter larger than one network at most; the rest is names and borders."""
    onnx.checker.check_model(exported.file, full_check=True)
    model = onnx.load(exported.file)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
    assert all(node.domain == "" for node in model.graph.node)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "N"
    kinds = {torch.uint8: onnx.TensorProto.UINT8, torch.float32: onnx.TensorProto.FLOAT}
    assert model.graph.input[0].type.tensor_type.elem_type == kinds[exported.dtype]
    assert model.producer_name == "prefiqs_ext"
    floats = [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT]
    one = 4 * sum(int(np.prod(i.dims)) for i in floats)
    size = exported.file.stat().st_size
    assert exported.size.file == size
    assert one < size < 1.3 * one
    assert one < exported.size.weights < 2 * one
    assert [path.name for path in exported.file.parent.iterdir()] == [exported.file.name]


def export_and_compare(scorer: Scorer, folder: Path, dtype: torch.dtype = torch.uint8) -> None:
    export_onnx(scorer, folder / "pair.onnx", input_dtype=dtype)
    images = make_images(scorer, dtype)
    for rows in (images[:1], images):
        assert_same(run_onnxruntime(folder / "pair.onnx", rows), scorer(rows))


@pytest.mark.parametrize(
    ("name", "pruning", "dtype"),
    [
        ("norm_first", Pruning(), torch.uint8),  # borders, paddings and dilation
        ("reuse", Pruning(layers=["conv"]), torch.float32),  # a shared layer, and one that runs three times
        ("mobile", Pruning("2:4", layers="conv+linear"), torch.uint8),
        ("mobile", Pruning("2:4", layers="conv+linear"), torch.float32),
    ],
)
def test_kinds_of_layers(name: str, pruning: Pruning, dtype: torch.dtype, tmp_path: Path) -> None:
    export_and_compare(Scorer(calibrated(name), pruning, preset=SMALL), tmp_path, dtype)


def test_networks_that_torch_export_traced(tmp_path: Path) -> None:
    """Its operators would hide from torch's exporter that sizes grow with N."""
    build, _ = ARCHITECTURES["transformers vit"]
    export_and_compare(Scorer(build(), Pruning(layers="conv+linear"), preset=SMALL), tmp_path)


class Convolutions1d(nn.Module):
    """Rows of an image as a sequence, by 1-d convolutions with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3 * ZOO_SIZE, 24, 3, padding=1), nn.Conv1d(24, 24, 5, padding="same")
        self.fc = nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1, 2)).relu()
        return self.fc((x + self.second(x)).mean(2))


def test_1d_convolutions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_and_compare(Scorer(Convolutions1d().eval(), preset=SMALL), tmp_path)


@pytest.mark.parametrize("fold", [True, False])
def test_what_is_not_pruned_or_not_folded(fold: bool, tmp_path: Path) -> None:
    scorer = Scorer(calibrated("mobile"), Pruning(sparsity=0.0), preset=SMALL, fold=fold)
    export_and_compare(scorer, tmp_path)
    assert not any("mask" in i.name for i in onnx.load(tmp_path / "pair.onnx").graph.initializer)


def test_calibrated_and_recalibrated(tmp_path: Path) -> None:
    """The score, of 0 to 100, multiplies the rounding of the layers' norms by its slope."""
    network, layers = calibrated("mobile"), ("stem.0", "same.3", "fc")
    faces = pictures(16, ZOO_SIZE, seed=3)
    settings = Scorer(network, preset=SMALL, recalibrate=faces).settings
    assert settings.recalibration is not None
    file = tmp_path / "settings.json"
    settings.with_calibration(make_calibration(layers, prior="distance")).save(file)
    scorer = Scorer.from_settings(file, network)
    plain = Scorer(network, preset=SMALL)
    images = make_images(scorer, torch.uint8, 8)
    expected = scorer(images)
    assert float((expected.distance - plain(images).distance).abs().max()) > 1e-3
    assert float(expected.score.max() - expected.score.min()) > 1
    export_onnx(scorer, tmp_path / "pair.onnx")
    assert_same(run_onnxruntime(tmp_path / "pair.onnx", images), expected, score=5e-5)


@pytest.mark.parametrize("rank_by", ["norm", "quality"])
def test_the_score_is_the_number_that_ranks(rank_by: str, tmp_path: Path) -> None:
    scorer = Scorer(calibrated("mobile"), preset=SMALL, rank_by=rank_by)
    export_and_compare(scorer, tmp_path)
    found = run_onnxruntime(tmp_path / "pair.onnx", make_images(scorer, torch.uint8))
    assert np.array_equal(found["score"], found["embedding_norm" if rank_by == "norm" else "quality"])


@pytest.mark.parametrize("run", [run_onnxruntime, run_openvino])
def test_no_direction_gives_nan(run: Run, tmp_path: Path) -> None:
    """A black image, to a network without any bias, has an embedding of zeros."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 8, bias=False),
    )
    preset = Preset("levels", (ZOO_SIZE, ZOO_SIZE), "rgb", (0.0,) * 3, (255.0,) * 3)
    scorer = Scorer(network.eval(), preset=preset, on_bad="nan", rank_by="norm")
    export_onnx(scorer, tmp_path / "pair.onnx")
    images = pictures(3, ZOO_SIZE)
    images[1] = 0
    found, expected = run(tmp_path / "pair.onnx", images), scorer(images)
    assert expected.distance.isnan().tolist() == [False, True, False]
    assert_same(found, expected)


def test_a_pruned_embedding_of_zeros_is_at_distance_1(tmp_path: Path) -> None:
    network = calibrated("mobile")
    masks = {"fc": torch.zeros_like(network.fc.weight, dtype=torch.bool)}
    network.fc.bias, network.bn = None, nn.Identity()
    scorer = Scorer(network.eval(), masks, preset=SMALL)
    export_and_compare(scorer, tmp_path)
    assert scorer(make_images(scorer, torch.uint8)).distance.tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("shape", [(5, 7), (4, 6, 3), (6, 5, 3, 2), (33, 1, 1, 1)])
def test_masks_are_unpacked(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.4
    packed = pack_mask(mask)
    assert torch.equal(unpack_mask(packed, shape), mask)
    if len(shape) != 3:
        assert torch.equal(slow_unpack_mask(packed, shape), mask)


class Strange(nn.Module):
    """A network with an operation that ONNX lacks."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.operation = nn.Conv2d(3, 8, 3, 2), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.conv(x)).flatten(1)


def make_strange(operation: Callable[[Tensor], Tensor]) -> Scorer:
    torch.manual_seed(0)
    return Scorer(Strange(operation).eval(), preset=SMALL)


@pytest.mark.parametrize(
    ("make", "dtype", "kind", "message"),
    [
        (lambda: "sface", torch.uint8, InputTypeError, r"expected a Scorer to export, got str: Scorer\('sface'\)$"),
        (
            lambda: Scorer(calibrated("mobile"), example=network_input(pictures(1, ZOO_SIZE))),
            torch.uint8,
            InputError,
            "expected a scorer with a preset, .*got none",
        ),
        (
            lambda: Scorer(calibrated("mobile"), preset=SMALL, dtype=torch.bfloat16),
            torch.uint8,
            InputError,
            "expected a scorer in float32 on the CPU to export, got bfloat16 on cpu",
        ),
        (
            lambda: Scorer(calibrated("mobile"), preset=SMALL),
            torch.float16,
            InputError,
            r"expected input_dtype torch.uint8 or torch.float32, got torch.float16",
        ),
        (
            lambda: make_strange(torch.special.i0),
            torch.uint8,
            UnsupportedNetworkError,
            r"^cannot export this network to ONNX: Exporting the operator 'aten::i0' to .* is not supported$",
        ),
        (
            lambda: make_strange(nn.AdaptiveAvgPool2d(2)),
            torch.uint8,
            UnsupportedNetworkError,
            "operator adaptive_avg_pool2d, output size that are not factor of input size$",
        ),
    ],
)
def test_refusals(
    make: Callable[[], Scorer],
    dtype: torch.dtype,
    kind: type[Exception],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "pair.onnx"
    file.write_bytes(b"an older one")
    with pytest.raises(kind, match=message) as error:
        export_onnx(make(), file, input_dtype=dtype)
    assert "\n" not in str(error.value)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("pair.onnx", b"an older one")]
    assert capfd.readouterr() == ("", "")


def test_a_network_too_large_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "_LARGEST", 1000)
    with pytest.raises(UnsupportedNetworkError, match=r"a file holds 1,000 bytes .* at most, these have [\d,]+$"):
        export_onnx(Scorer(calibrated("mobile"), preset=SMALL), tmp_path / "pair.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(calibrated("mobile"), preset=SMALL)
    right = onnx_export._export

    def export_wrongly(*arguments: object) -> onnx.ModelProto:
        model = right(*arguments)
        for node in model.graph.node:
            if node.op_type == "Sub":  # the difference of the embeddings
                node.op_type = "Add"
        return model

    monkeypatch.setattr(onnx_export, "_export", export_wrongly)
    with pytest.raises(UnsupportedNetworkError, match=r"the graph gives another .* than the scorer$"):
        export_onnx(scorer, tmp_path / "pair.onnx")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_export_leaves_what_was_there(
    interruption: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        assert (tmp_path / "pair.onnx.part").exists()
        raise interruption

    (tmp_path / "pair.onnx").write_bytes(b"an older one")
    monkeypatch.setattr(onnx_export, "_verify", interrupt)  # the last step before the file is written
    with pytest.raises(interruption):
        export_onnx(Scorer(calibrated("mobile"), preset=SMALL), tmp_path / "pair.onnx")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("pair.onnx", b"an older one")]


def test_a_place_that_cannot_be_written_is_found_first(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"cannot write .*pair\.onnx"):
        export_onnx(Scorer(calibrated("mobile"), preset=SMALL), tmp_path / "nowhere" / "pair.onnx")


@pytest.mark.slow
@pytest.mark.usefixtures("facexzoo_file")
def test_command(command: Command, tmp_path: Path) -> None:
    file, settings = tmp_path / "pair.onnx", tmp_path / "settings.json"
    scorer = Scorer("facexzoo", Pruning(sparsity=0.3), rank_by="norm")
    scorer.settings.save(settings)
    done = command("export", str(file), "--settings", str(settings), "--input", "float32")
    assert (done.code, done.out) == (0, "")
    size = file.stat().st_size / 1e6
    assert done.err.startswith(f"prefiqs: written to {file}, {size:.1f} MB; its score is the embedding norm; a runtime")
    images = make_images(scorer, torch.float32, 1)
    assert_same(run_onnxruntime(file, images), scorer(images))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{}/pair.txt"], 2, "expected a name that ends in .onnx, got"),
        (["{}/model.onnx", "--model", "{}/model.onnx", "--preset", "arcface"], 2, "is the model itself: name another"),
        (["{}/pair.onnx", "--input", "float16"], 2, "'float16' is not one of 'uint8', 'float32'"),
        ([], 2, "Missing argument 'FILE.onnx'"),
        (
            ["{}/pair.onnx", "--model", "facexzoo", "--dtype", "bfloat16"],
            1,
            "expected a scorer in float32 on the CPU to export, got bfloat16",
        ),
    ],
)
@pytest.mark.usefixtures("facexzoo_file")
def test_command_refusals(arguments: list[str], code: int, message: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"a model")
    done = command("export", *(argument.format(tmp_path) for argument in arguments))
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert done.err.count("Error: ") == 1
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.onnx", b"a model")]
