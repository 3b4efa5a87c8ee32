"""A Scorer's settings in a file, and the scale of 0 to 100 that they may hold."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrations import make_calibration
from click.testing import CliRunner, Result
from networks import calibrated, network_input, pictures
from torch import Tensor, nn

from prefiqs_ext import Preset, Pruning, Scorer, Settings
from prefiqs_ext.cli import main
from prefiqs_ext.models.fingerprint import hash_weights

PRESET = Preset("small", (32, 32), "bgr", (127.5, 120, 110), (127.5,) * 3)
FLOAT32 = ("cpu", "float32")
LAYERS = ("stem.0", "conv1")
PRUNING = Pruning(sparsity=0.3, scope="global", layers=["stem.*", "conv?"])


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return calibrated("residual")


@pytest.fixture(scope="module")
def scorer(network: nn.Module) -> Scorer:
    return Scorer(network, PRUNING, preset=PRESET, on_bad="nan")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return pictures(40, 32, seed=2)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(None, "0" * 64, None, Pruning(), "cuda", "bfloat16"),
        Settings("sface", "1" * 64, PRESET, PRUNING, *FLOAT32, 1, make_calibration(LAYERS)),
        Settings("a", "2" * 64, PRESET, Pruning("2:4"), *FLOAT32, "emb", make_calibration(prior="distance")),
        Settings(None, "3" * 64, None, Pruning("structured", 0.1, seed=-3, layers="conv+linear"), *FLOAT32),
        Settings(None, "4" * 64, None, Pruning(), *FLOAT32, rank_by="norm"),
    ],
)
def test_saved_and_loaded(settings: Settings, tmp_path: Path) -> None:
    settings.save(tmp_path / "settings.json")
    assert Settings.load(tmp_path / "settings.json") == settings
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]


def test_the_same_scorer(network: nn.Module, scorer: Scorer, images: Tensor, tmp_path: Path) -> None:
    out = scorer(images)
    calibration = make_calibration()
    scorer.settings.with_calibration(calibration).save(tmp_path / "settings.json")
    again = Scorer.from_settings(tmp_path / "settings.json", copy.deepcopy(network), chunk=7)
    assert again.settings.calibration == calibration
    expected = out._replace(score=calibration(out.distance, out.embedding_norm, out.layer_norms))
    for ours, theirs in zip(again(images), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_scale_is_for_what_it_was_fitted_in(network: nn.Module, scorer: Scorer, images: Tensor) -> None:
    """In half precision D moves by more than a step of the scale: tests/test_scorer_half.py."""
    assert (scorer.settings.device, scorer.settings.dtype) == FLOAT32
    calibrated_settings = scorer.settings.with_calibration(make_calibration())
    on_gpu = replace(calibrated_settings, device="cuda", dtype="float16")
    with pytest.raises(ValueError, match=r"expected to compute in float16 on cuda, .* got float32 on cpu: .*calibrate"):
        Scorer.from_settings(on_gpu, network, device="cpu")
    with pytest.raises(ValueError, match=r"got bfloat16 on cuda"):
        calibrated_settings.with_device(torch.device("cuda", 1), torch.bfloat16)
    # Without a scale they are made anew wherever the caller wants.
    elsewhere = Scorer.from_settings(replace(on_gpu, calibration=None), network, device="cpu")
    assert elsewhere.settings == scorer.settings
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cannot compute on 'cuda'"):
            Scorer.from_settings(on_gpu, network)


def test_another_model_is_refused(network: nn.Module, scorer: Scorer) -> None:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.get_parameter("stem.1.bias")[3] += 1e-6
    with pytest.raises(
        ValueError, match=r"expected the model that these settings were made with, whose .*, got "
    ) as error:
        Scorer.from_settings(scorer.settings, other)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="they name none, it was a module"):
        Scorer.from_settings(scorer.settings)
    masks = PRUNING.make_masks(network)
    with pytest.raises(ValueError, match="masks of your own are not kept in settings"):
        _ = Scorer(network, masks, preset=PRESET).settings


def test_hash_is_of_the_weights(network: nn.Module) -> None:
    digest = hash_weights(network)
    assert hash_weights(copy.deepcopy(network).to(memory_format=torch.channels_last)) == digest
    assert hash_weights(copy.deepcopy(network).half()) != digest
    renamed = nn.Sequential(network)
    assert hash_weights(renamed) != digest
    assert len(hash_weights(copy.deepcopy(network).bfloat16())) == 64
    unsaved = copy.deepcopy(network)
    unsaved.register_buffer("offset", torch.zeros(3), persistent=False)
    assert hash_weights(unsaved) not in (digest, hash_weights(network))


class WithState(nn.Module):
    """Keeps something in its state dict that is no tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": 3}


def test_state_that_is_no_tensor(network: nn.Module) -> None:
    x = network_input(pictures(2, 32))
    scorer = Scorer(WithState(network), example=x)
    assert torch.equal(scorer(x).distance, Scorer(network, example=x)(x).distance)


def test_a_model_in_half_precision_gets_the_reason(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"expected float32 parameters, got torch.bfloat16"):
        Scorer(copy.deepcopy(network).bfloat16(), example=network_input(pictures(1, 32)))


def test_a_place_that_cannot_be_written_is_found_before_the_work(folder: Path, tmp_path: Path) -> None:
    command = ["calibrate", str(folder), "--aligned", "--output", str(tmp_path / "none" / "settings.json")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "cannot write" in result.stderr


def change_calibration(settings: Any, **values: Any) -> Any:
    return {**settings, "calibration": {**make_calibration(LAYERS).to_dict(), **values}}


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "not an object": (lambda s: [s], "settings with version, .* got list"),
    "a field more": (lambda s: {**s, "extra": 1}, "got .*extra"),
    "a field less": (lambda s: {k: v for k, v in s.items() if k != "pruning"}, "settings with"),
    "version": (lambda s: {**s, "version": 1}, "version 2 is what this program reads, got 1"),
    "method": (lambda s: {**s, "pruning": {**s["pruning"], "method": "l1"}}, "pruning method must be one of"),
    "device": (lambda s: {**s, "device": "tpu"}, "device is 'tpu', expected cpu or cuda"),
    "dtype": (lambda s: {**s, "dtype": None}, "dtype is None, expected float32 or float16 or bfloat16"),
    "sparsity": (lambda s: {**s, "pruning": {**s["pruning"], "sparsity": "x"}}, "sparsity must be a number"),
    "no pruning": (lambda s: {**s, "pruning": None}, "pruning is missing"),
    "hash": (lambda s: {**s, "model_sha256": 3}, "model_sha256 is 3"),
    "hash of two lines": (lambda s: {**s, "model_sha256": "0" * 63 + "\n"}, "model_sha256 is '000"),
    "version of another type": (lambda s: {**s, "version": True}, "version 2 is what this program reads, got True"),
    "output": (lambda s: {**s, "output": True}, "output is True"),
    "seed": (lambda s: {**s, "pruning": {**s["pruning"], "seed": True}}, "seed must be an integer"),
    "half a pixel": (lambda s: {**s, "preset": {**s["preset"], "size": [112.5, 112]}}, r"integers of 1 to 4096"),
    "too many pixels": (lambda s: {**s, "preset": {**s["preset"], "size": [10**6, 112]}}, r"integers of 1 to 4096"),
    "preset": (lambda s: {**s, "preset": {**s["preset"], "std": [0, 1, 1]}}, "expected std above 0"),
    "no calibration": (lambda s: {**s, "calibration": [1]}, "a calibration with prior, .* got list"),
    "part of one": (lambda s: {**s, "calibration": {"prior": "norm"}}, "a calibration with prior, .* got prior"),
    "huge number": (lambda s: change_calibration(s, offset=10**400), "expected finite numbers as radius"),
    "nan": (lambda s: change_calibration(s, offset=math.nan), "got NaN"),
    "prior": (lambda s: change_calibration(s, prior="score"), "prior is 'score', expected 'norm' or 'distance'"),
    "layers": (lambda s: change_calibration(s, layers=[1, 2]), "layers are .*, expected names"),
    "one layer twice": (lambda s: change_calibration(s, layers=["a", "a"]), "expected at most 64 different layers"),
    "centre": (lambda s: change_calibration(s, centre=[1]), "expected 3 numbers as centre"),
    "no number": (lambda s: change_calibration(s, correction=[0, None, 0]), "expected finite numbers as correction"),
    "rows": (lambda s: change_calibration(s, precision=[[1, 0, 0]]), "expected a precision of 3 rows"),
    "a short row": (lambda s: change_calibration(s, precision=[[1, 0]] * 3), "expected 3 numbers as row of precision"),
    "no rows": (lambda s: change_calibration(s, precision=[1, 2, 3]), "expected 3 numbers as row of precision"),
    "slope": (lambda s: change_calibration(s, slope=-1), "expected radius and slope above 0"),
    "reliability": (lambda s: change_calibration(s, reliability=[[1, 2]]), "expected 3 numbers as bin of reliability"),
    "left out": (lambda s: change_calibration(s, left_out=[1]), "left_out is"),
    "thresholds": (lambda s: change_calibration(s, thresholds=[1, 2]), "expected 3 numbers as thresholds"),
    "faces": (lambda s: change_calibration(s, faces=True), "faces is True"),
    "ranking": (lambda s: {**s, "rank_by": ["norm"]}, "expected rank_by 'calibrated', .* got \\['norm'\\]"),
    "calibrated": (lambda s: {**s, "rank_by": "calibrated"}, "expected settings with a calibration to rank by"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files(what: str, scorer: Scorer, tmp_path: Path) -> None:
    change, message = BAD[what]
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(change(json.loads(scorer.settings.to_json()))))
    with pytest.raises(ValueError, match=rf"expected a Scorer's settings in {path}: .*{message}") as error:
        Settings.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (1 << 21), rb'{"\u001b[31m\u202e": 1}']
)
def test_files_of_something_else(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="expected a Scorer's settings in") as error:
        Settings.load(path)
    assert str(error.value).isprintable()
    with pytest.raises(
        OSError, match=r"cannot read .* \(expected a file, got a folder\); name a file with a Scorer's settings"
    ):
        Settings.load(tmp_path)


def test_copied_and_pickled(scorer: Scorer, images: Tensor) -> None:
    expected = scorer(images)
    for copied in (copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):
        assert copied.settings == scorer.settings
        for ours, theirs in zip(copied(images), expected, strict=True):
            assert torch.equal(ours, theirs)
    assert len(pickle.dumps(scorer)) < 3 * scorer.resident_bytes


def test_threads(scorer: Scorer) -> None:
    batches = [pictures(count, 32, seed=count) for count in (1, 5, 17, 2, 33, 8)]
    expected = [scorer(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for output, wanted in zip(pool.map(scorer, batches), expected, strict=True):
                for ours, theirs in zip(output, wanted, strict=True):
                    assert torch.equal(ours, theirs)


def test_a_scorer_in_a_process_of_its_own(scorer: Scorer, images: Tensor) -> None:
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        (output,) = pool.map(scorer, [images])
    for ours, theirs in zip(output, scorer(images), strict=True):
        assert torch.equal(ours, theirs)


def test_a_scorer_stays_where_it_is(scorer: Scorer) -> None:
    assert scorer.to("cpu") is scorer
    assert scorer.to(torch.float32) is scorer
    for move in (lambda: scorer.to(torch.float64), lambda: scorer.half(), lambda: scorer.to("meta")):
        with pytest.raises(ValueError, match="a Scorer stays where it was made"):
            move()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, faces: tuple[Tensor, list[str]]) -> Path:
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("faces")
    for index, image in enumerate(faces[0][:24]):
        cv2.imwrite(str(folder / f"{index:02}.png"), image.permute(1, 2, 0).numpy()[..., ::-1])
    return folder


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("option", [("--sparsity", "0.4"), ("--preset", "arcface"), ("--scope", "layer")])
def test_settings_say_it_already(option: tuple[str, str], folder: Path, sface_file: Path, tmp_path: Path) -> None:
    Settings("sface", "0" * 64, Preset.resolve("sface"), Pruning(), *FLOAT32).save(tmp_path / "settings.json")
    command = ["score", str(folder), "--aligned", "--settings", str(tmp_path / "settings.json")]
    result = CliRunner().invoke(main, [*command, *option])
    assert result.exit_code == 2
    assert f"--settings says {option[0][2:]} already" in result.stderr
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "expected the model that these settings were made with" in result.stderr


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "settings.json names no model, it was made from Python: give --model FILE"),
        ("gone.onnx", "--settings: no such model or file: gone.onnx; known: sface, "),
    ],
)
def test_the_model_of_settings_is_looked_for_first(
    model: str | None, message: str, folder: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.json"
    Settings(model, "0" * 64, Preset.resolve("sface"), Pruning(), *FLOAT32).save(settings)
    result = CliRunner().invoke(main, ["score", str(folder), "--settings", str(settings)])
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_network_without_preset(network: nn.Module) -> None:
    x = network_input(pictures(3, 32))
    scorer = Scorer(network, example=x)
    again = Scorer.from_settings(scorer.settings, network, example=x)
    assert torch.equal(again(x).distance, scorer(x).distance)
