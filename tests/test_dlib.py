"""dlib's network from its own file, against dlib. Files of random weights where the published one is not needed."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from pathlib import Path

import dlib_files
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dlib_files import Record, alias, boolean, changed, integer, join, records, string
from networks import pictures
from skimage.data import astronaut
from torch import Tensor

from prefiqs_ext import Pruning, Scorer, models, reference
from prefiqs_ext.faces import CropTemplate, align
from prefiqs_ext.models import load
from prefiqs_ext.models.dlib import DlibResNet
from prefiqs_ext.models.template import INSIGHTFACE_112


def dlibs_embeddings(file: Path, images: Tensor) -> np.ndarray:
    """float64 [N, 128]: what dlib makes of uint8 [N, 3, 150, 150] RGB."""
    dlib = pytest.importorskip("dlib")
    model = dlib.face_recognition_model_v1(str(file))
    chips = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]
    return np.array([list(model.compute_face_descriptor(chip)) for chip in chips])


def embeddings(network: DlibResNet, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return network(images.float()).numpy()


# --- the published weights ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(dlib_file: Path) -> DlibResNet:
    return load(dlib_file)[0]


@pytest.fixture(scope="module")
def chips(faces: tuple[Tensor, list[str]]) -> Tensor:
    """Real faces at dlib's size, uint8 [40, 3, 150, 150]."""
    resized = F.interpolate(faces[0].float(), (150, 150), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def test_embeddings_are_dlibs(network: DlibResNet, chips: Tensor, dlib_file: Path) -> None:
    # Values are below 1; both sum in float32, in another order.
    assert np.abs(embeddings(network, chips) - dlibs_embeddings(dlib_file, chips)).max() < 1e-5


# dlib, interpolation.h, get_face_chip_details: of five landmarks, the corners of both eyes and the base of the nose.
DLIBS_FIVE = (
    (0.8595674595992, 0.2134981538014),
    (0.6460604764104, 0.2289674387677),
    (0.1205750620789, 0.2137274526848),
    (0.3340850613712, 0.2290642403242),
    (0.4901123135679, 0.6277975316475),
)


def test_photos_are_cut_as_dlib_cuts_them() -> None:
    """The two find a face by other points, on a face that has dlib's mean shape."""
    dlib = pytest.importorskip("dlib")
    photo = np.ascontiguousarray(astronaut()[50:250, 100:350])
    turn = np.array([(1.1, 0.2), (-0.2, 1.1)]) / 2  # from a chip to the photo
    chip = (np.array(DLIBS_FIVE) + 0.25) / 1.5 * 150
    points = [dlib.point(*np.rint(point).astype(int)) for point in chip @ turn.T + (70, 30)]
    theirs = dlib.get_face_chip(photo, dlib.full_object_detection(dlib.rectangle(0, 0, 150, 150), points), 150, 0.25)
    template = load("dlib")[1].template
    ours = align(photo, np.array(template.landmarks) @ turn.T + (70, 30), template)
    # dlib takes points at whole pixels, and its eyes' corners are half a pixel off those of its own mean shape.
    assert np.abs(ours.astype(int) - theirs).mean() < 6
    other = align(photo, np.array(template.landmarks) @ turn.T + (70, 30), CropTemplate((150, 150)))
    assert np.abs(other.astype(int) - theirs).mean() > 30


def test_real_faces_are_told_apart_at_dlibs_threshold(network: DlibResNet, faces: tuple[Tensor, list[str]]) -> None:
    """In crops cut as dlib cuts them: "distances below 0.6" are one person (dlib, face_recognition.py)."""
    crops, names = faces
    template = load("dlib")[1].template
    cut = [align(crop.permute(1, 2, 0).numpy(), INSIGHTFACE_112.landmarks, template) for crop in crops]
    found = embeddings(network, torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2))
    near = np.linalg.norm(found[:, None] - found[None], axis=2) < 0.6
    same = np.equal(*np.meshgrid(names, names))
    pairs = np.triu(np.ones_like(same), 1).astype(bool)
    assert near[same & pairs].mean() > 0.9
    assert near[~same & pairs].mean() < 0.1  # .77 if the crops are cut as InsightFace cuts them


@pytest.mark.parametrize("pruning", [Pruning(), Pruning(layers="conv+linear", scope="global")], ids=["layer", "global"])
def test_scores_are_those_of_two_models(pruning: Pruning, network: DlibResNet, chips: Tensor) -> None:
    out = Scorer("dlib", pruning)(chips[:6])
    expected = reference.score(network, chips[:6], pruning, preset="dlib")  # in float64
    assert float((out.distance - expected.distance).abs().max()) < 1e-5
    torch.testing.assert_close(out.embedding.double(), expected.embedding, rtol=0, atol=1e-5)


def test_every_byte_is_understood(network: DlibResNet, dlib_file: Path) -> None:
    assert join(records(network, newest=False)) == dlib_file.read_bytes()


def test_load(network: DlibResNet, dlib_file: Path) -> None:
    model, preset = load(dlib_file)
    assert preset is models.PRESETS["dlib"]
    x = pictures(1, 150).float()
    with torch.no_grad():
        assert torch.equal(model(x), network(x))
    # dnn_face_recognition_ex.cpp leaves them at input_rgb_image_sized's defaults.
    assert network.mean.tolist() == pytest.approx([122.782, 117.001, 104.298])


# --- both formats, random weights ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_network() -> DlibResNet:
    return dlib_files.random_network(0)


@pytest.fixture(scope="module", params=[True, False], ids=["newest", "published"])
def written(request: pytest.FixtureRequest, random_network: DlibResNet) -> list[Record]:
    return records(random_network, newest=request.param)


def test_random_weights(written: list[Record], random_network: DlibResNet, tmp_path: Path) -> None:
    file = tmp_path / "model.dat"
    file.write_bytes(join(written))
    loaded = load(file)[0]
    assert not loaded.training
    for name, value in random_network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    images = pictures(3, 150)
    theirs = dlibs_embeddings(file, images)
    # Sums in float32, in another order.
    assert np.abs(embeddings(loaded, images) - theirs).max() < 2e-6 * np.abs(theirs).max()


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^cannot load {path}: ") as error:
        load(path)
    assert str(error.value).isprintable()
    return str(error.value)


def test_truncated_anywhere(written: list[Record], tmp_path: Path) -> None:
    """At the start and in the middle of every record of the header, and of many of the layers."""
    starts = np.cumsum([0, *(len(data) for _, data in written)]).tolist()
    layers = next(index for index, (name, _) in enumerate(written) if name == "con of the image: name")
    data = join(written)
    for index in [*range(0, layers + 30, 3), *range(layers + 30, len(written), 97), len(written) - 1]:
        assert "truncated" in refused(tmp_path / "model.dat", data[: starts[index]])
        middle = (starts[index] + starts[index + 1]) // 2
        assert "truncated" in refused(tmp_path / "model.dat", data[:middle])
    assert "truncated" in refused(tmp_path / "model.dat", data[:-1])


_HUGE = integer(2**62)


@pytest.mark.parametrize(
    ("record", "data", "message"),
    [
        ("loss: version", integer(2), "expected the loss of version 1, got 2"),
        ("loss: name", string("loss_metric_3"), "expected a layer loss_metric_ or loss_metric_2 of dlib's .*_3'$"),
        ("loss: name", _HUGE, "expected a size before byte 11, got 4611686018427387904"),
        ("loss: name", integer(-1), "expected a size before byte 4, got -1"),
        ("loss: margin", integer(2**63) + integer(1900), "expected a finite number before byte"),
        ("loss: margin", integer(0) + integer(32002), "expected a finite number before byte"),  # NaN
        ("loss: margin", b"\x09", r"expected an integer at byte 17, got 0x09"),
        ("fc: version", integer(3), "expected a layer of version 1 or 2, got 3"),
        ("tag: version", integer(2), "expected a layer of version 1, got 2"),
        ("input: name", string("input_rgb_image"), "got 'input_rgb_image'"),
        ("input: mean", integer(1) + integer(200), "mean has NaN or infinite values"),
        ("input: rows", integer(160), "expected a network for 150 x 150 pixels, got 160"),
        ("con of the image: name", string("bn_con2\n" * 100), "got 'bn_con2"),
        ("con of the image: values", integer(1), "expected a tensor of version 2, got 1"),
        ("con of the image: values", integer(2) + _HUGE * 4, "expected a size"),
        ("con of the image: values", integer(2) + integer(20_000_000) * 4, "truncated: 640000.* bytes expected"),
        ("con: filters", integer(33), r"expected a convolution of \(32, 3, 3, 1, 1, 1, 1\), got \(33, "),
        ("con: padding", integer(0), r"expected a convolution of .*, got \(32, 3, 3, 1, 1, 0, 1\)"),
        ("con: shape", alias(32, 3, 3, 32), r"expected filters \[32, 32, 3, 3\] with a bias, got \[32, 3, 3, 32\]"),
        ("con: shape of bias", alias(32, 1, 1, 1), r"expected filters .* and \[32, 1, 1, 1\]"),
        ("affine: name", string("bn_con2"), "expected a layer affine_ or affine_2 of dlib's .*, got 'bn_con2'"),
        ("affine: values", dlib_files.tensor(torch.ones(63)), "expected 32 scales and shifts"),
        ("affine: shape", alias(1, 1, 1, 32), "expected 32 scales and shifts, got"),
        ("affine: mode", integer(1), "expected an affine layer's mode of"),
        ("affine: setup called", b"2", "expected 0 or 1 at byte .*, got b'2'"),
        ("max_pool: padding", integer(1), r"expected a pooling of \(3, 3, 2, 2, 0, 0\), got \(3, 3, 2, 2, 1, 0\)"),
        ("add_prev: name", string("mult_prev_"), "expected a layer add_prev_ of .*, got 'mult_prev_'"),
        ("fc: outputs", integer(64), r"expected the linear layer of \(128, 256\), got \(64, 256\)"),
        ("fc: shape", alias(128, 256, 1, 1), r"expected 32768 weights of the linear layer, got \[128, 256, 1, 1\]"),
        ("fc: bias mode", integer(0), "expected the linear layer's bias mode of"),
    ],
)
def test_another_record(record: str, data: bytes, message: str, written: list[Record], tmp_path: Path) -> None:
    assert re.search(message, refused(tmp_path / "model.dat", changed(written, record, data)))


@pytest.mark.parametrize(
    ("record", "value", "message"),
    [
        ("con: use_bias", False, "expected a convolution's use_bias to be True, got False"),
        ("con: use_relu", True, "expected a convolution's use_relu to be False, got True"),
        ("affine: disabled", True, "expected an affine layer's disabled to be False, got True"),
        ("relu: disabled", True, "expected a ReLU's disabled to be False, got True"),
    ],
)
def test_layers_that_dlib_has_fused(
    record: str, value: bool, message: str, random_network: DlibResNet, tmp_path: Path
) -> None:
    """dlib's fuse_layers writes the same layers, of which some do nothing."""
    data = changed(records(random_network, newest=True), record, boolean(value))
    assert message in refused(tmp_path / "model.dat", data)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value: float, written: list[Record], tmp_path: Path) -> None:
    values = torch.ones(64)
    values[40] = value
    data = changed(written, "affine: values", dlib_files.tensor(values))
    assert "affine.bias has NaN or infinite values" in refused(tmp_path / "model.dat", data)


def test_not_such_a_file(written: list[Record], tmp_path: Path) -> None:
    path = tmp_path / "model.dat"
    assert "1 bytes follow the network" in refused(path, join(written) + b"x")
    generator = np.random.default_rng(0)
    for size in (0, 1, 1000):
        refused(path, generator.bytes(size))
    with path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(ValueError, match="expected at most 268435456 bytes, got 1099511627776"):
        load(path)
    with pytest.raises(FileNotFoundError, match="no such model or file"):
        load(tmp_path / "none.dat")


def test_random_changes(written: list[Record], tmp_path: Path) -> None:
    """Bytes of the header changed at random: refused, or a number that no one can know to be wrong; nothing worse."""
    generator = np.random.default_rng(1)
    data = bytearray(join(written))
    header = data.index(b"con_") + 5
    path = tmp_path / "model.dat"
    for _ in range(60):
        at = int(generator.integers(header))
        old, data[at] = data[at], int(generator.integers(256))
        path.write_bytes(data)
        with suppress(ValueError):
            load(path)
        data[at] = old
