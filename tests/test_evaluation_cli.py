"""`prefiqs evaluate`, on pictures and with methods of the test's own."""

import csv
import json
from itertools import combinations
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import pictures
from PIL import Image

from prefiqs_ext import Preset, Scorer, methods
from prefiqs_ext.cli import main
from prefiqs_ext.cli.evaluate import MODES
from prefiqs_ext.evaluation import cache
from prefiqs_ext.evaluation.all_pairs import compute_all_pairs_curves
from prefiqs_ext.evaluation.datasets.sources import read_every_crop
from prefiqs_ext.evaluation.edc import TOO_FEW, Mode
from prefiqs_ext.evaluation.image_set import ImageSet
from prefiqs_ext.faces import CropTemplate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache for all tests: most want the same pass over the same pictures."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def data(tmp_path, monkeypatch, sface, folder):
    for index, picture in enumerate(pictures(24, 112, seed=4)):
        person = tmp_path / "data" / f"p{index // 6}"
        person.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy().astype(np.uint8)).save(person / f"{index}.png")
    monkeypatch.setattr(cache, "get_cache_folder", lambda: folder)
    return tmp_path / "data"


@pytest.fixture
def no_pictures(monkeypatch):
    """Two take most of the time of a command; test_score_file draws them."""
    monkeypatch.setattr("prefiqs_ext.evaluation.plot.plot_edc", lambda *_: None)


@pytest.fixture(scope="module")
def embeddings(sface):
    """[24, 128] of the pictures, from the network alone."""
    crops = pictures(24, 112, seed=4).numpy().astype(np.uint8)
    with torch.inference_mode():
        return sface(Preset.resolve("sface").normalize()(torch.from_numpy(crops))).numpy()


def all_of(embeddings, scores):
    """pAUC of each FMR."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    curves = compute_all_pairs_curves(unit, np.repeat(np.arange(4), 6), scores, ratios=np.arange(7) / 20)
    assert [curve.measurable for curve in curves] == [True, False, False]  # 216 non-mated pairs
    return [curves[0].area(0.3)]


def run(data, *arguments):
    output = str(data.parent / "out")
    return CliRunner().invoke(
        main, ["evaluate", str(data), "--max-discard", "0.3", "--resamples", "20", "-o", output, *arguments]
    )


def scores_file(data):
    file = data.parent / "scores.txt"
    images = sorted(data.glob("*/*.png"))
    file.write_text("".join(f"{path} {i * 7 % 24}\n" for i, path in enumerate(images)))
    return file, np.array([i * 7 % 24 for i in range(len(images))], float)


def test_score_file(data, embeddings):
    file, scores = scores_file(data)
    result = run(data, "--methods", "", "--scores", f"theirs={file}", "--lower-better", "theirs")
    assert result.exit_code == 0, result.output
    output = data.parent / "out"
    assert rows_of(data) == pytest.approx(all_of(embeddings, -scores))
    kept = json.loads((output / "edc.json").read_text())
    assert kept["options"]["seed"] == 0
    assert kept["results"][0]["curves"]["theirs"][0]["mated"] == 60
    assert (output / "edc.png").read_bytes()[1:4] == b"PNG"
    assert (output / "edc.svg").read_text().count(f"<!-- {TOO_FEW} -->") == 2  # matplotlib's note of a text


@pytest.mark.usefixtures("no_pictures")
def test_methods_and_cache(data, monkeypatch):
    calls = []

    def create(name, network, preset, *, pruning, seed, output):
        def score(images):
            assert images.dtype == torch.uint8
            calls.append(len(images))
            return images.float().mean((1, 2, 3))

        return SimpleNamespace(name=name, higher_is_better=False, fit_images=0, score=score)

    monkeypatch.setattr(methods, "list_methods", lambda: ("dark",))
    monkeypatch.setattr(methods, "create", create)
    first, second = run(data, "--methods", "dark"), run(data, "--methods", "dark")
    assert first.exit_code == 0, first.output
    assert first.output == second.output
    assert calls == [24]
    assert run(data, "--methods", "dark", "--no-cache").output == first.output
    assert calls == [24] * 2
    assert "expected some of dark" in run(data, "--methods", "light").output


@pytest.mark.usefixtures("no_pictures")
def test_no_cache_passes_once_and_keeps_nothing(data, monkeypatch):
    """Two methods and the verifier read one pass."""
    calls = []
    score = Scorer.__call__
    monkeypatch.setattr(Scorer, "__call__", lambda self, images: calls.append(len(images)) or score(self, images))
    kept = data.parent / "kept"
    monkeypatch.setattr(cache, "get_cache_folder", lambda: kept)
    result = run(data, "--methods", "prefiqs,norm", "--no-cache", "--resamples", "0")
    assert result.exit_code == 0, result.output
    assert calls == [24]
    assert not kept.exists()


@pytest.mark.usefixtures("no_pictures")
def test_hidden_and_system_folders_change_nothing(data):
    file, _ = scores_file(data)
    common = ["--methods", "", "--scores", f"a={file}", "--resamples", "0"]
    before = run(data, *common)
    assert before.exit_code == 0, before.output
    face = (data / "p0" / "0.png").read_bytes()
    for name in (".ipynb_checkpoints/0.png", "@eaDir/0.png", "__MACOSX/p1/._0.png", "p1/._6.png", "p2/.x/0.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(face)
    assert run(data, *common).output == before.output


@pytest.mark.usefixtures("no_pictures")
def test_the_same_file_of_two_people(data):
    twin = data / "p1" / "session" / "twin.png"
    twin.parent.mkdir()
    twin.write_bytes((data / "p0" / "0.png").read_bytes())
    file, _ = scores_file(data)
    with file.open("a") as scores:
        scores.write("p1/session/twin.png 5\n")
    common = ["--methods", "", "--scores", f"a={file}", "--resamples", "0"]
    result = run(data, *common)
    assert result.exit_code == 1
    remedy = "take one away, or allow them (allow_duplicates, --allow-duplicates)"
    said = f"{data}/p0/0.png and {twin} are the same file, of two people: {remedy}"
    assert said in result.output
    assert not (data.parent / "out" / "edc.csv").exists()
    allowed = run(data, *common, "--allow-duplicates")
    assert allowed.exit_code == 0, allowed.output
    assert "data: 25 images" in allowed.output


@pytest.mark.usefixtures("no_pictures")
def test_what_is_passed_over_is_said(data):
    file, _ = scores_file(data)
    (data / "p0" / "x.heic").write_bytes(b"")
    result = run(data, "--methods", "", "--scores", f"a={file}", "--resamples", "0")
    assert result.exit_code == 0, result.output
    passed_over, summary = result.stderr.splitlines()
    assert passed_over == "prefiqs: 1 file passed over: .heic 1; convert photos to JPEG or PNG first"
    out = data.parent / "out"
    assert summary == f"prefiqs: compared 1 quality on 24 images of data; table and curves are in {out}"


@pytest.mark.usefixtures("no_pictures")
def test_verifier_and_saved_embeddings(data, embeddings):
    """Another network's embeddings, and the same ones from files: the same table."""
    file, scores = scores_file(data)
    common = ["--methods", "", "--scores", f"theirs={file}", "--resamples", "0"]
    compared = run(data, *common, "--verifier", "sface:sface")
    assert compared.exit_code == 0, compared.output
    assert rows_of(data) == pytest.approx(all_of(embeddings, scores))
    images = sorted(map(str, data.glob("*/*.png")))
    for image, embedding in zip(images, embeddings, strict=True):
        folder = data.parent / "npy" / image.split("/")[-2]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{image.split('/')[-1][:-4]}.npy", embedding)
    np.save(data.parent / "all.npy", embeddings)
    for saved in ("npy", "all.npy"):
        result = run(data, *common, "--embeddings", str(data.parent / saved))
        assert result.exit_code == 0, result.output
        assert rows_of(data) == pytest.approx(all_of(embeddings, scores))
    kept = json.loads((data.parent / "out" / "edc.json").read_text())
    assert kept["networks"] == {}  # none was needed


def rows_of(data):
    with (data.parent / "out" / "edc.csv").open() as table:
        return [float(row["pauc"]) for row in csv.DictReader(table) if row["pauc"] != TOO_FEW]


@pytest.mark.usefixtures("no_pictures")
def test_list_of_pairs(data):
    """The same comparisons as a list: the same curve."""
    file, _ = scores_file(data)
    common = ["--methods", "", "--scores", f"theirs={file}"]
    images = sorted(data.glob("*/*.png"))
    (data / "list.txt").write_text("".join(f"{path.relative_to(data)}\n" for path in images))
    lines = [
        f"{one.relative_to(data)} {other.relative_to(data)} {int(one.parent == other.parent)}\n"
        for one, other in combinations(images, 2)
    ]
    (data / "pairs.txt").write_text("".join(lines))
    assert run(data, *common).exit_code == 0
    of_all = rows_of(data)
    listed = run(data / "list.txt", *common, "--pairs", str(data / "pairs.txt"), "-o", str(data.parent / "out"))
    assert listed.exit_code == 0, listed.output
    assert rows_of(data) == pytest.approx(of_all)
    assert "expected a list of pairs (--pairs FILE)" in run(data / "list.txt", *common).output


@pytest.mark.usefixtures("no_pictures")
def test_fitted_on_other_faces(data, monkeypatch):
    fitted = []

    def create(name, network, preset, *, pruning, seed, output):
        return SimpleNamespace(
            name=name,
            higher_is_better=True,
            fit_images=200,
            fit=lambda images: fitted.append(images),
            score=lambda images: images.float().mean((1, 2, 3)),
        )

    monkeypatch.setattr(methods, "list_methods", lambda: ("fitted",))
    monkeypatch.setattr(methods, "create", create)
    others = data.parent / "others"
    others.mkdir()
    (data / "p0").rename(others / "p0")
    (others / "__MACOSX").mkdir()
    (others / "__MACOSX" / "1.png").write_bytes(b"no image")
    common = ["--methods", "fitted", "--resamples", "0"]
    result = run(data, *common, "--fit-on", str(others))
    assert result.exit_code == 0, result.output
    (images,) = fitted
    expected = torch.stack(list(read_every_crop(sorted(map(str, others.glob("p0/*.png"))), CropTemplate())))
    assert sorted(map(bytes, images.flatten(1).numpy())) == sorted(map(bytes, expected.flatten(1).numpy()))
    assert run(data, *common).exit_code == 0
    assert len(fitted[1]) == 18  # another fit: nothing of the first was taken from the cache


@pytest.mark.usefixtures("no_pictures")
def test_differences(data):
    file, _ = scores_file(data)
    (data.parent / "same.txt").write_text(file.read_text())
    result = run(data, "--methods", "", "--scores", f"a={file}", "--scores", f"b={data.parent}/same.txt")
    assert result.exit_code == 0, result.output
    with (data.parent / "out" / "differences.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [(row["method"], row["other"], row["difference"], row["low"], row["high"]) for row in rows] == [
        ("a", "b", "0.0", "0.0", "0.0")
    ]


@pytest.mark.parametrize(("mode", "least", "most"), [("fixed-threshold", 0, 200), ("normalised", 1, 1)])
def test_useless_quality_by_the_mode(data, mode, least, most):
    """`useless` is on the scale of pAUC, and there are no intervals that would be on another."""
    file, _ = scores_file(data)
    for path in sorted(data.glob("*/*.png"))[:6]:  # so that a part of the mated pairs fails, not all
        path.write_bytes((data / "p0" / "0.png").read_bytes())
    result = run(data, "--methods", "", "--scores", f"a={file}", "--mode", mode)
    assert result.exit_code == 0, result.output
    with (data.parent / "out" / "edc.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["fnmr"] == TOO_FEW for row in rows] == [False, True, True]
    for row in rows[:1]:
        fnmr = float(row["fnmr"])
        assert 0 < fnmr < 1
        ratio = np.linspace(0, 0.2, 200_001)
        ideal = 200 * np.mean(np.maximum(fnmr - ratio, 0))
        expected = 1 if mode == "normalised" else 200 * fnmr - ideal
        assert float(row["useless"]) == pytest.approx(expected, rel=1e-4)
        assert row["low"] == row["high"] == ""
    with (data.parent / "out" / "differences.csv").open() as table:
        assert len(list(table)) == 1


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("mode", get_args(Mode))
def test_too_few_pairs(data, mode):
    """24 crops, 216 non-mated pairs, people far apart: FMR 1e-2 is measured, of the others there is no number."""
    file, _ = scores_file(data)
    apart = np.repeat(np.eye(4), 6, axis=0) + np.random.default_rng(0).normal(0, 0.1, (24, 4))
    np.save(data.parent / "apart.npy", apart)
    result = run(data, "--methods", "", "--scores", f"a={file}", "--embeddings", f"{data.parent}/apart.npy",
                 "--mode", mode)  # fmt: skip
    assert result.exit_code == 0, result.output
    with (data.parent / "out" / "edc.csv").open() as table:
        rows = list(csv.DictReader(table))
    intervals = [TOO_FEW if mode == "rethresholded" else ""] * 2
    for row in rows[1:]:
        numbers = [row[name] for name in ("fnmr", "pauc", "auc", "useless", "low", "high")]
        assert numbers == [TOO_FEW] * 4 + intervals
    assert rows[0]["fnmr"] == "0.0"
    curves = json.loads((data.parent / "out" / "edc.json").read_text())["results"][0]["curves"]["a"]
    assert [curve["fnmr"] == TOO_FEW for curve in curves] == [False, True, True]
    assert [curve["thresholds"] == TOO_FEW for curve in curves] == [False, True, True]
    (hint,) = [line for line in result.output.splitlines() if line.startswith("Use ")]
    assert "more images, for 216 non-mated pairs cannot show FMR 0.001, 0.0001" in hint
    assert "a harder set (prefiqs degrade), for no mated pair fails at FMR 0.01." in hint


def test_names_are_no_formulas(data, monkeypatch):
    """A $ in a name begins no formula; DATA may be the folder one is in."""
    file, _ = scores_file(data)
    folder = data.rename(data.parent / "$x_{$ a b\n")
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(
        main,
        ["evaluate", ".", "--max-discard", "0.3", "--resamples", "0", "-o", "../out", "--methods", ""]
        + [x for name in ("$\\frac$", "b") for x in ("--scores", f"{name}={file}")],
    )
    assert result.exit_code == 0, result.output
    assert result.output.startswith("$x_{$ a b\\n: 24 images")


def test_faults_before_the_work(data, monkeypatch, dlib_file):
    """What can be seen at once is said before anything is computed."""

    def computed(*_):
        raise AssertionError

    monkeypatch.setattr(ImageSet, "compute", computed)
    few = data.parent / "few" / "p0"
    few.mkdir(parents=True)
    (few / "a.png").write_bytes((data / "p0" / "0.png").read_bytes())
    np.save(data.parent / "few.npy", np.ones((3, 5)))
    for folder, arguments, message in [
        (data / "none", [], "No such file or directory"),
        (data, ["--pairs", "none.txt"], "cannot read none.txt (No such file or directory)"),
        (data, ["--pairs", "https://example.org/pairs.txt"], "https://example.org/pairs.txt: download it first"),
        (data, ["--fit-on", "none"], "cannot read none (No such file or directory)"),
        (data, ["--embeddings", "none"], "cannot read none (No such file or directory)"),
        (data, ["--scores", "a=none"], "--scores: cannot read none (No such file or directory)"),
        (data, ["--verifier", "none" * 100], "--verifier: no such model or file: none"),
    ]:
        result = run(folder, *arguments)
        assert result.exit_code == 2
        assert message in result.output
    for folder, arguments, message in [
        (few.parent, [], "few: expected mated and non-mated pairs, got no mated one"),
        (data, ["--verifier", "dlib"], "0.png: expected a crop of 150 x 150 pixels, got 112 x 112"),
        (data, ["--embeddings", str(data.parent / "few.npy")], "expected embeddings of 24 images, got 3"),
        (data, ["--fit-on", str(few)], "lies in no person's folder"),
        (data, ["--seed", "-1"], "--seed"),
        (data, ["-o", "/proc/self"], "cannot write /proc/self"),
    ]:
        result = run(folder, *arguments)
        assert result.exit_code in (1, 2)
        assert message in result.output
        assert not (data.parent / "out" / "edc.csv").exists()
    (few / "b.png").write_bytes((data / "p0" / "1.png").read_bytes())
    assert "got no non-mated one" in run(few.parent).output


def test_modes():
    assert get_args(Mode) == MODES


def test_refused(data):
    file, _ = scores_file(data)
    for arguments, message in [
        (["--scores", "theirs"], "expected --scores NAME=FILE"),
        (["--scores", f"a={file}", "--lower-better", "b"], "no --scores of that name"),
        (["--scores", f"a={file}", "--scores", f"a={file}"], "two methods"),
        ([], "at least one of methods or scores"),
        (["--scores", f"a={file}", "--verifier", "sface", "--embeddings", str(file)], "leave one out"),
        (["--scores", f"a={file}", "--verifier", "sface", "--verifier", "sface"], "two verifiers"),
    ]:
        result = run(data, "--methods", "", *arguments)
        assert result.exit_code == 2
        assert message in result.output
    assert "expected a file, got the folder" in run(data, "--methods", "", "--scores", f"a={data}").output
    (data / "p0" / "small.png").write_bytes(b"no image")
    result = run(data, "--methods", "", "--scores", f"a={file}")
    assert result.exit_code == 1
    assert "no score of 1 images" in result.output
    assert not (data.parent / "out" / "edc.csv").exists()
