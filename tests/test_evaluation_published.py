"""CR-FIQA's own files as they are published, and scores of other tools beside ours."""

import csv
import json

import numpy as np
import paper_benchmark_sets as sets
import pytest
import torch
from click.testing import CliRunner

from prefiqs_ext.cli import main
from prefiqs_ext.evaluation import cache, runner
from prefiqs_ext.evaluation.edc import error_versus_discard
from prefiqs_ext.evaluation.inference import ImageScores, Scoring

COUNT = sets.PEOPLE * sets.EACH
SCORES = np.random.default_rng(3).permutation(COUNT) / 7
"""Of faces(), by other tools."""


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "get_cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("prefiqs_ext.evaluation.plot.plot_edc", lambda *_: None)
    for name in ("FMRS", "PAPER_FMRS"):
        monkeypatch.setattr(runner, name, (0.1, 0.05))  # lists of 20 non-mated pairs show none below


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Embeddings by the names of images, so that no network runs: [COUNT, 8] and their folder."""
    folder = tmp_path_factory.mktemp("embeddings")
    values = np.random.default_rng(4).standard_normal((COUNT, 8)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    for k, value in enumerate(values):
        np.save(folder / f"{name(k)}.npy", value)
    for place, k in enumerate(i for pair in sets.pairs() for i in pair):
        np.save(folder / f"{place:05d}.npy", values[k])
    return values, folder


def name(k):
    """As write_quality_data_of_xqlfw calls the image of a face."""
    return f"Ann_{chr(ord('A') + k // sets.EACH)}_{k % sets.EACH + 1:04d}"


def evaluate(data, *arguments):
    output = data.parents[1] / "out"
    common = ["--methods", "", "--resamples", "0", "--max-discard", "0.3", "-o", str(output)]
    result = CliRunner().invoke(main, ["evaluate", str(data), *common, *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return json.loads((output / "edc.json").read_text())["results"][0]["curves"]


def assert_curve(found, values, *, a_place_an_image=False):
    """FNMR of the pairs in the list, by faces' scores and embeddings. a_place_an_image: as in a .bin, where images that
    are the same are several."""
    pairs, quality = np.array(sets.pairs()), SCORES
    similar = (values[pairs[:, 0]] * values[pairs[:, 1]]).sum(1)
    if a_place_an_image:
        pairs, quality = np.arange(pairs.size).reshape(-1, 2), SCORES[pairs.ravel()]
    expected = error_versus_discard(
        similar, np.array(sets.LABELS), pairs, quality, fmr=found["fmr"], mode=found["mode"], ratios=np.arange(7) / 20
    )
    assert (found["mated"], found["non_mated"]) == (sum(sets.LABELS), len(sets.LABELS) - sum(sets.LABELS))
    assert found["fnmr"] == pytest.approx(expected.fnmr.tolist())


@pytest.mark.parametrize("named", ["folder", "folder and pairs", "list and pairs"])
def test_xqlfw(tmp_path, saved, named):
    """Listed as often as used, with a score each time; pairs by names with suffix."""
    folder = tmp_path / "quality_data" / "XQLFW"
    sets.write_quality_data_of_xqlfw(folder)
    used = [i for pair in sets.pairs() for i in pair]
    lines = [f"quality_data/XQLFW/images/{name(i)}.jpg {SCORES[i]}\n" for i in used]
    assert len(set(lines)) < len(lines)
    (folder / "CRFIQAL.txt").write_text("".join(lines))
    listed, pairs = folder / "image_path_list.txt", folder / "pair_list.txt"
    data = {
        "folder": [folder],
        "folder and pairs": [folder, "--pairs", pairs],
        "list and pairs": [listed, "--pairs", pairs],
    }
    values, embeddings = saved
    curves = evaluate(*data[named], "--scores", f"CRFIQA={folder}/CRFIQAL.txt", "--embeddings", embeddings)
    for curve in curves["CRFIQA"]:
        assert_curve(curve, values)


def test_a_bin_and_its_extracted_files(tmp_path, saved):
    """Names without suffix, padded labels; the same scores beside the .bin itself."""
    folder = tmp_path / "quality_data" / "lfw"
    sets.write_quality_data_of_bin(folder)
    sets.write_bin(tmp_path / "faces_emore" / "lfw.bin")
    used = [i for pair in sets.pairs() for i in pair]
    lines = [f"quality_data/lfw/images/{place:05d}.jpg {SCORES[i]}\n" for place, i in enumerate(used)]
    (folder / "CRFIQAL_lfw.txt").write_text("".join([lines[0], *lines]))  # the first twice, as in ERC/README.md
    values, embeddings = saved
    common = ["--scores", f"CRFIQA={folder}/CRFIQAL_lfw.txt", "--embeddings", embeddings]
    for data in (folder, tmp_path / "faces_emore" / "lfw.bin"):
        for curve in evaluate(data, *common)["CRFIQA"]:
            assert_curve(curve, values, a_place_an_image=True)


OF_XQLFW = "scores/XQLFW/CRFIQAL_XQLFW.txt"


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """LFW and CFP-FP as .bin, XQLFW as published, IJB-C; scores of all but CFP-FP in CR-FIQA's three ways."""
    root = tmp_path_factory.mktemp("benchmarks")
    sets.write_bin(root / "faces_emore" / "lfw.bin")
    sets.write_bin(root / "faces_emore" / "cfp_fp.bin", 2)
    sets.write_xqlfw(root / "XQLFW")
    sets.write_ijbc(root / "IJBC")
    used = [i for pair in sets.pairs() for i in pair]
    lines = {
        "lfw/CRFIQAL.txt": (f"lfw/images/{place:05d}.jpg {SCORES[i]}\n" for place, i in enumerate(used)),
        OF_XQLFW.removeprefix("scores/"): (f"XQLFW/images/{name(i)}.jpg {SCORES[i]}\n" for i in used),
        "CRFIQAL_IJBC.txt": (f"IJBC/images/{k + 1}.jpg {SCORES[k]}\n" for k in range(COUNT)),
    }
    for file, each in lines.items():
        (root / "scores" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "scores" / file).write_text("".join(f"quality_data/{line}" for line in each))
    return root


def paper(root, output, *arguments):
    common = ["--protocol", "paper", "--resamples", "0", "--max-discard", "0.3", "-o", str(output)]
    return CliRunner().invoke(main, ["evaluate", str(root), *common, *map(str, arguments)])


def areas(output):
    """pAUC at FMR 0.1 by benchmark and method."""
    with (output / "edc.csv").open() as table:
        return {
            (row["data"], row["method"]): float(row["pauc"]) for row in csv.DictReader(table) if row["fmr"] == "0.1"
        }


@pytest.mark.usefixtures("sface_file")
def test_under_the_papers_protocol(benchmarks, tmp_path, monkeypatch):
    """Beside ours; a benchmark without scores is evaluated without them, and that is said."""

    compute_qualities = Scoring.compute_qualities

    def embed(self, tasks, images, seed, *, embed=False):  # of no network, which would take long
        assert embed
        qualities, _ = compute_qualities(self, tasks, images, seed)
        values = np.random.default_rng(5).standard_normal((len(images.contents), 8)).astype(np.float32)
        unit, signals = values / np.linalg.norm(values, axis=1, keepdims=True), torch.zeros(len(values))
        return qualities, ImageScores(unit, signals, signals)

    monkeypatch.setattr(Scoring, "compute_qualities", embed)
    scores = ["--scores", f"CRFIQAL={benchmarks}/scores"]
    result = paper(benchmarks, tmp_path / "out", "--methods", "brightness", *scores)
    assert result.exit_code == 0, result.output
    rows = areas(tmp_path / "out")
    assert set(rows) == {(data, "brightness") for data in ("LFW", "CFP-FP", "XQLFW", "IJB-C")} | {
        (data, "CRFIQAL") for data in ("LFW", "XQLFW", "IJB-C")
    }
    alone = [
        "--mode",
        "crfiqa",
        "--pairs",
        benchmarks / "XQLFW" / "xqlfw_pairs.txt",
        "--scores",
        f"CRFIQAL={benchmarks}/{OF_XQLFW}",
    ]
    (curve,) = (
        each for each in evaluate(benchmarks / "XQLFW" / "xqlfw_aligned_112", *alone)["CRFIQAL"] if each["fmr"] == 0.1
    )
    first, *middle, last = curve["fnmr"]
    assert rows["XQLFW", "CRFIQAL"] == pytest.approx(1000 * 0.05 * (first / 2 + sum(middle) + last / 2))
    places = ", ".join(f"{benchmarks}/scores/{file}" for file in ("cfp_fp/CRFIQAL.txt", "cfp_fp/CRFIQAL_cfp_fp.txt"))
    said = f"CFP-FP: no scores of CRFIQAL: looked for {places}, {benchmarks}/scores/CRFIQAL_cfp_fp.txt"
    assert said in result.output

    turned = paper(benchmarks, tmp_path / "turned", "--methods", "", *scores, "--lower-better", "CRFIQAL")
    assert turned.exit_code == 0, turned.output
    other = areas(tmp_path / "turned")
    assert set(other) == {key for key in rows if key[1] == "CRFIQAL"}
    assert other != {key: rows[key] for key in other}


def test_refused(benchmarks, tmp_path):
    file = f"{benchmarks}/scores/lfw/CRFIQAL.txt"
    result = paper(benchmarks, tmp_path / "out", "--methods", "", "--scores", f"CRFIQAL={file}")
    assert result.exit_code == 1  # the images of LFW and CFP-FP have the same names
    assert f"expected a folder with one file per benchmark, got the file {file}" in result.output
    result = paper(benchmarks, tmp_path / "out", "--methods", "", "--scores", f"other={benchmarks}/scores")
    assert result.exit_code == 1
    assert "scores of other: no file for any of the benchmarks in" in result.output.splitlines()[-1]
    (tmp_path / "scores" / "lfw").mkdir(parents=True)
    for name in ("a.txt", "a_lfw.txt"):
        (tmp_path / "scores" / "lfw" / name).write_text("")
    result = paper(benchmarks, tmp_path / "out", "--methods", "", "--scores", f"a={tmp_path}/scores")
    assert result.exit_code == 1
    assert "two files of a for lfw: " in result.output
    assert not (tmp_path / "out").exists()
