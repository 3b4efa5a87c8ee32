"""Evaluations from Python, without the command line."""

import json
import pickle
import subprocess
import sys

import numpy as np
import paper_benchmark_sets as sets
import pytest
import torch
from networks import calibrated, pictures
from PIL import Image

from prefiqs_ext import Preset, Pruning, Scorer
from prefiqs_ext.evaluation import cache, runner
from prefiqs_ext.evaluation.all_pairs import compute_all_pairs_curves
from prefiqs_ext.evaluation.face_network import FaceNetwork
from prefiqs_ext.evaluation.runner import EvaluationOptions, run_evaluation
from prefiqs_ext.evaluation.score_files import ScoreFile
from prefiqs_ext.exceptions import (
    InputError,
    MissingPackageError,
    MissingWeightsError,
    OutOfMemoryError,
    PrefiqsError,
)

PRESET = Preset("small", (32, 32), "rgb", (127.5,) * 3, (127.5,) * 3)
WHO = np.repeat(np.arange(4), 6)
RATIOS = np.arange(7) / 20


def noisy_people():
    """uint8 [24, 3, 32, 32]: four people of six pictures with more and more noise, so that some mated pairs fail."""
    base = pictures(4, 32, seed=4).float().repeat_interleave(6, 0)
    strength = torch.linspace(0, 30, 6).repeat(4).view(-1, 1, 1, 1)
    noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(1))
    return (base + strength * noise).round().clamp(0, 255).to(torch.uint8)


IMAGES = noisy_people()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """IMAGES, in one folder per person."""
    monkeypatch.setattr(cache, "get_cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("prefiqs_ext.evaluation.plot.plot_edc", lambda *_: None)  # pictures take most of the time
    monkeypatch.chdir(tmp_path)
    for index, picture in enumerate(IMAGES):
        save(picture, tmp_path / "data" / f"p{index // 6}" / f"{index:02}.png")
    return tmp_path / "data"


def save(picture, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)


@pytest.fixture(scope="module")
def network():
    return FaceNetwork(calibrated("mobile"), PRESET)


def options_of(data, network, **others):
    return EvaluationOptions(data, network, **{"max_discard": 0.3, "resamples": 0, "methods": ()} | others)


def area(evaluation, name, index=0):
    """pAUC at the only FMR that 216 non-mated pairs measure."""
    return evaluation.results[index].comparison.curves[name][0].area(0.3)


def area_by_hand(embeddings, quality):
    return compute_all_pairs_curves(embeddings, WHO, quality, ratios=RATIOS)[0].area(0.3)


def test_a_network_in_memory(data, network):
    """A module, pruned as asked, gives the areas of its own Scorer; without a folder nothing is written."""
    pruning = Pruning(sparsity=0.3)
    before = sorted(data.parent.iterdir())
    evaluation = run_evaluation(
        options_of(data, network, pruning=pruning, methods=("prefiqs", "norm", "norm"), use_cache=False)
    )
    assert sorted(data.parent.iterdir()) == before
    scored = Scorer(network.model, pruning, preset=PRESET)(IMAGES)
    embeddings = scored.embedding.numpy()
    expected = {"prefiqs": -scored.distance.numpy(), "norm": scored.embedding_norm.numpy()}
    areas = {name: area_by_hand(embeddings, quality) for name, quality in expected.items()}
    assert len(set(areas.values())) == 2
    # Rounding of sums whose order the blocks of pairs decide.
    assert {name: area(evaluation, name) for name in areas} == pytest.approx(areas, rel=1e-9)
    (result,) = evaluation.results
    assert (result.data, result.images, result.verifier) == ("data", 24, network.name)
    assert evaluation.networks[network.name]["preset"]["size"] == PRESET.size
    assert evaluation.format()[0].startswith("data: 24 images, 60 mated and 216 non-mated pairs")


def test_without_matplotlib(data, network, monkeypatch):
    """Only the pictures need it; that it is missing is said before the work."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_evaluation(options_of(data, network, methods=["brightness"])).results
    monkeypatch.setattr(runner, "read_data", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(MissingPackageError, match="matplotlib is missing"):
        run_evaluation(options_of(data, network, methods=["brightness"]), data.parent / "out")


def test_no_module_needs_matplotlib_to_be_imported():
    modules = "evaluation.runner, prefiqs_ext.analysis.tuning_runner, prefiqs_ext.analysis.runner"
    code = f"import sys; sys.modules['matplotlib'] = None; import prefiqs_ext.{modules}, prefiqs_ext.cli.tune"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", [OutOfMemoryError, MissingPackageError, MissingWeightsError])
def test_a_machine_that_lacks_something_ends_the_run(kind, tmp_path, monkeypatch):
    """It is no fault of one benchmark."""

    def fail(*_):
        raise kind("too little")

    sets.write_bin(tmp_path / "lfw.bin", 0)
    network = FaceNetwork(calibrated("residual"), Preset("large", (112, 112), "rgb", (127.5,) * 3, (127.5,) * 3))
    options = options_of(tmp_path, network, methods=["brightness"], paper=True)
    for name in ("compute", "check"):
        monkeypatch.setattr(runner._Networks, name, fail)
        with pytest.raises(kind, match=r"^too little$"):
            run_evaluation(options)


def test_other_scores_and_other_networks(data, network):
    """Scores from a file, turned round, are the same whatever compares; each network gives its own result."""
    scores = np.random.default_rng(0).permutation(24) / 7
    files = sorted(data.glob("*/*.png"))
    (data.parent / "theirs.txt").write_text(
        "".join(f"{file} {score}\n" for file, score in zip(files, scores, strict=True))
    )
    theirs = ScoreFile("theirs", data.parent / "theirs.txt", higher_is_better=False)
    other = FaceNetwork(calibrated("residual"), PRESET)
    others = {"scores": [theirs], "verifiers": [network, other], "allow_duplicates": True}
    evaluation = run_evaluation(options_of(data, network, **others), data.parent / "out")
    for index, each in enumerate((network, other)):
        assert evaluation.results[index].verifier == each.name
        embeddings = Scorer(each.model, preset=PRESET)(IMAGES).embedding.numpy()
        assert area(evaluation, "theirs", index) == pytest.approx(area_by_hand(embeddings, -scores))
    kept = json.loads((data.parent / "out" / "edc.json").read_text())
    assert kept["options"]["scores"] == [
        {"name": "theirs", "path": str(data.parent / "theirs.txt"), "higher_is_better": False}
    ]
    assert kept["options"]["mode"] == "rethresholded"
    assert [each["preset"]["name"] for each in kept["options"]["verifiers"]] == ["small", "small"]
    assert set(kept["networks"]) == {network.name, other.name}  # the scoring network was not needed


def test_saved_embeddings_need_no_network(data, network):
    embeddings = np.random.default_rng(1).normal(size=(24, 8)).astype(np.float32)
    np.save(data.parent / "saved.npy", embeddings)
    (data.parent / "a.txt").write_text("".join(f"{path} {i}\n" for i, path in enumerate(sorted(data.glob("*/*")))))
    absent = FaceNetwork(torch.nn.Identity(), PRESET)  # fails wherever it runs
    evaluation = run_evaluation(
        options_of(data, absent, embeddings=data.parent / "saved.npy", scores=[ScoreFile("a", data.parent / "a.txt")])
    )
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert area(evaluation, "a") == pytest.approx(area_by_hand(unit, np.arange(24.0)))
    assert evaluation.networks == {}


def test_a_benchmark_that_fails_is_named(data, tmp_path, monkeypatch):
    """The others are evaluated; absent ones are reported."""
    monkeypatch.setattr(runner, "PAPER_FMRS", (0.1,))
    root = tmp_path / "sets"
    for seed, name in enumerate(("lfw", "calfw")):
        sets.write_bin(root / f"{name}.bin", seed)
    images, labels = pickle.loads((root / "calfw.bin").read_bytes())
    images[5] = b"no image"
    (root / "calfw.bin").write_bytes(pickle.dumps((images, labels)))
    network = FaceNetwork(calibrated("residual"), Preset("large", (112, 112), "rgb", (127.5,) * 3, (127.5,) * 3))
    lines = []
    evaluation = run_evaluation(
        options_of(root, network, methods=["brightness"], paper=True), tmp_path / "out", lines.append
    )
    assert [result.data for result in evaluation.results] == ["LFW"]
    assert list(evaluation.failed) == ["CALFW"]
    assert "cannot read image 5 of" in evaluation.failed["CALFW"]
    assert lines[-1] == f"CALFW: {evaluation.failed['CALFW']}"
    assert sum("is not there: looked for" in line for line in lines) == 6
    assert evaluation.format()[-1].split()[:3] == [network.name, "brightness", "0.1"]
    assert json.loads((tmp_path / "out" / "edc.json").read_text())["failed"] == evaluation.failed


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"methods": ["sharp"]}, "methods: expected some of prefiqs, .* got 'sharp'"),
        ({}, "at least one of methods or scores"),
        ({"methods": ["norm"], "scores": [ScoreFile("norm", "a.txt")]}, "two methods are called 'norm'"),
        ({"methods": ["norm"], "max_discard": 0.1}, "max_discard of 0.3 to 0.95, got 0.1"),
        ({"methods": ["norm"], "resamples": -1}, "resamples and seed of 0 or more, got -1 and 0"),
        ({"methods": ["norm"], "mode": "strict"}, "mode: expected one of crfiqa, .* got 'strict'"),
        ({"methods": ["norm"], "paper": True, "pairs": "pairs.txt"}, "have their own pairs"),
        ({"methods": ["norm"], "embeddings": "a.npy", "verifiers": [FaceNetwork()]}, "leave one out"),
        ({"methods": ["norm"], "verifiers": [FaceNetwork(), FaceNetwork()]}, "two verifiers are called 'sface'"),
    ],
)
def test_refused_options(others, message):
    """When the options are made, so before any file is read."""
    with pytest.raises(InputError, match=message):
        EvaluationOptions("data", FaceNetwork(), **{"methods": ()} | others)


def test_refused_networks(tmp_path):
    (tmp_path / "net.pth").touch()
    for model, message in [
        ("scface", "no such model or file: scface; known: .*sface"),
        (tmp_path / "net.pth", "expected a preset: the file .*net.pth"),
        (torch.nn.Identity(), "expected a preset: the module Identity"),
    ]:
        with pytest.raises(InputError, match=message):
            FaceNetwork(model)
    with pytest.raises(PrefiqsError, match="arcfce"):
        FaceNetwork("sface", "arcfce")
