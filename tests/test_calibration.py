"""The calibrated score from faces to settings: in Python, by the command, and on real faces."""

from __future__ import annotations

import contextlib
import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from calibrations import make_calibration
from click.testing import CliRunner, Result
from conftest import list_face_files
from networks import calibrated, pictures
from PIL import Image
from torch import Tensor, nn

from prefiqs_ext import Preset, Pruning, Scorer, Settings, calibrate, methods
from prefiqs_ext.calibration.fit import Correction, compute_logistic
from prefiqs_ext.cli import main
from prefiqs_ext.evaluation.image_set import ImageSet
from prefiqs_ext.evaluation.inference import MethodTask, Scoring
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.faces import read_rgb
from prefiqs_ext.faces.degrade import blur

PRESET = Preset("small", (32, 32), "bgr", (127.5, 120, 110), (127.5,) * 3)
NETWORK = {"pruning": Pruning(sparsity=0.3), "preset": PRESET}

pytestmark = pytest.mark.filterwarnings("ignore:calibrate. .* make a rough score")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return calibrated("residual")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return pictures(80, 32, seed=3)


@pytest.fixture(scope="module")
def settings(network: nn.Module, images: Tensor) -> Settings:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calibrate(images, network, **NETWORK)


@pytest.mark.parametrize("prior", ["norm", "distance"])
def test_formula(prior: str) -> None:
    """The tensors that score follow the formula that was fitted, in NumPy."""
    calibration = make_calibration(("a", "b", "c"), prior=prior, seed=4)  # type: ignore[arg-type]
    random = np.random.default_rng(5)
    distance, norm, layers = random.uniform(0.01, 2, 50), random.uniform(1, 30, 50), random.uniform(0.5, 90, (50, 3))
    features = np.log(np.column_stack([norm if prior == "norm" else 1 / distance, layers]))
    correction = Correction(
        np.array(calibration.centre),
        np.array(calibration.precision),
        calibration.radius,
        np.array(calibration.correction),
    )
    expected = 100 * compute_logistic(correction(features), calibration.offset, calibration.slope)
    got = calibration(*(torch.from_numpy(values) for values in (distance, norm, layers)))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)  # float32
    unknown = calibration(torch.tensor([torch.nan]), torch.tensor([torch.nan]), torch.ones(1, 3))
    assert bool(unknown.isnan().all())


def test_from_faces_to_a_score(settings: Settings, network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    calibration = settings.calibration
    assert calibration is not None
    assert settings.recalibration is not None
    assert calibration.faces == 80
    assert len(calibration.layers) == len(set(calibration.layers)) > 2
    settings.save(tmp_path / "settings.json")
    scorer = Scorer.from_settings(tmp_path / "settings.json", network)
    assert scorer.rank_by == "calibrated"
    out = scorer(images)
    assert torch.equal(out.score, calibration(out.distance, out.embedding_norm, out.layer_norms))
    assert float(out.score.min()) > 0
    assert float(out.score.max()) < 100
    for share, threshold in zip((0.01, 0.05, 0.1), calibration.thresholds, strict=True):
        assert threshold == pytest.approx(np.quantile(out.score.double().numpy(), share), abs=1e-3)
    assert torch.equal(scorer(images[3:5]).score, out.score[3:5])
    # The norms are those of the layers' outputs; a Scorer that is asked for them gives the same.
    plain = Scorer(network, **NETWORK, layers=calibration.layers)
    assert torch.equal(plain(images).layer_norms, out.layer_norms)
    assert Scorer(network, **NETWORK)(images[:2]).layer_norms.shape == (2, 0)
    assert "60" in calibration.describe()
    with pytest.raises(ValueError, match="expected fold=True with a calibration"):
        Scorer.from_settings(settings, network, fold=False)


def test_the_seed_alone_decides(settings: Settings, network: nn.Module, images: Tensor) -> None:
    assert calibrate(images, network, **NETWORK).to_json() == settings.to_json()
    array = images.flip(1).permute(0, 2, 3, 1).numpy()
    assert calibrate(array, network, **NETWORK, colour="bgr").calibration == settings.calibration
    assert calibrate(images, network, **NETWORK, seed=1).calibration != settings.calibration


def test_refused_and_said(network: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match="expected 50 or more different faces, got 49"):
        calibrate(torch.cat([images[:49], images[:30]]), network, **NETWORK)
    with pytest.raises(ValueError, match="expected 50 or more different faces, got 2:"):
        calibrate(images[:2], network, **NETWORK)
    with pytest.raises(ValueError, match="seed"):
        calibrate(images, network, **NETWORK, seed=-1)
    with pytest.warns(UserWarning, match="80 faces make a rough score"):
        calibrate(images, network, **NETWORK)
    one = pictures(1, 32, seed=8).int() + torch.randint(
        -3, 4, (60, 3, 32, 32), generator=torch.Generator().manual_seed(0)
    )
    with (
        pytest.warns(UserWarning, match=r"as alike as photos of one person \(median angle \d+ degrees between"),
        contextlib.suppress(InputError),  # it may be refused after all
    ):
        calibrate(one.clamp(0, 255).to(torch.uint8), network, **NETWORK)


class Blind(nn.Module):
    """Its embedding is noise that depends on every bit of an image, so no copy is like its face."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1000 * self.linear(self.conv(x).mean((2, 3))))


def test_a_network_that_recognises_nothing(images: Tensor) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"^calibrate: .* typical, mostly good faces, and check that the preset"):
        calibrate(images, Blind().eval(), **NETWORK)


def test_a_network_that_normalises_itself(network: nn.Module, images: Tensor) -> None:
    """Its norm says nothing, so D is what is corrected."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.normalize(self.network(x))

    settings = calibrate(images, Normalised().eval(), **NETWORK)
    assert settings.calibration is not None
    assert settings.calibration.prior == "distance"


def test_method(settings: Settings, network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    method = methods.create("calibrated", network, PRESET, pruning=Pruning(sparsity=0.3))
    with pytest.raises(ValueError, match="call fit"):
        method.score(images)
    assert torch.equal(method.fit(images).score(images), Scorer.from_settings(settings, network)(images).score)
    files = []
    for index, image in enumerate(images):
        files.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    again = methods.create("calibrated", network, PRESET, pruning=Pruning(sparsity=0.3))
    scoring = Scoring(network, PRESET, Pruning(sparsity=0.3))
    qualities, _ = scoring.compute_qualities([MethodTask(again, ImageSet(files))], ImageSet(files), 0)
    assert np.array_equal(qualities["calibrated"], method.score(images).numpy())


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_real_faces_by_the_command(sface_file: Path, tmp_path: Path) -> None:
    """Blurred faces of other people score lower, and the score says about how much."""
    files = list_face_files(least=80)
    known, others = tmp_path / "known", tmp_path / "others"
    known.mkdir()
    others.mkdir()
    for index, file in enumerate(files[:80]):
        image = read_rgb(file)
        if index < 60:
            Image.fromarray(image).save(known / f"{index}.png")
            continue
        for name, version in (("clean", image), ("blurred", blur(image, 3.5))):
            Image.fromarray(version).save(others / f"{index}-{name}.png")
    (known / "text.png").write_text("text")
    written = tmp_path / "settings.json"
    with pytest.warns(UserWarning, match="60 faces make a rough score") as caught:
        result = run("calibrate", known, "--aligned", "-o", written, "--workers", 0)
    assert not [str(each.message) for each in caught if "alike" in str(each.message)]
    assert "61 files: 60 ok, 1 unreadable; settings written to" in result.stderr
    assert "A score of 60 means an expected cosine of 0.60 between the face and a good image" in result.stdout
    values = json.loads(written.read_text())["calibration"]
    assert values["prior"] == "norm"
    assert 2 < values["error"] < 25
    scored = run("score", others, "--aligned", "--settings", written, "--workers", 0).stdout
    scores = {Path(row["path"]).stem: float(row["score"]) for row in csv.DictReader(scored.splitlines())}
    pairs = [(scores[f"{index}-clean"], scores[f"{index}-blurred"]) for index in range(60, 80)]
    assert sum(clean > blurred + 5 for clean, blurred in pairs) >= 18
    # Against what the network itself says of the blurred ones.
    out = Scorer("sface")([str(others / f"{i}-{name}.png") for name in ("clean", "blurred") for i in range(60, 80)])
    found = 100 * (out.embedding[:20] * out.embedding[20:]).sum(1).mean()
    # Of a single kind, whose mean is off by more than that of all kinds: by 15 points when this was written.
    assert float(np.mean([blurred for _, blurred in pairs])) == pytest.approx(float(found), abs=20)
    for words, message in (
        ((known / "text.png",), "no face to calibrate on; 1 file: 1 unreadable"),
        ((others,), "expected 50 or more different faces, got 40"),
    ):
        refused = run("calibrate", *words, "--aligned", "-o", tmp_path / "no.json", "--workers", 0, code=1)
        assert message in refused.stderr
    assert not (tmp_path / "no.json").exists()
