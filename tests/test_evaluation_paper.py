"""`prefiqs evaluate --protocol paper`, on the eight benchmarks in miniature."""

import csv
import io
import json
import pickle

import numpy as np
import paper_benchmark_sets as sets
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from prefiqs_ext import Scorer
from prefiqs_ext.cli import main
from prefiqs_ext.evaluation import cache, runner
from prefiqs_ext.evaluation.comparison import Comparison, Protocol
from prefiqs_ext.evaluation.datasets.paper_benchmarks import BENCHMARKS
from prefiqs_ext.evaluation.edc import RATIOS, TOO_FEW, Curve, error_versus_discard
from prefiqs_ext.evaluation.results import Result, format_averages


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    sets.write_all(root)
    (root / "faces_emore" / "cplfw.bin").unlink()
    return root


@pytest.fixture(scope="module")
def run(root, tmp_path_factory, sface_file):
    output = tmp_path_factory.mktemp("out")
    options = ["--methods", "prefiqs,brightness", "--resamples", "0", "--max-discard", "0.3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "get_cache_folder", lambda: output / "cache")
        patch.setattr(runner, "PAPER_FMRS", (0.1, 0.05))  # lists of 20 non-mated pairs show none below
        patch.setattr(
            "prefiqs_ext.evaluation.plot.plot_edc", lambda *_: None
        )  # two pictures a benchmark: half of the time
        result = CliRunner().invoke(main, ["evaluate", str(root), "--protocol", "paper", *options, "-o", str(output)])
    assert result.exit_code == 0, result.output
    return result.output, output


def test_all_that_are_there(run):
    output, folder = run
    names = [benchmark.name for benchmark in BENCHMARKS if benchmark.name != "CPLFW"]
    assert "CPLFW is not there: looked for cplfw.bin, faces_emore/cplfw.bin, quality_data/cplfw" in output
    with (folder / "edc.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert list(dict.fromkeys(row["data"] for row in rows)) == names
    assert {row["mode"] for row in rows} == {"crfiqa"}
    assert [row["published"] for row in rows if row["method"] == "prefiqs" and row["fmr"] == "0.1"] == [
        "", "6.876", "3.755", "", "10.009", "", "6.77"
    ]  # fmt: skip
    assert all(not row["published"] for row in rows if row["method"] == "brightness")
    mean = np.mean([float(r["pauc"]) for r in rows if r["method"] == "prefiqs" and r["fmr"] == "0.1"
                    and r["data"] != "XQLFW"])  # fmt: skip
    line = next(line.split() for line in output.split("mean without XQLFW")[1].splitlines() if "prefiqs" in line)
    assert line[:4] == ["sface", "prefiqs", "0.1", "6"]
    assert float(line[4]) == pytest.approx(mean, rel=1e-3)
    assert len(line) == 5  # the paper's mean is over seven
    assert {f"edc-{name}-sface.png" for name in names} <= {file.name for file in folder.iterdir()}
    assert json.loads((folder / "edc.json").read_text())["options"]["paper"] is True


@pytest.fixture(scope="module")
def scorer(sface):
    return Scorer(sface, preset="sface")


@pytest.mark.parametrize(("name", "seed"), [("lfw", 0), ("calfw", 3)])
def test_a_list_of_pairs(run, scorer, name, seed):
    scored = scorer(torch.stack([decoded(picture) for picture in sets.faces(seed)]))
    listed = np.array(sets.pairs(seed)).ravel()  # each place in the list is an image
    pairs = np.arange(len(listed)).reshape(-1, 2)
    unit, distance = scored.embedding.numpy()[listed], scored.distance.numpy()[listed]
    similar = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(1)
    curve = error_versus_discard(
        similar, np.array(sets.LABELS), pairs, -distance, fmr=0.1, mode="crfiqa", ratios=RATIOS[:7]
    )
    found = next(each for each in kept(run) if each["data"].lower() == name)["curves"]["prefiqs"][0]
    assert found["fnmr"] == pytest.approx(curve.fnmr.tolist())
    assert found["thresholds"] == pytest.approx(curve.thresholds.tolist(), abs=1e-5)  # batches differ in rounding


def test_templates(run):
    """The pairs of IJB-C are of templates, which are fewer than images."""
    ijbc = next(each for each in kept(run) if each["data"] == "IJB-C")
    assert ijbc["images"] == sets.PEOPLE * sets.EACH
    curve = ijbc["curves"]["prefiqs"][0]
    assert (curve["mated"], curve["non_mated"]) == (6, 60)


@pytest.fixture
def own_cache(tmp_path, monkeypatch, sface_file):
    monkeypatch.setattr(cache, "get_cache_folder", lambda: tmp_path / "cache")


def test_a_set_that_fails_midway(tmp_path, own_cache):
    """The others are evaluated all the same; a fault that a list shows stops the command before the work."""
    root, out = tmp_path / "sets", tmp_path / "out"
    for seed, name in enumerate(("lfw", "cfp_fp", "calfw")):
        sets.write_bin(root / f"{name}.bin", seed)
    images, labels = pickle.loads((root / "cfp_fp.bin").read_bytes())
    images[5] = b"no image"
    (root / "cfp_fp.bin").write_bytes(pickle.dumps((images, labels)))
    options = ["--protocol", "paper", "--methods", "brightness", "--resamples", "0", "--max-discard", "0.3"]
    result = CliRunner().invoke(main, ["evaluate", str(root), *options, "-o", str(out)])
    assert result.exit_code == 1
    assert "CFP-FP: cannot read image 5 of" in result.output
    assert result.output.splitlines()[-1].endswith("given above: CFP-FP")
    with (out / "edc.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert {row["data"] for row in rows} == {"LFW", "CALFW"}
    assert {row["pauc"] for row in rows} == {TOO_FEW}  # at the paper's FMRs
    assert [line.split() for line in result.output.splitlines() if line.split()[1:2] == ["brightness"]] == [
        ["sface", "brightness", fmr, "0", *TOO_FEW.split()] for fmr in ("0.001", "0.0001")
    ]  # the means
    assert list(json.loads((out / "edc.json").read_text())["failed"]) == ["CFP-FP"]
    (root / "calfw.bin").write_bytes(pickle.dumps((images, [True] * len(labels))))
    result = CliRunner().invoke(main, ["evaluate", str(root), *options, "-o", str(tmp_path / "none")])
    assert result.output.splitlines()[-1] == "Error: CALFW: expected mated and non-mated pairs, got no non-mated one"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("mode", "own", "expected"),
    [
        ("crfiqa", True, "v prefiqs 0.001 7 128.6 10.07"),  # 6 of 150 and one of 0
        ("crfiqa", False, "v prefiqs 0.001 7 128.6"),
        ("rethresholded", True, "v prefiqs 0.001 7 128.6"),
        ("normalised", True, "v prefiqs 0.001 6 1"),
    ],
)
def test_published_only_beside_what_was_published(mode, own, expected):
    """Not in another mode, nor where another network compares. Where no pair fails there is nothing to average."""
    ratios, protocol = np.arange(7) / 20, Protocol(mode, (1e-3,), 0.3, 0)
    found = []
    for benchmark in BENCHMARKS:
        curve = Curve(mode, 1e-3, ratios, np.full(7, 0.0 if benchmark.name == "LFW" else 0.5), ratios, 9, 1000)
        comparison = Comparison({"prefiqs": [curve]}, {})
        found.append(Result(benchmark.name, "v", 9, comparison, benchmark.target if own else None))
    published = [row[-1] for result in found for row in result.make_rows(protocol)]
    assert any(published) == (own and mode == "crfiqa")
    assert format_averages(found, protocol)[-1].split() == expected.split()


def test_averages_leave_out_what_cannot_be_measured():
    """A list of 999 non-mated pairs, at FMR 1e-3, beside one of 1000."""
    ratios, protocol = RATIOS[:7], Protocol("crfiqa", (1e-3,), 0.3)
    found = []
    for name, fnmr, non_mated in (("LFW", 0.1, 999), ("CALFW", 0.5, 1000)):
        curve = Curve("crfiqa", 1e-3, ratios, np.full(7, fnmr), ratios, 9, non_mated)
        found.append(Result(name, "v", 9, Comparison({"prefiqs": [curve]}, {}), 1.0))
    assert found[0].make_rows(protocol) == [["LFW", "v", "prefiqs", "crfiqa", 1e-3, *[TOO_FEW] * 4, None, None, 1.0]]
    assert format_averages(found, protocol)[-1].split() == ["v", "prefiqs", "0.001", "1", "150"]
    assert format_averages(found[:1], protocol)[-1].split() == ["v", "prefiqs", "0.001", "0", *TOO_FEW.split()]


def test_refused(root, tmp_path):
    def refusal(*arguments):
        result = CliRunner().invoke(main, ["evaluate", *map(str, arguments), "-o", str(tmp_path / "out")])
        return result.exit_code, result.output

    assert refusal(root, "--protocol", "paper", "--pairs", root / "XQLFW" / "xqlfw_pairs.txt")[0] == 2
    (tmp_path / "empty").mkdir()
    code, output = refusal(tmp_path / "empty", "--protocol", "paper")
    assert code == 1
    assert "found none" in output
    assert "IJB-C is not there" in output


def kept(run):
    return json.loads((run[1] / "edc.json").read_text())["results"]


def decoded(picture):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(sets.jpeg(picture))))).permute(2, 0, 1)
