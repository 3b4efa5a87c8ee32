"""Which output is the embedding: the same rule for whatever runs a network, and an option of the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from duals import randn, seeded
from onnx import helper
from onnx_files import assert_equal, floats, make_model, onnx_runtime, saved
from torch import Tensor, nn

from prefiqs_ext import Pruning, Scorer, Settings, dualize, methods, models, reference, sensitivity
from prefiqs_ext.evaluation.image_set import ImageSet
from prefiqs_ext.evaluation.inference import Scoring, embed_images
from prefiqs_ext.models.embedding import select_embedding, select_output
from tests.command import Command

SIZE = 32
PRESET = models.PRESETS["arcface"].with_size(SIZE)


class Heads(nn.Module):
    """A quality and a norm, of one column each, before two embeddings."""

    def __init__(self, names: tuple[str, ...] = ("quality", "norm", "first", "second")) -> None:
        super().__init__()
        self.names = names
        self.conv, self.drop = nn.Conv2d(3, 8, 3, 2), nn.Dropout(0.4)
        self.quality, self.first, self.second = nn.Linear(8, 1), nn.Linear(8, 6), nn.Linear(8, 4)
        seeded(self)

    def forward(self, x: Tensor) -> Any:
        x = self.drop(self.conv(x).mean((2, 3)))
        first = self.first(x)
        outputs = {"quality": self.quality(x), "norm": first.norm(dim=1, keepdim=True), "first": first}
        outputs["second"] = self.second(x)
        return {name: outputs[name] for name in self.names}


class InATuple(Heads):
    def forward(self, x: Tensor) -> Any:
        return tuple(super().forward(x).values())


@pytest.mark.parametrize(("output", "name"), [(None, "first"), ("second", "second")])
def test_one_rule_for_all_that_run_a_network(output: int | str | None, name: str) -> None:
    network, alone = Heads().eval(), Heads((name,)).eval()
    batch = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = alone(PRESET.normalize()(batch))[name]
    scorer = Scorer(network, preset=PRESET, output=output)
    found = scorer(batch)
    # One layer after another against the folded form: rounding.
    torch.testing.assert_close(found.embedding, F.normalize(expected), rtol=0, atol=1e-6)
    assert (found.distance > 1e-3).all()
    assert scorer.settings.output == output
    assert torch.equal(select_embedding(network(PRESET.normalize()(batch)), output), expected)
    assert torch.equal(
        reference.score(network, batch, preset=PRESET, output=output).distance,
        reference.score(alone, batch, preset=PRESET).distance,
    )
    estimates = [
        sensitivity(batch, model, Pruning(), preset=PRESET, output=said)
        for model, said in ((network, output), (alone, None))
    ]
    assert torch.equal(*estimates)
    for method in ("serfiq", "prefiqs", "norm"):
        scores = [
            methods.create(method, model, PRESET, output=said).score(batch)
            for model, said in ((network, output), (alone, None))
        ]
        torch.testing.assert_close(*scores, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", [dict, tuple])
@pytest.mark.parametrize("output", [None, 0, 1])
def test_one_column_is_no_embedding(output: int | None, form: type) -> None:
    model = (Heads if form is dict else InATuple)(("quality", "norm")).eval()
    what = "among the network's outputs" if output is None else f"as the output {output}"
    message = rf"expected an embedding, a floating tensor \[N, d\] of 2 columns or more, {what}; got \[1, 1\]"
    with pytest.raises(ValueError, match=message) as error:
        dualize(model, example=randn(1, 3, SIZE, SIZE), output=output)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        reference.score(model, randn(1, 3, SIZE, SIZE), output=output)


def test_an_output_by_name_or_index() -> None:
    by_name = {"0": "a", "683": "b", "1": "c"}
    for output, found in (("0", "a"), ("1", "c"), (1, "b"), (-1, "c"), ("2", "c")):
        assert select_output(by_name, output) == found
    assert select_output(("a", "b"), "1") == select_output(["a", "b"], 1) == "b"
    assert select_output("abc", None) == "abc"


def test_an_output_of_a_network_that_has_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    x = randn(2, 3, 8, 8)
    assert torch.equal(Scorer(model, example=x, output=0)(x).embedding, Scorer(model, example=x)(x).embedding)
    with pytest.raises(ValueError, match="the network has no output 'logits': expected none, for it has but one"):
        Scorer(model, example=x, output="logits")


def test_several_outputs_come_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Sigmoid", ["x"], ["z"])]
    path = saved(make_model(nodes, ("n", 4), outputs=("y", "z")), tmp_path)
    x = floats(2, 4)
    got = models.import_onnx(path)(torch.from_numpy(x))
    assert list(got) == ["y", "z"]
    for ours, theirs in zip(got.values(), onnx_runtime(path, x), strict=True):
        assert_equal(ours.numpy(), theirs)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An ONNX file of three outputs, whose names are numbers as in files of InsightFace; and 24 crops of four
    people in `people`."""
    monkeypatch.chdir(tmp_path)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[8, 8]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        *(helper.make_node("Gemm", ["f", f"g{name}"], [name]) for name in ("0", "683", "1")),
    ]
    columns = {"0": 1, "683": 16, "1": 8}
    constants = {"w": floats(8, 3, 8, 8)} | {
        f"g{name}": floats(8 * 16, count, seed=count) for name, count in columns.items()
    }
    model = make_model(nodes, ("n", 3, SIZE, SIZE), constants, outputs=tuple(columns))
    Path("several.onnx").write_bytes(model.SerializeToString())
    random = np.random.default_rng(0)
    for index in range(24):
        Path(f"people/{index // 6}").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"people/{index // 6}/{index}.png", random.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
    return "several.onnx"


def test_the_option_of_the_commands(file: str, command: Command) -> None:
    common = ["people", "--aligned", "--model", file, "--preset", "arcface", "--size", str(SIZE)]
    widths = {}
    for name, of in (("", []), ("683", ["--output-name", "683"]), ("1", ["--output-name", "1"])):
        result = command("score", *common, *of, "-o", f"t{name}.csv", "--embeddings", f"t{name}.npy", "--workers", "0")
        assert result.code == 0, result.err
        widths[name] = np.load(f"t{name}.npy").shape[1]
    assert widths == {"": 16, "683": 16, "1": 8}  # "1" is a name there, not an index
    assert Path("t.csv").read_text() == Path("t683.csv").read_text() != Path("t1.csv").read_text()
    result = command("score", *common, "--output-name", "0")
    assert result.code == 1
    assert "expected an embedding, a floating tensor [N, d] of 2 columns or more, as the output '0'" in result.err
    result = command("score", *common, "--output-name", "7")
    assert result.err.endswith("the network has no output '7': expected one of '0', '683', '1'\n")


def test_settings_keep_it(file: str, command: Command) -> None:
    common = ["people", "--aligned", "--model", file, "--preset", "arcface", "--size", f"{SIZE}x{SIZE}"]
    Scorer(file, preset=PRESET, output="1").settings.save("settings.json")
    refused = command("calibrate", *common, "--output-name", "7", "-o", "none.json")
    assert refused.err.endswith("the network has no output '7': expected one of '0', '683', '1'\n")
    settings = Settings.load("settings.json")
    assert (settings.output, settings.preset) == ("1", PRESET)
    settings_of = ["score", "people", "--aligned", "--settings", "settings.json", "--workers", "0"]
    assert command(*settings_of, "--embeddings", "e.npy", "-o", "e.csv").code == 0
    assert np.load("e.npy").shape[1] == 8
    for option in (["--output-name", "683"], ["--size", "32"]):
        result = command(*settings_of, *option)
        assert result.code == 2
        assert f"--settings says {option[0][2:]} already: leave {option[0]} out" in result.err


def test_evaluation_and_its_cache(file: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIQS_HOME", "home")
    network, _ = models.load(file, PRESET)
    images = ImageSet(sorted(map(str, Path("people").glob("*/*"))))
    first, second = (Scoring(network, PRESET, Pruning(), output=name).score_images(images) for name in ("683", "1"))
    assert first.embeddings.shape != second.embeddings.shape
    np.testing.assert_allclose(embed_images(images, network, PRESET), first.embeddings, atol=1e-6)
    arguments = ["--model", file, "--preset", "arcface", "--size", str(SIZE), "--output-name", "1"]
    result = command(
        "evaluate",
        "people",
        *arguments,
        "--methods",
        "norm",
        "--resamples",
        "0",
        "--max-discard",
        "0.3",
        "-o",
        "evaluation",
    )
    assert result.code == 0, result.err
    assert json.loads(Path("evaluation/edc.json").read_text())["options"]["output"] == "1"
