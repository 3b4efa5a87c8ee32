"""load: every layout against functions of torch alone; wrappers, heads and formats of files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import layouts
import pytest
import torch
from checkpoint_layouts import LAYOUTS, Layout, preset_of, wrapped
from duals import check
from layouts import State
from networks import network_input, pictures
from safetensors.torch import save_file
from torch import Tensor, nn

from prefiqs_ext import Pruning, Scorer, models, reference
from prefiqs_ext.exceptions import FileAccessError
from prefiqs_ext.models import checkpoint, load
from prefiqs_ext.models.mobilefacenet import MobileFaceNet

# float32 against float64, of the largest value; a wrong stride, eps or name is above 1e-3.
TOLERANCE = 1e-5


def loaded(path: Path) -> nn.Module:
    """The network of a file whose preset is a guess."""
    with pytest.warns(UserWarning, match="a guess by its layout: pass preset= to be sure"):
        return load(path)[0]


def difference(model: nn.Module, layout: Layout, state: State) -> float:
    x = network_input(pictures(2, layout.size, seed=3))
    expected = layout.forward({name: tensor.double() for name, tensor in state.items()}, x.double())
    with torch.no_grad():
        return float((model(x) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    state = layout.state()
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.warns(UserWarning, match=rf"backbone.pth: taken for input of preset '{layout.preset}' \("):
        model, preset = load(tmp_path / "backbone.pth")
    assert preset == preset_of(layout)
    assert not model.training
    assert difference(model, layout, state) < TOLERANCE
    check(model, network_input(pictures(2, layout.size)), Pruning())


@pytest.mark.parametrize(
    "name",
    [
        "iresnet, 64 pixels",
        "curricularface",
        "adaface, IR-SE",
        "facexzoo",
        "SE-IResNet",
        "adaface, bottlenecks, IR-SE",
        "arcface_torch, MobileFaceNet",
    ],
)
def test_scores_of_a_file_are_those_of_two_models(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    torch.save(layout.state(), tmp_path / "backbone.pth")
    preset = models.Preset("own", (layout.size, layout.size), "bgr", (127.5,) * 3, (127.5,) * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is guessed where the preset is given
        scorer = Scorer(tmp_path / "backbone.pth", preset=preset)
        network, _ = load(tmp_path / "backbone.pth", preset)
    images = pictures(3, layout.size, seed=4)
    expected = reference.score(network, images, preset=preset)
    assert float((scorer(images).distance - expected.distance).abs().max()) < TOLERANCE


@pytest.mark.parametrize(("blocks", "scale"), [((1, 4, 6, 2), 1), ((1, 4, 6, 2), 2), ((2, 8, 12, 4), 4)])
def test_published_sizes_of_arcface_torch(blocks: tuple[int, int, int, int], scale: int) -> None:
    """The large one has bottlenecks for a second layer; else that layer has 64 groups, whatever its width."""
    layout = LAYOUTS["arcface_torch, MobileFaceNet"]
    state = layouts.arcface_mobilefacenet_state(blocks, scale=scale, last=3)
    model, preset = checkpoint._build_network(state, None)
    assert preset == preset_of(layout)
    assert model.state_dict().keys() == state.keys()
    assert difference(model, layout, state) < TOLERANCE


@pytest.mark.parametrize("blocks", [(3, 8, 36, 3), (3, 24, 36, 3)])
def test_depths_of_152_and_200(blocks: tuple[int, ...]) -> None:
    """AdaFace's counts of bottlenecks, with a 16th of its channels."""
    layout = LAYOUTS["adaface, bottlenecks"]
    channels = [out for count, out in zip(blocks, (16, 32, 64, 128), strict=True) for _ in range(count)]
    state = layouts.ir_state(channels, adaface=True, bottleneck=True, affine=False, last=2)
    model, preset = checkpoint._build_network(state, None)
    assert preset == models.PRESETS["adaface"].with_size(32)
    assert difference(model, layout._replace(size=32), state) < TOLERANCE


def magface(state: State) -> object:
    head = {"fc.weight": torch.zeros(100, 30)}
    return {"epoch": 25, "arch": "iresnet100", "state_dict": {**wrapped("features.module.", state), **head}}


WRAPPERS: dict[str, tuple[Callable[[State], object], str | None]] = {
    "module": (lambda state: wrapped("module.", state), None),
    "state_dict_backbone": (
        lambda state: {"state_dict_backbone": state, "state_dict_softmax_fc": {"weight": torch.zeros(9, 30)}},
        None,
    ),
    "training": (
        lambda state: {"model": wrapped("module.backbone.", state), "optimizer": {"lr": 0.1}, "epoch": 3},
        None,
    ),
    "head beside": (
        lambda state: {"state_dict": {**wrapped("backbone.", state), "head.kernel": torch.zeros(30, 100)}},
        "a classification head: head.kernel",
    ),
    "head's statistics": (
        lambda state: {
            "state_dict": {
                **wrapped("model.", state),
                "head.kernel": torch.zeros(30, 100),
                "head.t": torch.zeros(1),
                "head.batch_mean": torch.zeros(1),
            }
        },
        "a classification head: head.kernel, head.t, head.batch_mean",
    ),
    "CR-FIQA": (
        lambda state: {**state, "qs.weight": torch.zeros(1, 30), "qs.bias": torch.zeros(1)},
        None,
    ),
    "without num_batches_tracked": (
        lambda state: {name: tensor for name, tensor in state.items() if "num_batches" not in name},
        None,
    ),
    "half precision": (lambda state: {name: tensor.half() for name, tensor in state.items()}, None),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper: str, old: bool, tmp_path: Path) -> None:
    wrap, warning = WRAPPERS[wrapper]
    layout = LAYOUTS["iresnet, 64 pixels"]
    state = layout.state()
    torch.save(wrap(state), tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=not old)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, _ = load(tmp_path / "checkpoint.pt", preset_of(layout))
    assert [str(each.message).removeprefix("left out, ") for each in caught] == ([warning] if warning else [])
    if wrapper == "half precision":
        state = {name: tensor.half().float() for name, tensor in state.items()}
    assert difference(model, layout, state) < TOLERANCE
    assert all(tensor.dtype == torch.float32 for tensor in model.parameters())


@pytest.mark.parametrize("guessed", [False, True])
def test_magface(guessed: bool, tmp_path: Path) -> None:
    """Another eps; told by the prefix, or by the preset."""
    layout = LAYOUTS["iresnet, 64 pixels"]
    preset = preset_of(layout, "magface")
    state = {name: tensor * (1e-3 if "var" in name else 1) for name, tensor in layout.state().items()}
    torch.save(magface(state) if guessed else state, tmp_path / "magface.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, found = load(tmp_path / "magface.pth", None if guessed else preset)
    assert found == preset
    assert difference(model, layout._replace(forward=partial(layouts.iresnet, eps=2e-5)), state) < TOLERANCE
    assert difference(model, layout, state) > 100 * TOLERANCE


@pytest.mark.parametrize("prefix", ["features.module.", "module.features.module.", "backbone.", "model.", "module."])
def test_a_head_outside_named_as_a_layer_inside(prefix: str) -> None:
    """A MagFace training file has `features.module.fc.weight` and `fc.weight`: of the network, and of the head."""
    layout = LAYOUTS["iresnet, 64 pixels"]
    state = layout.state()
    for head in ("fc.weight", "fc.bias", "bn1.weight", "head.fc.weight", "weight"):
        centres = f"{head.rpartition('.')[0]}.weight".removeprefix(".")
        beside = {centres: torch.zeros(100, 30), head: torch.zeros(100, 30) if head == centres else torch.zeros(100)}
        with pytest.warns(UserWarning, match=rf"^left out, a classification head: {', '.join(beside)}$"):
            model, _ = checkpoint._build_network({**wrapped(prefix, state), **beside}, preset_of(layout))
        assert torch.equal(model.state_dict()["fc.weight"], state["fc.weight"])


def test_safetensors(tmp_path: Path) -> None:
    layout = LAYOUTS["facexzoo"]
    save_file(layout.state(), tmp_path / "backbone.safetensors")
    assert difference(loaded(tmp_path / "backbone.safetensors"), layout, layout.state()) < TOLERANCE


def test_a_guess_has_the_size_of_the_network(tmp_path: Path) -> None:
    layout = LAYOUTS["adaface, IR-SE"]
    torch.save(layout.state(), tmp_path / "small.pth")
    with pytest.warns(UserWarning, match="a guess by its layout"):
        scorer = Scorer(tmp_path / "small.pth")
    images = pictures(2, layout.size)
    network, preset = load(tmp_path / "small.pth", preset_of(layout))
    expected = reference.score(network, images, preset=preset)
    assert float((scorer(images).distance - expected.distance).abs().max()) < TOLERANCE


def test_a_file_too_large_or_missing_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefiqs_ext.models.loading.MAX_CHECKPOINT_BYTES", 10)
    (tmp_path / "model.pth").write_bytes(bytes(11))
    with pytest.raises(ValueError, match="expected at most 10 bytes, got 11"):
        load(tmp_path / "model.pth", "arcface")
    with pytest.raises(FileNotFoundError, match="no such model or file"):
        load(tmp_path / "none.pth")
    with pytest.raises(FileAccessError, match="expected a file, got a folder"):
        load(tmp_path, "arcface")
    with pytest.raises(ValueError, match=r"^no such model or file: r50; known: sface, "):
        Scorer("r50")


def test_facexzoo_was_pickled_whole(facexzoo_file: Path) -> None:
    """The real file: its faces are told apart, and every weight is the one in the file."""
    model, preset = load(facexzoo_file, "facexzoo")
    assert preset is models.PRESETS["facexzoo"]
    assert isinstance(model, MobileFaceNet)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_200_512
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    data = facexzoo_file.read_bytes()
    for name in ("conv1.conv.weight", "conv_5.model.1.project.bn.running_var", "linear.weight", "bn.bias"):
        assert state[name].numpy().tobytes() in data, name


def test_facexzoo_on_faces(facexzoo_file: Path, faces: tuple[Tensor, list[str]]) -> None:
    images, identities = faces
    out = Scorer("facexzoo")(images)
    same = torch.tensor([[a == b for b in identities] for a in identities])
    cosines = out.embedding @ out.embedding.T
    mated = cosines[same & ~torch.eye(len(images), dtype=torch.bool)]
    assert mated.median() > 0.4
    assert cosines[~same].median() < 0.1
    network, preset = models.load("facexzoo")
    expected = reference.score(network, images[:8], preset=preset)
    assert float((out.distance[:8] - expected.distance).abs().max()) < TOLERANCE


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "model.onnx", "model.dat"])
def test_a_file_that_may_not_be_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(100))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FileAccessError, match=rf"^cannot read .*{name} \(Permission denied\); check the path"):
        load(path, "arcface")


def test_a_path_that_cannot_be_looked_up(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"^cannot read .*xxx \(File name too long\); check the path"):
        load(tmp_path / ("x" * 300), "arcface")


@pytest.mark.parametrize("name", ["model.pth", "model.onnx", "model.dat"])
def test_a_folder_instead_of_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(FileAccessError, match="expected a file, got a folder"):
        load(tmp_path / name, "arcface")
