"""The images that a network or its file says it takes, against the preset; --size and --preset of the commands."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import cv2
import layouts
import numpy as np
import pytest
import torch
from networks import pictures
from onnx import helper
from onnx_files import assert_equal, floats, make_model, onnx_runtime, saved
from torch import nn

from prefiqs_ext import Scorer, models, sensitivity
from prefiqs_ext.cli.options import ModelOptions, ScoringOptions
from prefiqs_ext.models import import_onnx, load
from prefiqs_ext.models.dlib import DlibResNet
from tests.command import Command

ARCFACE = models.PRESETS["arcface"]


def pooled(folder: Path, shape: Sequence[int | str], name: str = "model.onnx") -> Path:
    """A network that computes something for images of any size, whatever size its file declares."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["y"]),
    ]
    constants = {"w": floats(8, int(shape[1]), 4, 4), "g": floats(8, 16, seed=1)}
    path = saved(make_model(nodes, tuple(shape), constants), folder)
    return path.rename(folder / name)


@pytest.mark.parametrize(
    ("declared", "fits", "refused", "remedy"),
    [
        (("n", 3, 160, 160), (160, 160), (112, 112), (160, 160)),
        ((1, 3, 112, 96), (112, 96), (112, 112), (112, 96)),
        (("n", 3, 64, "w"), (64, 80), (112, 80), (64, 80)),
        (("n", 3, "h", "w"), (80, 64), None, None),
    ],
)
def test_the_declaration_of_an_onnx_file(
    declared: tuple[int | str, ...],
    fits: tuple[int, int],
    refused: tuple[int, int] | None,
    remedy: tuple[int, int] | None,
    tmp_path: Path,
) -> None:
    path = pooled(tmp_path, declared)
    images = torch.randint(0, 256, (2, 3, *fits), dtype=torch.uint8)
    embeddings = Scorer(path, preset=ARCFACE.with_size(fits))(images).embedding
    network = import_onnx(path)
    for copied in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        for again in (copied, pickle.loads(pickle.dumps(copied))):
            assert again.declared_input == network.declared_input
            assert torch.equal(Scorer(again, preset=ARCFACE.with_size(fits))(images).embedding, embeddings)
    assert torch.equal(Scorer(network, preset=ARCFACE.with_size(fits))(images).embedding, embeddings)
    if refused is None or remedy is None:
        return
    message = (
        rf"expected a preset of the network's size \({remedy[0]}, {remedy[1]}\), got \({refused[0]}, {refused[1]}\) "
        rf"\('arcface'\): pass it with_size\(.*\), on the command line --size {remedy[0]}x{remedy[1]}$"
    )
    for model in (path, network):
        with pytest.raises(ValueError, match=message) as error:
            Scorer(model, preset=ARCFACE.with_size(refused))
        assert "\n" not in str(error.value)


def test_channels_last_are_permuted(tmp_path: Path) -> None:
    """As exporters of TensorFlow write: an input [N, H, W, 3], transposed in the graph."""
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["b", "w"], ["c"], strides=[4, 4]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["y"]),
    ]
    constants = {"mean": floats(3), "w": floats(8, 3, 4, 4), "g": floats(8 * 5 * 4, 16, seed=1)}
    path = saved(make_model(nodes, ("n", 20, 16, 3), constants), tmp_path)
    preset = models.PRESETS["sface"].with_size((20, 16))
    network, _ = load(path, preset)
    x = floats(2, 3, 20, 16)
    with torch.no_grad():
        assert_equal(
            network(torch.from_numpy(x)).numpy(), onnx_runtime(path, np.ascontiguousarray(x.transpose(0, 2, 3, 1)))[0]
        )
    images = torch.randint(0, 256, (2, 3, 20, 16), dtype=torch.uint8)
    with torch.no_grad():
        expected = nn.functional.normalize(network(images.float()))
    # Folded, in another order of additions.
    torch.testing.assert_close(Scorer(path, preset=preset)(images).embedding, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"the network's size \(20, 16\), got \(112, 112\)"):
        load(path, "sface")


def test_networks_of_other_images(tmp_path: Path) -> None:
    grey = pooled(tmp_path, ("n", 1, 112, 112))
    with pytest.raises(
        ValueError, match=r"a network of colour images \[N, 3, H, W\], this one takes \[N, 1, 112, 112\]"
    ):
        Scorer(grey, preset="arcface")
    assert Scorer(grey, example=torch.rand(1, 1, 112, 112)).preset is None


def test_architectures_of_ours(tmp_path: Path) -> None:
    for network in (models.iresnet18().eval(), DlibResNet().eval()):
        size = network.input_size
        with pytest.raises(ValueError, match=rf"expected a preset of the network's size \({size}, {size}\), got \(128"):
            sensitivity(pictures(1, 128), network, preset=ARCFACE.with_size(128))
    torch.save(layouts.iresnet_state((1, 1, 1, 1), last=4, features=30), tmp_path / "small.pth")
    with pytest.raises(ValueError, match=r"cannot load .*small\.pth: .*size \(64, 64\), got \(112, 112\)"):
        Scorer(tmp_path / "small.pth", preset="arcface")


@pytest.mark.parametrize("size", [(0, 112), (112,), 112.0, (112, True), 5000])
def test_sizes_that_no_preset_has(size: object) -> None:
    with pytest.raises((ValueError, TypeError), match="expected size"):
        ARCFACE.with_size(size)  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network of 48 x 32, and crops of this size."""
    monkeypatch.chdir(tmp_path)
    Path("crops").mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        cv2.imwrite(f"crops/{index}.png", random.integers(0, 255, (48, 32, 3), dtype=np.uint8))
    return pooled(tmp_path, ("n", 3, 48, 32), "small.onnx").name


def test_the_option_size(file: str, command: Command) -> None:
    common = ["score", "crops", "--aligned", "--workers", "0", "--model", file, "--preset", "arcface"]
    result = command(*common, "--size", "48x32")
    assert result.code == 0, result.err
    assert result.out.count(",ok,") == 3
    for more in ([], ["--size", "48"]):
        result = command(*common, *more)
        assert result.code == 1
        assert "expected a preset of the network's size (48, 32)" in result.err
        assert result.err.endswith("on the command line --size 48x32\n")
    for bad in ("48x", "x48", "a", "48x32x3", "-1", "0"):
        result = command(*common, "--size", bad)
        assert result.code == 2
        assert "HEIGHTxWIDTH" in result.err or "expected size (height, width)" in result.err


def test_size_and_output_are_in_the_record_of_a_run() -> None:
    """By which --resume tells whether it is the same run."""
    models_ = [ModelOptions("sface", *more) for more in ((), (None, (48, 32)), (None, (48, 48)), (None, None, "1"))]
    records = [ScoringOptions(model).to_dict() for model in models_]
    assert all(records.count(each) == 1 for each in records)
    assert json.loads(json.dumps(records)) == records


@pytest.mark.parametrize("name", ["score", "calibrate", "analyse", "evaluate", "tune"])
def test_no_command_guesses_a_preset(name: str, file: str, command: Command) -> None:
    torch.save(layouts.mobilefacenet_state(), "backbone.pth")
    for model in (file, "backbone.pth"):
        result = command(name, "crops", "--model", model)
        assert result.code == 2
        why = f"the file {model} cannot tell the input its network wants"
        assert result.err.endswith(f"--model: expected a preset: {why}; give --preset\n")
        assert "Warning" not in result.err
    assert command(name, "crops", "--model", file, "--preset", "arcface", "--size", "0").code == 2
    unknown = command(name, "crops", "--model", "sfase", "--preset", "arcface")
    assert unknown.code == 2
    assert "--model: no such model or file: sfase; known: sface, " in unknown.err


def test_verifiers_have_a_preset_too(file: str, command: Command) -> None:
    torch.save(layouts.mobilefacenet_state(), "backbone.pth")
    for person in "ab":
        for index in range(3):
            Path(person).mkdir(exist_ok=True)
            Path(f"people/{person}").mkdir(parents=True, exist_ok=True)
            Path(f"people/{person}/{index}.png").write_bytes(Path(f"crops/{index}.png").read_bytes())
    given = ["evaluate", "people", "--methods", "random", "--model", file, "--preset", "arcface", "--size", "48x32"]
    for model in (file, "backbone.pth"):
        result = command(*given, "--verifier", model)
        assert result.code == 2
        assert f"cannot tell the input its network wants; give PRESET:{model}" in result.err
    result = command(*given, "--verifier", f"arcface:{file}")
    assert "expected a preset of the network's size (48, 32)" in result.err
