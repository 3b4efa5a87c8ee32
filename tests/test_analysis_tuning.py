"""The choice of a pruning without identities: the rule on made-up copies, and the command on small pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import calibrated, pictures
from numpy.typing import NDArray
from onnx import helper
from onnx_files import floats, make_model, saved
from PIL import Image
from torch import Tensor, nn

from prefiqs_ext import Pruning, Scorer
from prefiqs_ext.analysis import tuning_runner
from prefiqs_ext.analysis.tuning import Choice, choose_setting
from prefiqs_ext.analysis.tuning_runner import Setting, list_settings, run_tuning
from prefiqs_ext.calibration.copies import degrade_faces
from prefiqs_ext.evaluation.datasets.sources import read_every_crop
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.models import PRESETS, load
from prefiqs_ext.output import ScoreOutput
from tests.command import Command

Numbers = NDArray[np.float64]
SMALL = PRESETS["arcface"].with_size((32, 32))


def make_copies(seed: int, faces: int = 60) -> tuple[Numbers, NDArray[np.int64], np.random.Generator]:
    """Angles in degrees of one to three copies of each face, in random order, which face each is of, and a generator
    for more; some faces are harder than others, so their copies belong together."""
    random = np.random.default_rng(seed)
    face = np.repeat(np.arange(faces), random.integers(1, 4, faces))
    angle = 40 + 8 * random.standard_normal(faces)[face] + 12 * random.standard_normal(len(face))
    order = random.permutation(len(face))
    return angle[order], face[order], random


def measure_slowly(angle: Numbers, distance: Numbers) -> float:
    """The mean, over discarding 0, 1, ... 30 %, of the mean angle of what is kept; of equals the first goes first."""
    worst_first = sorted(range(len(angle)), key=lambda copy: (-distance[copy], copy))
    means = []
    for percent in range(31):
        kept = worst_first[round(percent / 100 * len(angle)) :]
        means.append(sum(angle[copy] for copy in kept) / len(kept))
    return sum(means) / len(means)


def choose_slowly(angle: Numbers, face: NDArray[np.int64], distances: Mapping[str, Numbers], resamples: int) -> Choice:
    def measure(name: str, copies: list[int]) -> float:
        return measure_slowly(angle[copies], distances[name][copies])

    copies_of: dict[int, list[int]] = {}
    for copy, number in enumerate(face.tolist()):
        copies_of.setdefault(number, []).append(copy)
    even, odd = ([copy for copy in range(len(face)) if face[copy] % 2 == half] for half in (0, 1))
    names = list(distances)
    chosen = tuple(min(names, key=lambda name, half=half: measure(name, half)) for half in (even, odd))  # type: ignore[misc]
    held_out = measure(chosen[0], odd), measure(chosen[1], even)
    default = measure(names[0], odd), measure(names[0], even)
    random, drawn = np.random.default_rng(0), np.zeros(resamples)
    for name, parity in zip(chosen, (1, 0), strict=True):
        numbers = sorted(number for number in copies_of if number % 2 == parity)
        for draw in range(resamples):
            picked = random.integers(len(numbers), size=len(numbers)).tolist()
            copies = [copy for index in picked for copy in copies_of[numbers[index]]]
            drawn[draw] += 0.5 * (measure(name, copies) - measure(names[0], copies))
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    areas = {name: measure(name, list(range(len(face)))) for name in names}
    best = min(names, key=lambda name: areas[name])
    mean = sum(held_out) / 2 - sum(default) / 2
    return Choice(areas, chosen, held_out, default, (mean, low, high), best if high < 0 else names[0])


@pytest.mark.parametrize(("seed", "noise"), [(0, 5.0), (1, 20.0), (2, 80.0)])
def test_the_rule_against_a_slow_loop(seed: int, noise: float) -> None:
    angle, face, random = make_copies(seed, faces=31)
    distances = {
        "default": random.random(len(angle)),
        # In steps, so that some are equal.
        "a": np.round((angle + noise * random.standard_normal(len(angle))) / 10),
        "b": angle + 1.2 * noise * random.standard_normal(len(angle)),
    }
    found, expected = (choose(angle, face, distances, resamples=25) for choose in (choose_setting, choose_slowly))
    assert (found.chosen, found.recommended) == (expected.chosen, expected.recommended)
    # Sums of some hundred angles, in another order.
    assert found.areas == pytest.approx(expected.areas, rel=1e-12)
    for name in ("held_out", "held_out_default", "difference"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9)


def test_a_better_setting_is_recommended() -> None:
    angle, face, random = make_copies(0)
    distances = {name: random.random(len(angle)) for name in ("default", "a", "b")} | {"true": angle / 90}
    found = choose_setting(angle, face, distances)
    assert found.chosen == ("true", "true")
    mean, low, high = found.difference
    assert low < mean < high < 0
    assert found.recommended == "true"


def test_noise_is_not_recommended() -> None:
    """The best of seven settings that know nothing is better than the default by chance, on the half that chose it."""
    kept = []
    for seed in range(20):
        angle, face, random = make_copies(seed)
        distances = {name: random.random(len(angle)) for name in ("default", *"abcdef")}
        found = choose_setting(angle, face, distances, resamples=200, seed=seed)
        kept.append(found.recommended == "default")
    # Each has a chance of some 2.5 %; four or more of 20 would come once in 1,500 times.
    assert kept.count(False) <= 3


def test_the_default_wins_ties() -> None:
    angle, face, _ = make_copies(3)
    found = choose_setting(angle, face, {"default": angle, "same": 2 * angle}, resamples=10)
    assert found.chosen == ("default", "default")
    assert found.difference == (0, 0, 0)
    assert found.recommended == "default"


def test_what_is_measured_on_has_no_say() -> None:
    angle, face, random = make_copies(4)
    noise, even = 100 * random.random(len(angle)), face % 2 == 0
    distances = {"default": noise, "a": np.where(even, angle, -angle), "b": np.where(even, -angle, angle)}
    found = choose_setting(angle, face, distances, resamples=20)
    assert found.chosen == ("a", "b")
    assert min(found.held_out) > angle.mean()  # each discards the best of the other half
    assert found.difference[1] > 0
    assert found.recommended == "default"


def test_settings() -> None:
    settings = list_settings(calibrated("mobile"))
    assert len(settings) == 30
    assert next(iter(settings.items())) == ("plain 0.4 layer conv", Setting(False, Pruning()))
    wider = Setting(True, Pruning(sparsity=0.02, scope="global", layers="conv+linear"))
    assert settings["recalibrated 0.02 global conv+linear"] == wider
    assert len(list_settings(nn.Sequential(nn.Conv2d(3, 4, 3)))) == 20


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with crops/ of 45 files, the first twice, and the network small.onnx of 32 x 32 pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning_runner, "TRIED_SPARSITIES", (0.4,))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "g"], ["y"]),
    ]
    constants = {"w": floats(8, 3, 3, 3), "v": floats(12, 8, 3, 3, seed=1), "g": floats(12 * 8 * 8, 16, seed=2)}
    saved(make_model(nodes, ("n", 3, 32, 32), constants), tmp_path).rename("small.onnx")
    for index, picture in enumerate(pictures(44, 32, seed=4)):
        save(picture, Path(f"crops/{index % 3}/{index:02}.png"))
    Path("crops/0/twin.png").write_bytes(Path("crops/0/00.png").read_bytes())
    return tmp_path


def save(picture: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)


NETWORK = ("--model", "small.onnx", "--preset", "arcface", "--size", "32")


def test_command(data: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    recalibrated = "recalibrated 0.4 layer conv"

    def recommend_recalibrated(*args: Any, **options: Any) -> Choice:
        """What it recommends on random weights is chance, and would often be plain."""
        return choose_setting(*args, **options)._replace(recommended=recalibrated)

    monkeypatch.setattr(tuning_runner, "choose_setting", recommend_recalibrated)
    result = command("tune", "crops", *NETWORK, "--resamples", "40", "-o", "out")
    assert result.code == 0, result.err
    assert f"{recalibrated} is recommended." in result.out.splitlines()[-1]
    assert "on 110 degraded copies of 44 faces" in result.err
    assert sorted(path.name for path in Path("out").iterdir()) == ["settings.json", "tune.csv", "tune.json"]

    # The same by Scorers made by hand.
    network, _ = load("small.onnx", SMALL)
    crops = torch.stack(list(read_every_crop(sorted(map(str, Path("crops").glob("*/*.png"))), SMALL.template)))
    crops = torch.cat([crops[:15], crops[16:]])  # 0/twin.png
    copies, _, face = degrade_faces(crops, 0)
    outputs = {}
    for name, (recalibrate, pruning) in list_settings(network).items():
        scorer = Scorer(network, pruning, recalibrate=crops if recalibrate else None, preset=SMALL)
        outputs[name] = scorer(torch.stack(copies))
    dense = outputs["plain 0.4 layer conv"]
    cosine = (dense.embedding.double() * scorer(crops).embedding[face]).sum(1)
    angle = cosine.arccos().rad2deg().numpy()
    distances = {name: each.distance.double().numpy() for name, each in outputs.items()}
    expected = choose_setting(angle, face.numpy(), distances, resamples=40)
    kept = json.loads(Path("out/tune.json").read_text())
    # The product of float32 embeddings in another precision; an area has no steps that such a change could cross,
    # because D is the same to the bit.
    assert kept["areas"] == pytest.approx(expected.areas, rel=1e-5)
    assert tuple(kept["chosen"]) == expected.chosen
    assert kept["difference"] == pytest.approx(expected.difference, abs=1e-3)
    assert kept["unranked"] == pytest.approx(angle.mean(), rel=1e-5)
    assert kept["norm"] == pytest.approx(measure_slowly(angle, -dense.embedding_norm.numpy()), rel=1e-5)
    with Path("out/tune.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [float(row["area"]) for row in rows] == list(kept["areas"].values())
    assert sum(int(row["chosen"]) for row in rows) == 2
    assert [row["held_out"] != "" for row in rows] == [row["chosen"] != "0" for row in rows]

    # The settings that are kept give the same D.
    scorer = Scorer.from_settings("out/settings.json")
    assert scorer.settings.recalibration is not None
    assert torch.equal(scorer(torch.stack(copies)).distance, outputs[recalibrated].distance)
    scored = command("score", "crops", "--aligned", "--settings", "out/settings.json", "-o", "scores.csv")
    assert scored.code == 0, scored.err


def test_faces_and_copies_without_a_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A face without an embedding is left out, and so is a copy; a copy without D alone is discarded first."""
    monkeypatch.setattr(tuning_runner, "TRIED_SPARSITIES", (0.4,))
    measured = tuning_runner.measure
    passes = iter(range(100))
    seen = []

    def measure(scorer: Scorer, crops: Any, what: str) -> ScoreOutput:
        index, found = next(passes), measured(scorer, crops, what)
        if index < 2:  # the faces, then the copies by the default setting
            found.embedding[3], found.embedding_norm[3], found.distance[3] = torch.nan, 0, torch.nan
        found.distance[5] = torch.nan
        return found

    def choose(angle: Numbers, face: NDArray[np.int64], distances: dict[str, Numbers], **options: Any) -> Choice:
        seen.append((angle, face, distances))
        return choose_setting(angle, face, distances, **options)

    monkeypatch.setattr(tuning_runner, "measure", measure)
    monkeypatch.setattr(tuning_runner, "choose_setting", choose)
    faces = pictures(42, 32, seed=5)
    tuning = run_tuning(faces, calibrated("mobile"), preset=SMALL, resamples=2)
    ((angle, face, distances),) = seen
    copies = degrade_faces(faces[torch.arange(42) != 3], 0)
    assert (tuning.faces, tuning.copies) == (41, len(copies.face) - 1)
    assert np.array_equal(face, np.delete(copies.face.numpy(), 3))
    assert np.isfinite(angle).all()
    assert all(np.flatnonzero(np.isinf(distance)).tolist() == [4] for distance in distances.values())
    assert tuning.recommended.model is None  # a module has no name to load it by


def test_refuses_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    network, faces = calibrated("mobile"), pictures(40, 32, seed=4)
    with pytest.raises(InputError, match="expected 40 or more different faces, got 39: give more"):
        run_tuning(torch.cat([faces[:39], faces[:9]]), network, preset=SMALL)
    with pytest.raises(InputError, match="expected a network with a preset"):
        run_tuning(faces, network)
    with pytest.raises(InputError, match="resamples of 2 or more, got 1"):
        run_tuning(faces, network, preset=SMALL, resamples=1)
    with pytest.raises(InputError, match="NaN or infinity in row"):
        run_tuning(torch.full((40, 3, 32, 32), torch.nan), network, preset=SMALL)
    monkeypatch.setattr(tuning_runner, "TRIED_SPARSITIES", (0.4,))
    monkeypatch.setattr(tuning_runner, "degrade_faces", lambda crops, seed: degrade_faces(crops[:1], seed))
    with pytest.raises(InputError, match="expected copies of both halves of the faces with an embedding"):
        run_tuning(faces, network, preset=SMALL)


def test_command_refuses(data: Path, command: Command) -> None:
    few = command("tune", "crops/0", "crops/1", *NETWORK)
    assert few.code == 1
    assert "Error: tune: expected 40 or more different faces, got 30: give more" in few.err
    save(pictures(1, 33)[0], Path("crops/large.png"))
    large = command("tune", "crops", *NETWORK)
    assert large.code == 1
    assert "large.png: expected a crop of 32 x 32 pixels, got 33 x 33" in large.err
    assert not Path("tune/settings.json").exists()
    assert "Traceback" not in few.err + large.err
