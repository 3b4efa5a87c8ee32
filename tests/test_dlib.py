"""dlib's network from its own file, against dlib."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import pictures
from torch import Tensor

from prefiqs_ext import Pruning, Scorer, models, reference
from prefiqs_ext.models.dlib import DlibResNet, load_dlib


@pytest.fixture(scope="module")
def network(dlib_file: Path) -> DlibResNet:
    return load_dlib(dlib_file)


@pytest.fixture(scope="module")
def chips(faces: tuple[Tensor, list[str]]) -> Tensor:
    """Real faces at dlib's size, uint8 [N, 3, 150, 150]."""
    resized = F.interpolate(faces[0].float(), (150, 150), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def test_embeddings_are_dlibs(network: DlibResNet, chips: Tensor, dlib_file: Path) -> None:
    dlib = pytest.importorskip("dlib")
    model = dlib.face_recognition_model_v1(str(dlib_file))
    images = [np.ascontiguousarray(chip.permute(1, 2, 0).numpy()) for chip in chips[:12]]
    expected = np.array([list(model.compute_face_descriptor(image)) for image in images])
    with torch.no_grad():
        ours = network(chips[:12].float()).numpy()
    assert np.abs(ours - expected).max() < 1e-5


def test_scores_are_those_of_two_models(network: DlibResNet, chips: Tensor) -> None:
    for pruning in (Pruning(), Pruning(layers="conv+linear", scope="global")):
        out = Scorer("dlib", pruning)(chips[:6])
        expected = reference.score(network, chips[:6], pruning, preset="dlib")
        assert float((out.distance - expected.distance).abs().max()) < 1e-5
        torch.testing.assert_close(out.embedding.double(), expected.embedding, rtol=0, atol=1e-5)


def test_load(network: DlibResNet, dlib_file: Path) -> None:
    model, preset = models.load_model(dlib_file)
    assert preset is models.PRESETS["dlib"]
    x = pictures(1, 150).float()
    with torch.no_grad():
        assert torch.equal(model(x), network(x))
    assert network.mean.tolist() == pytest.approx([122.782, 117.001, 104.298])


@pytest.fixture(scope="module")
def data(dlib_file: Path) -> bytes:
    return dlib_file.read_bytes()


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"cannot load {path}: ") as error:
        load_dlib(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_truncated_anywhere(data: bytes, tmp_path: Path) -> None:
    places = [*range(0, 700, 7), *np.linspace(700, len(data) - 1, 20).astype(int).tolist(), len(data) - 1]
    for size in places:
        assert "truncated" in refused(tmp_path / "model.dat", data[:size])


def test_bytes_changed(data: bytes, tmp_path: Path) -> None:
    """One byte of the structure at a time: refused, or a number that no one can know to be wrong."""
    path = tmp_path / "model.dat"
    harmless = 0
    for at in range(data.index(b"con_4") + 5):
        changed = bytearray(data)
        changed[at] ^= 0x55
        path.write_bytes(changed)
        with suppress(ValueError):
            load_dlib(path)
            harmless += 1
    assert harmless < 30


def test_hostile(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.dat"
    assert "1 bytes follow the network" in refused(path, data + b"x")
    assert "expected a layer loss_metric_" in refused(path, data.replace(b"loss_metric_2", b"loss_metric_3", 1))
    assert "of dlib's face recognition network, got 'bn_con2'" in refused(path, data.replace(b"affine_", b"bn_con2", 1))
    at = data.index(b"con_4") + 5
    # A tensor that claims to have 2^62 values.
    assert "expected a size" in refused(path, data[: at + 2] + b"\x08" + b"\xff" * 8 + data[at + 4 :])
    generator = np.random.default_rng(0)
    for _ in range(50):
        refused(path, generator.bytes(1000))
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_dlib(tmp_path / "none.dat")
