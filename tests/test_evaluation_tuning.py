"""The choice of a setting: planted truths, a case counted by hand, and the command on small pictures."""

import csv
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import calibrated, pictures
from PIL import Image

from prefiqs_ext import Preset, Pruning, Scorer
from prefiqs_ext.cli import main
from prefiqs_ext.evaluation import cache, face_network, tuning, tuning_runner
from prefiqs_ext.evaluation.bootstrap import BootstrapDraws, resample_persons
from prefiqs_ext.evaluation.datasets.sources import read_every_crop
from prefiqs_ext.evaluation.edc import error_versus_discard
from prefiqs_ext.evaluation.inference import Scoring
from prefiqs_ext.evaluation.tuning import assign_folds, measure_held_out, tune_settings
from prefiqs_ext.settings import Settings

PRESET = Preset("odd", (32, 32), "bgr", (127.5,) * 3, (128.0,) * 3)


def planted(seed, people=60, images=6, d=24):
    """Embeddings with as much noise as an image says, and that noise."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(people), images)
    noise = rng.uniform(0.2, 1, len(who)) ** 2
    embeddings = rng.normal(size=(people, d))[who] + 2 * noise[:, None] * rng.normal(size=(len(who), d))
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32), who, noise


def test_better_setting_is_found():
    embeddings, who, noise = planted(0)
    rng = np.random.default_rng(1)
    settings = {name: rng.normal(size=len(who)) for name in ("default", "a", "b")} | {"true": -noise}
    result = tune_settings(embeddings, who, assign_folds(who), settings, resamples=100)
    assert result.chosen == ["true"] * 5
    mean, low, high = result.difference
    assert low < mean < high < 0
    assert mean == pytest.approx(np.mean(result.testing["true"] - result.testing["default"]))
    assert result.recommended == "true"


@pytest.mark.parametrize("seed", range(4))
def test_default_is_kept_where_nothing_is_better(seed):
    embeddings, who, _ = planted(seed)
    rng = np.random.default_rng(seed)
    settings = {name: rng.normal(size=len(who)) for name in ("default", *"abcdef")}
    result = tune_settings(embeddings, who, assign_folds(who, seed=seed), settings, resamples=100)
    assert set(result.chosen) != {"default"}  # chance favours some other: that must not be enough
    assert result.difference[2] > 0
    assert result.recommended == "default"


def test_default_wins_ties():
    embeddings, who, noise = planted(3)
    result = tune_settings(embeddings, who, assign_folds(who), {"default": -noise, "same": -2 * noise}, resamples=10)
    assert result.chosen == ["default"] * 5
    assert result.difference == (0, 0, 0)
    assert result.recommended == "default"


def test_order_of_images_does_not_matter():
    embeddings, who, noise = planted(2)
    settings = {"default": np.random.default_rng(0).normal(size=len(who)), "true": -noise}
    fold = assign_folds(who, seed=7)
    moved = np.random.default_rng(5).permutation(len(who))
    assert np.array_equal(assign_folds(who[moved], seed=7), fold[moved])
    results = [
        tune_settings(embeddings[to], who[to], fold[to], {k: v[to] for k, v in settings.items()}, resamples=20)
        for to in (np.arange(len(who)), moved)
    ]
    # Scores of another order of summation may differ in the last bit; no threshold hangs on it here.
    assert results[0].chosen == results[1].chosen
    assert results[0].difference == pytest.approx(results[1].difference, rel=1e-9)


def test_folds_are_of_people():
    who = np.repeat(np.arange(100, 163), np.arange(63) % 4 + 3)
    fold = assign_folds(who, 5, seed=3)
    of_person = [set(fold[who == person]) for person in np.unique(who)]
    assert all(len(folds) == 1 for folds in of_person)
    assert sorted(np.bincount([folds.pop() for folds in of_person])) == [12, 12, 13, 13, 13]
    assert not np.array_equal(fold, assign_folds(who, 5, seed=4))


def small():
    """Two folds of the same geometry, two people each. Person A: two good images along x, one bad (.6, .8); B: three
    along y. Non-mated scores are 0 and .8, so t is just above .8 and the bad image's two mated pairs fail, 2 of 6."""
    axes = np.zeros((12, 4), np.float32)
    for start, x, y in ((0, 0, 1), (6, 2, 3)):
        axes[start : start + 2, x] = 1
        axes[start + 2, [x, y]] = 0.6, 0.8
        axes[start + 3 : start + 6, y] = 1
    return axes, np.repeat(np.arange(4), 3), np.repeat([0, 1], 6)


# Of 15 pairs 0 0 1 2 3 3 4 are discarded at 0, .05 ... .3. The bad image worst: one failing pair goes, then the other:
# 1/3 1/3 1/5 0 0 0 0. The bad image best, B's worst: mated pairs of B go, 1/3 1/3 2/5 1/2 1/2 1/2 1/2.
WORST = np.array([2, 3, 1, 4, 5, 6.0])
BEST = np.array([4, 5, 6, 1, 2, 3.0])
RIGHT, WRONG = 35.0, 132.5


def test_by_hand(monkeypatch):
    embeddings, who, fold = small()
    draws = iter([(5.0, 1.0), (7.0, 2.0)])  # chosen's pAUC in two draws of each fold; the default's is 10 in all

    def drawn(embeddings, identities, qualities, *, fmr, limit, resamples, seed):
        assert len(embeddings) == len(identities) == 6
        assert (fmr, limit, resamples) == (1e-3, 0.3, 2)
        return BootstrapDraws({"chosen": np.array(next(draws)), "default": np.array([10.0, 10.0])}, np.zeros(2))

    monkeypatch.setattr(tuning, "resample_persons", drawn)
    settings = {"wrong": np.tile(BEST, 2), "right": np.tile(WORST, 2)}
    result = tune_settings(embeddings, who, fold, settings, resamples=2)
    np.testing.assert_allclose(result.testing["wrong"], [WRONG, WRONG])
    np.testing.assert_allclose(result.training["right"], [RIGHT, RIGHT])
    assert result.chosen == ["right", "right"]
    # Means over folds of the draws' differences: -4 and -8.5.
    assert result.difference == pytest.approx((RIGHT - WRONG, *np.percentile([-4, -8.5], [2.5, 97.5])))
    assert result.recommended == "right"


def test_own_people_have_no_say(monkeypatch):
    monkeypatch.setattr(
        tuning, "resample_persons", lambda e, i, q, **_: BootstrapDraws({n: np.zeros(2) for n in q}, np.zeros(2))
    )
    embeddings, who, fold = small()
    settings = {"first": np.append(WORST, BEST), "second": np.append(BEST, WORST)}
    result = tune_settings(embeddings, who, fold, settings)
    assert result.chosen == ["second", "first"]  # each good on the other fold only
    np.testing.assert_allclose(result.testing["first"], [RIGHT, WRONG])
    assert result.recommended == "first"


def test_held_out_is_the_curve_of_the_folds_pairs():
    embeddings, who, noise = planted(6)
    fold = assign_folds(who, 3)
    seen = []

    def fitted(images):
        seen.append(images)
        return -noise * images.sum()

    result = measure_held_out(embeddings, who, fold, {"fitted": fitted, "plain": lambda _: noise}, resamples=30, seed=2)
    drawn = []
    for index, seed in enumerate(np.random.SeedSequence(2).generate_state(3)):
        own = np.flatnonzero(fold == index)
        assert np.array_equal(seen[index], fold != index)
        first, second = np.triu_indices(len(own), 1)
        scores = (embeddings[own] @ embeddings[own].T)[first, second]
        mated = who[own][first] == who[own][second]
        curve = error_versus_discard(scores, mated, np.stack([first, second], 1), -noise[own], fmr=1e-3)
        assert result.pauc["fitted"][index] == pytest.approx(curve.area(0.3))
        qualities = {"fitted": -noise[own], "plain": noise[own]}
        drawn.append(resample_persons(embeddings[own], who[own], qualities, resamples=30, seed=int(seed)))
    paired = np.mean([draws.pauc["fitted"] - draws.pauc["plain"] for draws in drawn], axis=0)
    assert result.difference("fitted", "plain")[1:] == pytest.approx(np.percentile(paired, [2.5, 97.5]))


def test_refused():
    with pytest.raises(ValueError, match="as many people at least; got 5 and 3"):
        assign_folds(np.repeat(np.arange(3), 4))
    with pytest.raises(ValueError, match="expected 10 people of two images"):
        assign_folds(np.arange(400))  # nobody twice
    with pytest.raises(ValueError, match="1000 non-mated pairs"):
        assign_folds(np.repeat(np.arange(50), 2))
    embeddings, who, _ = planted(0)
    alone = np.where(who == 0, 0, np.arange(len(who)) + 1)  # only person 0, of the first fold, has mated pairs
    with pytest.raises(ValueError, match="fold 1: no mated pair at discard ratio"):
        measure_held_out(embeddings, alone, (who >= 30).astype(int), {"a": lambda _: alone}, resamples=50)


def test_prunings():
    settings = tuning_runner.list_prunings(calibrated("mobile"))
    assert len(settings) == 28
    assert next(iter(settings.items())) == ("0.4 layer conv", Pruning())
    assert settings["0.1 global conv+linear"] == Pruning(sparsity=0.1, scope="global", layers="conv+linear")
    assert len(tuning_runner.list_prunings(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))) == 14


def _save(picture, path):
    Image.fromarray(picture.permute(1, 2, 0).numpy().astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture
def data(tmp_path, monkeypatch):
    for index, picture in enumerate(pictures(100, 32, seed=4)):
        folder = tmp_path / "data" / f"p{index // 5:02}"
        folder.mkdir(parents=True, exist_ok=True)
        _save(picture, folder / f"{index}.png")
    monkeypatch.setattr(cache, "get_cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(face_network, "resolve_network", lambda *_: (calibrated("mobile"), PRESET))
    monkeypatch.setattr(tuning_runner, "TRIED_SPARSITIES", (0.3, 0.4))
    return tmp_path / "data"


def run(data, *arguments):
    output = str(data.parent / "out")
    return CliRunner().invoke(main, ["tune", str(data), "--folds", "2", "--resamples", "10", "-o", output, *arguments])


def test_command(data, monkeypatch):
    result = run(data)
    assert result.exit_code == 0, result.output
    output = data.parent / "out"
    kept = json.loads((output / "tune.json").read_text())
    rows = list(csv.DictReader((output / "tune.csv").open()))
    assert [row["sparsity"] for row in rows] == ["0.4"] + ["0.3"] * 4 + ["0.4"] * 3
    assert sum(int(row["chosen"]) for row in rows) == 2
    crops = torch.stack(list(read_every_crop(sorted(map(str, data.glob("*/*.png"))), PRESET.size)))
    who = np.repeat(np.arange(20), 5)
    outputs = {
        name: Scorer(calibrated("mobile"), pruning, preset=PRESET)(crops)
        for name, pruning in tuning_runner.list_prunings(calibrated("mobile")).items()
    }
    settings = {name: -output.distance.numpy() for name, output in outputs.items()}
    expected = tune_settings(
        outputs["0.4 layer conv"].embedding.numpy(), who, assign_folds(who, 2), settings, resamples=10
    )
    assert kept["chosen"] == expected.chosen
    assert kept["difference"] == pytest.approx(expected.difference)
    assert 0 < float(rows[0]["pauc_0.001"]) == kept["settings"]["0.4 layer conv"]["overall"]["0.001"]
    assert rows[0]["pauc_0.0001"] == kept["settings"]["0.4 layer conv"]["overall"]["0.0001"] == "too few pairs"  # 4,750
    assert float(rows[0]["held_out"]) == pytest.approx(expected.testing["0.4 layer conv"].mean())
    recommended = Settings.load(output / "settings.json")
    assert recommended.pruning == tuning_runner.list_prunings(calibrated("mobile"))[expected.recommended]
    assert Scorer.from_settings(recommended, calibrated("mobile")).settings == recommended
    assert set(kept["together"]["held_out"]) == {"D", "norm", "log D + norm", "D + norm"}

    monkeypatch.setattr(Scoring, "scorer", property(lambda _: pytest.fail("computed again")))
    assert run(data).output == result.output
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        run(data, "--no-cache")


def test_command_refuses(data):
    few = run(data, "--folds", "5")
    assert few.exit_code == 1
    assert "use fewer folds" in few.output
    (data.parent / "some.onnx").touch()
    unnamed = run(data, "--model", str(data.parent / "some.onnx"))
    assert unnamed.exit_code == 2
    assert "cannot tell the input its network wants; give --preset" in unnamed.output
    _save(pictures(1, 33)[0], data / "p00" / "large.png")
    large = run(data)
    assert large.exit_code == 1
    assert "large.png: expected a crop of 32 x 32 pixels" in large.output
    assert "Traceback" not in large.output
    assert not list((data.parent / "out").iterdir())
    (data / "p00" / "large.png").rename(data / "p00" / ".large.png")  # hidden: no part of the set
    (data / "p01" / "twin.png").write_bytes((data / "p00" / "0.png").read_bytes())
    twins = run(data, "-o", str(data.parent / "none"))
    assert twins.exit_code == 1
    assert "p00/0.png and " in twins.output
    assert "p01/twin.png are the same file, of two people: take one away, or allow them" in twins.output
    assert not (data.parent / "none").exists()
