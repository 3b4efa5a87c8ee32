"""What an evaluation does once: it reads an image, makes a Scorer, runs a watched pass and compares two images."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import calibrate, network_input, pictures
from PIL import Image
from torch import Tensor, nn

from prefiqs_ext import Preset, Pruning, methods
from prefiqs_ext.evaluation import all_pairs, bootstrap, cache, image_set, inference
from prefiqs_ext.evaluation.comparison import Protocol, compare
from prefiqs_ext.evaluation.datasets import sources
from prefiqs_ext.evaluation.datasets.readers import Images
from prefiqs_ext.evaluation.face_network import FaceNetwork
from prefiqs_ext.evaluation.image_set import ImageSet
from prefiqs_ext.evaluation.inference import MethodTask, Scoring
from prefiqs_ext.evaluation.runner import EvaluationOptions, run_evaluation
from prefiqs_ext.methods.network_method import score_together
from tests.test_evaluation_edc import faces

PRESET = Preset("small", (32, 32), "bgr", (127.5, 120, 110), (127.5,) * 3)
METHODS = (
    *("prefiqs", "prefiqs-recalibrated", "grafiqs", "froq", "serfiq"),
    *("norm", "prefiqs+norm", "random", "sharpness", "brightness"),
)


class Staged(nn.Module):
    """Four stages with batch norm, and a dropout before the embedding: GraFIQs, FROQ and SER-FIQ all take it."""

    def __init__(self) -> None:
        super().__init__()
        for index, (channels, filters) in enumerate(((3, 8), (8, 8), (8, 16), (16, 16)), 1):
            layers = nn.Conv2d(channels, filters, 3, 1 if index == 1 else 2, 1), nn.BatchNorm2d(filters), nn.ReLU()
            self.add_module(f"layer{index}", nn.Sequential(*layers))
        self.norm = nn.BatchNorm2d(16)  # behind the last stage, where GraFIQs wants one
        self.dropout, self.fc = nn.Dropout(0.4), nn.Linear(16 * 16, 24)

    def forward(self, x: Tensor) -> Tensor:
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x)
        return self.fc(self.dropout(self.norm(x).flatten(1)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return calibrate(Staged(), network_input(pictures(16, 32, seed=1))).eval()


def save(pictures: Tensor, folder: Path, per_person: int) -> list[str]:
    files = []
    for index, picture in enumerate(pictures):
        files.append(folder / f"p{index // per_person}" / f"{index:02}.png")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(files[-1])
    return list(map(str, files))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(cache, "get_cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("prefiqs_ext.evaluation.plot.plot_edc", lambda *_: None)  # pictures take most of the time
    save(pictures(20, 32, seed=9), tmp_path / "fit", 5)
    base = pictures(5, 32, seed=4).float().repeat_interleave(5, 0)
    noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(1))
    noisy = base + torch.linspace(0, 30, 5).repeat(5).view(-1, 1, 1, 1) * noise
    return save(noisy.round().clamp(0, 255).to(torch.uint8), tmp_path / "data", 5)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was decoded."""
    found: Counter[str] = Counter()
    read = sources.read_rgb

    def count(path: str) -> np.ndarray:
        found[path] += 1
        return read(path)

    monkeypatch.setattr(sources, "read_rgb", count)
    return found


def test_each_image_is_read_once_and_each_scorer_made_once(
    files: list[str], reads: Counter[str], network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorers = []

    class CountedScorer(inference.Scorer):  # type: ignore[name-defined,misc]
        def __init__(self, *arguments: object, **named: object) -> None:
            scorers.append(named.get("recalibrate") is not None)
            super().__init__(*arguments, **named)

    monkeypatch.setattr(inference, "Scorer", CountedScorer)
    options = EvaluationOptions(
        tmp_path / "data",
        FaceNetwork(network, PRESET),
        methods=METHODS,
        fit_on=tmp_path / "fit",
        max_discard=0.3,
        resamples=0,
    )
    evaluation = run_evaluation(options, tmp_path / "out")
    assert tuple(evaluation.results[0].comparison.curves) == METHODS
    assert [reads[file] for file in files] == [2] + [1] * 24  # the size of the first is checked before
    assert sorted(scorers) == [False, True]  # with and without recalibration
    reads.clear()
    run_evaluation(options, tmp_path / "out")
    assert [reads[file] for file in files] == [1] + [0] * 24
    assert len(scorers) == 2


def make_tasks(network: nn.Module, names: tuple[str, ...], fit_on: ImageSet) -> list[MethodTask]:
    return [MethodTask(methods.create(name, network, PRESET), fit_on) for name in names]


def test_together_as_alone(files: list[str], network: nn.Module) -> None:
    scoring = Scoring(network, PRESET, Pruning())

    def compute(*names: str) -> dict[str, np.ndarray]:
        images = ImageSet(files, cache.MemoryCache())
        return scoring.compute_qualities(make_tasks(network, names, images), images, 0)[0]

    names = tuple(name for name in METHODS if name != "froq")  # its fit is slow; its pass is tested below
    together = compute(*names)
    assert tuple(together) == names
    for name in names:
        np.testing.assert_array_equal(compute(name)[name], together[name])


def test_methods_that_watch_share_a_pass(network: nn.Module) -> None:
    images = pictures(21, 32, seed=6)
    watching = [methods.create(name, network, PRESET).fit(images) for name in ("grafiqs", "froq")]
    alone = [method.score(images) for method in watching]
    rows: list[int] = []
    with network.register_forward_hook(lambda _module, _args, output: rows.append(len(output))):
        together = score_together([*watching, methods.create("sharpness", network, PRESET)], images)
    assert rows == [8, 8, 5]
    for one, other in zip(alone, together, strict=False):
        assert torch.equal(one, other)
    assert not torch.equal(*alone)


def test_an_interrupted_run_goes_on(
    files: list[str], reads: Counter[str], network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_set, "_BLOCK", 8)
    names = ("prefiqs", "norm", "grafiqs", "sharpness")
    scoring, images = Scoring(network, PRESET, Pruning()), ImageSet(files)
    count = sources.read_rgb

    def interrupt(path: str) -> np.ndarray:
        if path == files[18]:
            raise KeyboardInterrupt
        return count(path)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "read_rgb", interrupt)
        with pytest.raises(KeyboardInterrupt):
            scoring.compute_qualities(make_tasks(network, names, images), images, 0)
    reads.clear()
    found, scored = scoring.compute_qualities(make_tasks(network, names, images), images, 0, embed=True)
    assert sorted(reads) == files[16:]  # two blocks were kept
    whole = ImageSet(files, cache.MemoryCache())
    expected, expected_scored = scoring.compute_qualities(make_tasks(network, names, whole), whole, 0, embed=True)
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name])
    assert scored is not None
    assert expected_scored is not None
    np.testing.assert_array_equal(scored.embeddings, expected_scored.embeddings)


def test_pairs_are_passed_once_for_all_methods_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, who, quality = faces(5, identities=20)
    qualities = {"a": quality, "tied": np.round(quality), "none": np.zeros(len(quality))}
    passes: Counter[str] = Counter()
    for module in (all_pairs, bootstrap):
        iterate = module.iterate_blocks  # type: ignore[attr-defined]

        def count(*arguments: object, name: str = module.__name__, iterate: object = iterate) -> object:
            passes[name.rpartition(".")[2]] += 1
            return iterate(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(module, "iterate_blocks", count)
    protocol = Protocol(fmrs=(0.1, 0.05, 0.01), max_discard=0.3, resamples=3)
    data = Images([str(index) for index in range(len(who))], who)
    found = compare(data, embeddings, qualities, protocol)
    assert passes == {"all_pairs": 2, "bootstrap": 1}
    for name, of_images in qualities.items():
        alone = compare(data, embeddings, {name: of_images}, protocol)
        for one, other in zip(alone.curves[name], found.curves[name], strict=True):
            np.testing.assert_array_equal(one.fnmr, other.fnmr)
            np.testing.assert_array_equal(one.thresholds, other.thresholds)
        for fmr, draws in found.draws.items():
            np.testing.assert_array_equal(draws.pauc[name], alone.draws[fmr].pauc[name])
