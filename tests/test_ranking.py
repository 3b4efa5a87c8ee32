"""Which number ranks: the rule as a table, the field and the column `score`, and what selects and sorts by it."""

from __future__ import annotations

import copy
import csv
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from calibrations import make_calibration
from click.testing import CliRunner, Result
from onnx import helper
from PIL import Image
from torch import Tensor, nn

from prefiqs_ext import Pruning, ScoreOutput, Scorer, models, reference
from prefiqs_ext.calibration.scale import Prior
from prefiqs_ext.cli import main
from prefiqs_ext.models import weights
from prefiqs_ext.models.fingerprint import hash_weights
from prefiqs_ext.ranking import RANKINGS, Ranking, choose_ranking
from prefiqs_ext.report import Selection, render
from prefiqs_ext.report.distribution import Distribution
from prefiqs_ext.report.histogram import build_histogram
from tests.onnx_files import floats, make_model

KNOWN, UNKNOWN = weights.KNOWN["sface"].weights_sha256 or "", "0" * 64


@pytest.mark.parametrize(
    ("asked", "calibrated", "model", "expected"),
    [
        (None, False, UNKNOWN, "quality"),
        (None, False, KNOWN, "norm"),
        (None, False, weights.KNOWN["dlib"].weights_sha256, "quality"),
        (None, True, UNKNOWN, "calibrated"),
        (None, True, KNOWN, "calibrated"),
        *((asked, True, model, asked) for asked in RANKINGS for model in (KNOWN, UNKNOWN)),
        *((asked, False, model, asked) for asked in ("quality", "norm") for model in (KNOWN, UNKNOWN)),
    ],
)
def test_the_rule(asked: Ranking | None, calibrated: bool, model: str, expected: str) -> None:
    assert choose_ranking(asked, model, calibrated=calibrated) == expected


@pytest.mark.parametrize("name", models.BUILT_IN)
def test_known_networks_are_known_by_their_weights(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    file: Path = request.getfixturevalue(f"{name}_file")
    renamed = tmp_path / f"mine{file.suffix}"
    renamed.symlink_to(file)
    entry = weights.KNOWN[name]
    network, _ = models.load(renamed, entry.preset)
    assert weights.find_by_weights(hash_weights(network)) is entry
    assert choose_ranking(None, hash_weights(network)) == ("quality" if name == "dlib" else "norm")
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1
    assert weights.find_by_weights(hash_weights(network)) is None


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A quick one that no list knows."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=8), nn.PReLU(8), nn.Conv2d(8, 12, 3, stride=3), nn.Flatten(), nn.Linear(192, 16)
    ).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (23, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=[*RANKINGS, "calibrated by D"])
def scorer(request: pytest.FixtureRequest, network: nn.Module, images: Tensor) -> Scorer:
    """One for each number, and for each kind of calibration."""
    plain = Scorer(network, Pruning(sparsity=0.3), preset="arcface")
    if request.param in ("quality", "norm"):
        return Scorer(network, Pruning(sparsity=0.3), preset="arcface", rank_by=request.param)
    prior: Prior = "norm" if request.param == "calibrated" else "distance"
    calibration = make_calibration(plain.list_layers()[:2], prior=prior)
    return Scorer.from_settings(plain.settings.with_calibration(calibration), network)


def get_expected(scorer: Scorer, out: ScoreOutput) -> Tensor:
    if scorer.settings.calibration is not None:
        return scorer.settings.calibration(out.distance, out.embedding_norm, out.layer_norms)
    return out.embedding_norm if scorer.rank_by == "norm" else out.quality


def test_the_score_is_the_number_that_ranks(scorer: Scorer, images: Tensor) -> None:
    out = scorer(images)
    assert torch.equal(out.score, get_expected(scorer, out))
    assert (out.score.dtype, out.score.shape) == (torch.float32, (23,))
    assert scorer(images[:0]).score.shape == (0,)
    alone = [scorer(image).score for image in images[::5]]
    assert torch.equal(torch.cat(alone), out.score[::5])
    before = out.quality.clone(), out.embedding_norm.clone()
    out.score.zero_()  # a tensor of its own
    assert torch.equal(out.quality, before[0])
    assert torch.equal(out.embedding_norm, before[1])


def test_the_references_score_is_the_quality(network: nn.Module, images: Tensor) -> None:
    out = reference.score(network, images[:3], preset="arcface")
    assert torch.equal(out.score, out.quality)


def test_refusals(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^expected rank_by 'calibrated', 'quality', 'norm' or None, got 'D'$"):
        Scorer(network, preset="arcface", rank_by="D")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^expected settings with a calibration to rank by 'calibrated', got none"):
        Scorer(network, preset="arcface", rank_by="calibrated")


def test_settings_keep_what_was_asked_for(scorer: Scorer, network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    scorer.settings.save(tmp_path / "settings.json")
    again = Scorer.from_settings(tmp_path / "settings.json", network)
    for other in (again, copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):
        assert other.rank_by == scorer.rank_by
        assert torch.equal(other(images).score, scorer(images).score)
    over = Scorer.from_settings(tmp_path / "settings.json", network, rank_by="norm")
    assert over.rank_by == over.settings.rank_by == "norm"
    if scorer.settings.calibration is None:
        with pytest.raises(ValueError, match="got none: run `prefiqs calibrate`, and give the settings that it writes"):
            Scorer.from_settings(scorer.settings, network, rank_by="calibrated")


def test_exported_and_compiled(scorer: Scorer, images: Tensor) -> None:
    expected = scorer(images[:5])
    program = torch.export.export(scorer, (images[:3],), dynamic_shapes=({0: torch.export.Dim("rows", min=1)},))
    assert torch.equal(program.module()(images[:5]).score, expected.score)
    try:
        compiled = torch.compile(scorer.forward, backend="eager", fullgraph=True)
        assert torch.equal(compiled(images[:5]).score, expected.score)
    finally:
        torch.compiler.reset()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Tensor) -> Path:
    """A small network, and a folder `crops` of nine, one of them no image."""
    monkeypatch.chdir(tmp_path)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", strides=[8, 8]),
        helper.make_node("Flatten", ["c"], ["y"], name="flatten"),
    ]
    model = make_model(nodes, ("n", 3, 112, 112), {"w": floats(8, 3, 8, 8)})
    Path("small.onnx").write_bytes(model.SerializeToString())
    Path("crops").mkdir()
    for index, image in enumerate(images[:8].permute(0, 2, 3, 1).numpy()):
        dark = (image * (0.2 + 0.1 * index)).astype(np.uint8)
        Image.fromarray(np.repeat(np.repeat(dark[::8, ::8], 8, 0), 8, 1)).save(f"crops/{index}.png")
    Path("crops/text.jpg").write_text("text")
    return tmp_path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def run_on_crops(command: str, *more: object, code: int = 0) -> Result:
    network = () if "--settings" in more else ("--model", "small.onnx", "--preset", "arcface")
    return run(command, "crops", "--aligned", "--workers", 0, *network, *more, code=code)


def score(*more: object) -> list[dict[str, str]]:
    return list(csv.DictReader(run_on_crops("score", *more).stdout.splitlines()))


@pytest.mark.usefixtures("here")
def test_commands_follow_the_score() -> None:
    columns = {"quality": "quality", "norm": "embedding_norm"}
    by_rule = score()
    for rank_by, column in columns.items():
        records = score("--rank-by", rank_by)
        assert list(records[0])[:4] == ["path", "face", "status", "score"]
        assert [record["score"] for record in records] == [record[column] for record in records]
        assert records[-1]["score"] == ""
        assert (records == by_rule) == (rank_by == "quality")  # nobody knows the network
        ranked = sorted(records[:-1], key=lambda record: -float(record[column]))
        assert score("--rank-by", rank_by, "--top", 3) == ranked[:3]
        below = [record for record in records[:-1] if float(record[column]) < float(ranked[4][column])]
        assert len(below) == 3
        assert score("--rank-by", rank_by, "--below", ranked[4][column]) == below
        none = run_on_crops("score", "--rank-by", rank_by, "--below", 0)
        assert none.stdout.count("\n") == 1
        assert "no score is below 0, in the unit of the number that --rank-by names" in none.stderr
        run_on_crops("score", "--rank-by", rank_by, "--top", 2, "-o", "t.txt")
        assert Path("t.txt").read_text() == "".join(f"{one['path']} {one['score']}\n" for one in ranked[:2])
        run_on_crops("report", "--rank-by", rank_by, "-o", "page.html")
        page = Path("page.html").read_text()
        names = re.findall(r'<bdi class="name" dir="ltr">([^<]*)</bdi>', page)
        assert names == [*(Path(record["path"]).name for record in ranked), "text.jpg"]
        shown = [float(text) for text in re.findall(r'<div class="score">([\d.]+)</div>', page)]
        assert shown == pytest.approx([float(record[column]) for record in ranked], abs=0.005)
    assert score("--rank-by", "quality", "--top", 8) != score("--rank-by", "norm", "--top", 8)


@pytest.mark.usefixtures("here")
def test_commands_with_a_calibration() -> None:
    scorer = Scorer("small.onnx", preset="arcface")
    pixels = np.stack([np.asarray(Image.open(f"crops/{index}.png")) for index in range(8)])
    out = scorer(pixels)
    calibration = make_calibration()
    scorer.settings.with_calibration(calibration).save("settings.json")
    records = score("--settings", "settings.json")
    expected = calibration(out.distance, out.embedding_norm, out.layer_norms)
    assert [np.float32(record["score"]) for record in records[:-1]] == list(expected.numpy())
    middle = float(expected.sort().values[3:5].mean())  # the table's numbers are rounded
    assert score("--settings", "settings.json", "--rank-by", "norm") == score("--rank-by", "norm")
    assert len(score("--settings", "settings.json", "--below", middle)) == int((expected < middle).sum()) > 0
    run_on_crops("report", "--settings", "settings.json", "-o", "page.html")
    page = Path("page.html").read_text()
    assert "expected 60.0, found 55.5, 11 copies" in page
    assert '<circle cx="144.0" cy="106.8" r="5">' in page  # of 240 pixels
    assert "Reliability" not in run_on_crops("report", "--rank-by", "norm", "-o", "plain.html").stdout
    assert "Reliability" not in Path("plain.html").read_text()
    shown = re.findall(r'<div class="score">([\d.]+)</div>', Path("page.html").read_text())
    assert shown == [f"{number:.1f}" for number in expected.sort(descending=True).values.tolist()]


@pytest.mark.usefixtures("here")
def test_wrong_rankings_are_found_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    Scorer("small.onnx", preset="arcface").settings.save("settings.json")
    monkeypatch.setattr("prefiqs_ext.scorer.Scorer", None)  # calling it would be another error
    for command in ("score", "report"):
        for more in ((), ("--settings", "settings.json")):
            result = run_on_crops(command, "--rank-by", "calibrated", *more, code=2)
            assert "expected settings with a calibration to rank by 'calibrated', got none: run" in result.stderr
        result = run_on_crops(command, "--rank-by", "D", code=2)
        assert "'D' is not one of 'calibrated', 'quality', 'norm'" in result.stderr


@pytest.mark.usefixtures("here")
def test_a_run_goes_on_with_the_same_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killed:
        killed.setattr("prefiqs_ext.files.Writer.finish", lambda self: None)
        run_on_crops("score", "-o", "t.jsonl", "--rank-by", "norm")
    for more, other in (((), "None"), (("--rank-by", "quality"), "'quality'")):
        result = run_on_crops("score", "-o", "t.jsonl", "--resume", *more, code=2)
        assert f"t.jsonl.part was made with rank_by 'norm', not {other}: go on with the same" in result.output
    run_on_crops("score", "-o", "t.jsonl", "--resume", "--rank-by", "norm")
    record = json.loads(Path("t.jsonl").read_text().splitlines()[0])
    assert record["score"] == record["embedding_norm"]


@pytest.mark.parametrize("top", [1.0, 12.7, 100.0, 5e4, 3e30])
def test_a_histogram_of_any_range(top: float) -> None:
    numbers = np.random.default_rng(0).uniform(0.3 * top, top, 60_000)
    scores = Distribution()
    for number in (*numbers.tolist(), top):
        scores.add(number)
    assert len(scores.counts) <= 20_000
    assert scores.counts.total() == 60_001
    drawn = build_histogram(scores)
    assert 8 <= len(drawn.bars) <= 41
    assert sum(int(bar.hint.rpartition(": ")[2].replace(",", "")) for bar in drawn.bars) == 60_001
    edges = [float(bar.hint.split(" ")[0]) for bar in drawn.bars]
    assert edges[0] <= 0.3 * top * 1.01
    # Even numbers make even bars: all but the first and last are as full as their width.
    full = [int(bar.hint.rpartition(": ")[2].replace(",", "")) for bar in drawn.bars][1:-1]
    assert min(full) > 0.8 * max(full)
    for share in (0.05, 0.5, 0.95):
        assert scores.quantile(share) == pytest.approx(np.quantile(numbers, share), rel=0.005)
    assert scores.quantile(0.0) >= 0
    assert np.isnan(Distribution().quantile(0.5))


def test_a_page_without_scores() -> None:
    for rank_by in RANKINGS:
        assert "Higher is better." in render(Selection(), "/nowhere", {}, rank_by)
