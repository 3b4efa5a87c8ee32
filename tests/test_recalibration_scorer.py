"""A recalibrated Scorer: against the reference, in settings, in a pickle, as a method and in an evaluation."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from duals import seeded
from networks import calibrated, network_input, pictures
from PIL import Image
from recalibrated import embed_recalibrated
from torch import Tensor, nn

from prefiqs_ext import Preset, Pruning, Recalibration, Scorer, Settings, methods, reference
from prefiqs_ext.evaluation.cache import MemoryCache
from prefiqs_ext.evaluation.datasets.sources import EncodedCrop
from prefiqs_ext.evaluation.image_set import ImageSet
from prefiqs_ext.evaluation.inference import MethodTask, Scoring
from prefiqs_ext.exceptions import NotFittedError
from prefiqs_ext.inputs import MOST_RECALIBRATING
from prefiqs_ext.methods.method import Method

PRESET = Preset("small", (32, 32), "bgr", (127.5, 120, 110), (127.5,) * 3)
FACES, IMAGES = pictures(12, 32, seed=5), pictures(6, 32)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return calibrated("groups")


@pytest.fixture(scope="module")
def scorer(network: nn.Module) -> Scorer:
    return Scorer(network, recalibrate=FACES, preset=PRESET)


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return all(map(torch.equal, ours, theirs))


def test_real_faces(sface: nn.Module, crops: Tensor) -> None:
    """SFace: D to 1e-5 of two plain models in float64, and less of it than without."""
    preset = Preset.resolve("sface")
    scorer, images = Scorer(sface, recalibrate=crops[:8], preset=preset), crops[8:10]
    assert scorer.recalibration is not None
    out = scorer(images)
    constants = {name: (g.double(), s.double()) for name, (g, s) in scorer.recalibration.layers.items()}
    masks, x = Pruning().make_masks(sface), preset.normalize()(images)
    dense, pruned = embed_recalibrated(sface, masks, constants, x)
    for ours, expected in (
        (out.embedding, dense),
        (out.pruned_embedding, pruned),
        (out.distance, (dense - pruned).norm(dim=1)),
    ):
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5)
    _, plain = embed_recalibrated(sface, masks, {}, x)
    assert out.distance.median() < 0.7 * (dense - plain).norm(dim=1).median()


def test_every_kind_of_images(network: nn.Module, scorer: Scorer) -> None:
    """As the Scorer itself takes them; and the constants of another Scorer."""
    assert scorer.recalibration is not None
    arrays = [face.permute(1, 2, 0).numpy() for face in FACES]
    for given in (FACES / 255, arrays, [Image.fromarray(array) for array in arrays], scorer.recalibration):
        again = Scorer(network, recalibrate=given, preset=PRESET)
        torch.testing.assert_close(again(IMAGES).distance, scorer(IMAGES).distance, rtol=0, atol=1e-6)
    expected = reference.score(network, IMAGES, preset=PRESET, recalibration=scorer.recalibration)
    torch.testing.assert_close(scorer(IMAGES).distance.double(), expected.distance, rtol=0, atol=1e-5)


def test_masks_of_ones_own_and_no_preset(network: nn.Module, scorer: Scorer) -> None:
    masks = Pruning().make_masks(network)
    assert Scorer(network, masks, recalibrate=FACES, preset=PRESET).recalibration == scorer.recalibration
    x = network_input(FACES)
    bare = Scorer(network, recalibrate=x, example=x)
    expected = reference.score(network, x, recalibration=bare.recalibration)
    torch.testing.assert_close(bare(x).distance.double(), expected.distance, rtol=0, atol=1e-5)


def test_of_many_images_some_are_drawn_evenly() -> None:
    """Every other of 256: the first of each two equal ones."""
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
    few = torch.randn(MOST_RECALIBRATING, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    many = torch.stack([few, -few], dim=1).flatten(0, 1)
    found = [Scorer(model, recalibrate=x, example=few).recalibration for x in (few, many)]
    assert found[0] == found[1]
    assert found[0] != Scorer(model, recalibrate=few[1:], example=few).recalibration


def test_settings_keep_the_constants(network: nn.Module, scorer: Scorer, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    scorer.settings.save(path)
    settings = Settings.load(path)
    assert settings == scorer.settings
    assert hash(settings) == hash(scorer.settings)
    assert settings.recalibration == scorer.recalibration is not None
    assert same(Scorer.from_settings(path, network, chunk=2)(IMAGES), scorer(IMAGES))
    plain = Scorer(network, preset=PRESET)
    assert plain.settings.recalibration is None
    assert plain.settings != settings
    assert not torch.equal(plain(IMAGES).distance, scorer(IMAGES).distance)
    # Other weights than the constants were found for.
    with pytest.raises(ValueError, match="expected the model that these settings were made with"):
        Scorer.from_settings(path, calibrated("groups", seed=1))


def test_pickled(scorer: Scorer) -> None:
    again = pickle.loads(pickle.dumps(scorer))
    assert same(again(IMAGES), scorer(IMAGES))
    assert again.recalibration == scorer.recalibration


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a list": (lambda layers: [layers], "expected an object of layers"),
    "numbers": (lambda layers: {**layers, "0": {"gain": [1.0], "shift": [0.0]}}, "in base64 for '0': it is list"),
    "no base64": (lambda layers: {**layers, "0": {"gain": "?", "shift": ""}}, "in base64 for '0': "),
    "three bytes": (lambda layers: {**layers, "0": {"gain": "AAAA", "shift": "AAAA"}}, "in base64 for '0': "),
    "no numbers": (lambda layers: {**layers, "0": {"gain": "", "shift": ""}}, r"for '0', got torch.float32 \[0\]"),
    "a gain of 0": (lambda layers: {**layers, "0": {"gain": "AAAAAA==", "shift": "AAAAAA=="}}, "expected gains from"),
    "no shift": (lambda layers: {**layers, "0": {"gain": "AAAAAA=="}}, "constants of '0' with gain, shift, got gain"),
    "infinity": (lambda layers: {"0": {"gain": "AACAPw==", "shift": "AACAfw=="}}, "expected finite gains and shifts"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_settings(what: str, scorer: Scorer, tmp_path: Path) -> None:
    change, message = BAD[what]
    values, path = json.loads(scorer.settings.to_json()), tmp_path / "settings.json"
    values["recalibration"] = change(values["recalibration"])
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"expected a Scorer's settings in {path}: .*{message}") as error:
        Settings.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (FACES[:7], "expected 8 or more different images to recalibrate on, got 7"),
        (FACES[:0], "expected 8 or more different images to recalibrate on, got 0"),
        (FACES[:1].expand(9, -1, -1, -1), "expected 8 or more different images to recalibrate on, got equal ones"),
        (FACES[:, :, 1:], r"expected images \[N, 3, 32, 32\]"),
        (FACES.float(), r"expected floating images in \[0, 1\]"),
        (FACES / 255 * torch.nan, "expected finite values, got NaN or infinity in rows 0, 1"),
        (True, "expected a tensor, a NumPy array, .* got bool"),
        ({"0": 1}, "got dict"),
    ],
)
def test_images_that_do_not_serve(network: nn.Module, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scorer(network, recalibrate=given, preset=PRESET)


def test_constants_of_another_network(network: nn.Module, scorer: Scorer) -> None:
    other = Scorer(calibrated("residual"), recalibrate=FACES, preset=PRESET).recalibration
    assert isinstance(other, Recalibration)
    with pytest.raises(ValueError, match="expected the recalibration of this network and pruning, got one of"):
        Scorer(network, recalibrate=other, preset=PRESET)
    with pytest.raises(ValueError, match="which is pruned"):
        Scorer(network, Pruning(layers="conv+linear"), recalibrate=scorer.recalibration, preset=PRESET)


def test_as_a_method(network: nn.Module, scorer: Scorer) -> None:
    method = methods.create("prefiqs-recalibrated", network, PRESET)
    assert (method.fit_images, method.higher_is_better) == (200, False)
    with pytest.raises(NotFittedError, match=r"prefiqs-recalibrated: call fit\(\) first"):
        method.score(IMAGES)
    assert torch.equal(method.fit(FACES).score(IMAGES), scorer(IMAGES).distance)
    # A second fit takes the place of the first.
    other = Scorer(network, recalibrate=FACES[:8], preset=PRESET)(IMAGES).distance
    assert torch.equal(method.fit(FACES[:8]).score(IMAGES), other)


def image_set(images: Tensor, cache: Any) -> ImageSet:
    sources = []
    for index, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
        sources.append(EncodedCrop(file.getvalue(), f"image {index}"))
    return ImageSet(sources, cache)


def compute_quality(scoring: Scoring, method: Method, images: ImageSet, fit_on: ImageSet) -> Any:
    return scoring.compute_qualities([MethodTask(method, fit_on)], images, 0)[0][method.name]


def test_in_an_evaluation(network: nn.Module, scorer: Scorer) -> None:
    """What the cache keeps depends on the images of the fit; plain D beside it stays plain."""
    cache = MemoryCache()
    scoring, images = Scoring(network, PRESET, Pruning()), image_set(IMAGES, cache)
    plain, recalibrated = (methods.create(name, network, PRESET) for name in ("prefiqs", "prefiqs-recalibrated"))
    fits = [image_set(FACES[:count], cache) for count in (12, 8, 12)]
    found = [compute_quality(scoring, recalibrated, images, fit_on) for fit_on in fits]
    assert torch.equal(-torch.from_numpy(found[0]), scorer(IMAGES).distance)
    assert (found[0] == found[2]).all()
    assert (found[0] != found[1]).any()
    own = -torch.from_numpy(compute_quality(scoring, plain, images, fits[0]))
    assert torch.equal(own, Scorer(network, preset=PRESET)(IMAGES).distance)
