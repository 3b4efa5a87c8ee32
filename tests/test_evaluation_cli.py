"""`prefiqs evaluate`, on pictures and with methods of the test's own."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import pictures
from PIL import Image

from prefiqs_ext import methods
from prefiqs_ext.cli import main
from prefiqs_ext.evaluation import cache
from prefiqs_ext.evaluation.all_pairs import all_pairs


@pytest.fixture
def data(tmp_path, monkeypatch, sface):
    for index, picture in enumerate(pictures(24, 112, seed=4)):
        folder = tmp_path / "data" / f"p{index // 6}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy().astype(np.uint8)).save(folder / f"{index}.png")
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "data"


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


def test_score_file(data):
    file, scores = scores_file(data)
    result = run(data, "--methods", "", "--scores", f"theirs={file}", "--lower-better", "theirs")
    assert result.exit_code == 0, result.output
    output = data.parent / "out"
    (cached,) = (data.parent / "cache" / "evaluation").iterdir()
    embeddings = np.load(cached)[:, :-2]  # beside them D and norm
    with (output / "edc.csv").open() as table:
        rows = list(csv.DictReader(table))
    curves = all_pairs(embeddings, np.repeat(np.arange(4), 6), -scores, ratios=np.arange(7) / 20)
    assert [float(row["pauc"]) for row in rows] == pytest.approx([curve.area(0.3) for curve in curves])
    kept = json.loads((output / "edc.json").read_text())
    assert kept["options"]["seed"] == 0
    assert kept["results"][0]["curves"]["theirs"][0]["mated"] == 60
    assert (output / "edc.png").read_bytes()[1:4] == b"PNG"
    assert b"<svg" in (output / "edc.svg").read_bytes()


def test_methods_and_cache(data, monkeypatch):
    calls = []

    def create(name, network, preset, *, pruning, seed):
        def score(images):
            assert images.dtype == torch.uint8
            calls.append(len(images))
            return images.float().mean((1, 2, 3))

        return SimpleNamespace(name=name, higher_is_better=False, needs_fit=False, score=score)

    monkeypatch.setattr(methods, "NAMES", ("dark",))
    monkeypatch.setattr(methods, "create", create)
    first, second = run(data, "--methods", "dark"), run(data, "--methods", "dark")
    assert first.exit_code == 0, first.output
    assert first.output == second.output
    assert calls == [24]
    assert "expected some of dark" in run(data, "--methods", "light").output


def test_refused(data):
    file, _ = scores_file(data)
    for arguments, message in [
        (["--scores", "theirs"], "expected --scores NAME=FILE"),
        (["--scores", f"a={file}", "--lower-better", "b"], "no --scores of that name"),
        (["--scores", f"a={file}", "--scores", f"a={file}"], "two methods"),
    ]:
        result = run(data, "--methods", "", *arguments)
        assert result.exit_code == 2
        assert message in result.output
    (data / "p0" / "small.png").write_bytes(b"no image")
    result = run(data, "--methods", "", "--scores", f"a={file}")
    assert result.exit_code == 1
    assert "no score of 1 images" in result.output
    assert not (data.parent / "out" / "edc.csv").exists()
