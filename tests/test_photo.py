"""score_photo: what `prefiqs score` gives for the same photo, bits included; every kind of photo; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import prefiqs_ext
from prefiqs_ext import FaceScore, Scorer
from prefiqs_ext.default_scorer import get_default_scorer
from prefiqs_ext.faces import RGB
from prefiqs_ext.files.pipeline import score_files

data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def two_faces(sface_file: Path, yunet_file: None) -> RGB:
    """The larger face on the right."""
    astronaut = data.astronaut()
    small = np.asarray(Image.fromarray(astronaut).resize((384, 384)))
    canvas = np.zeros((512, 900, 3), dtype=np.uint8)
    canvas[:384, :384] = small
    canvas[:, 388:] = astronaut
    return canvas


@pytest.fixture(scope="module")
def yunet_file() -> None:
    from prefiqs_ext.models import weights

    if weights.find_problem("yunet"):
        pytest.skip("the detector's weights are not in the cache folder")


def assert_same_faces(got: list[FaceScore], expected: list[FaceScore]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a.box, a.score, a.quality, a.distance, a.embedding_norm) == (
            b.box,
            b.score,
            b.quality,
            b.distance,
            b.embedding_norm,
        )
        assert torch.equal(a.embedding, b.embedding)
        assert np.array_equal(a.crop, b.crop)
        assert np.array_equal(a.landmarks, b.landmarks)


def test_it_is_what_prefiqs_score_gives(two_faces: RGB, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(two_faces).save(path, quality=95)
    faces = prefiqs_ext.score_photo(path)
    (expected,) = score_files([path], get_default_scorer())
    assert len(faces) == len(expected.records) == 2
    for face, record, embedding in zip(faces, expected.records, expected.embeddings, strict=True):
        assert (face.score, face.quality, face.distance, face.embedding_norm) == (
            record.score,
            record.quality,
            record.distance,
            record.embedding_norm,
        )
        assert (*face.box, face.detector_score) == (record.x, record.y, record.w, record.h, record.detector_score)
        assert torch.equal(face.embedding, embedding)
        assert face.crop.shape == (112, 112, 3)
        assert face.landmarks.shape == (5, 2)
        assert prefiqs_ext.score(face.crop).quality.tolist() == [face.quality]
    (x, _, width, _), (_, _, smaller, _) = (face.box for face in faces)
    assert x > 388  # the larger one comes first
    assert width > smaller
    assert_same_faces(prefiqs_ext.score_photo(Image.open(path)), faces)
    assert_same_faces(prefiqs_ext.score_photo(str(path)), faces)


def test_every_kind_of_photo(two_faces: RGB) -> None:
    expected = prefiqs_ext.score_photo(two_faces)
    assert_same_faces(prefiqs_ext.score_photo(two_faces[..., ::-1], colour="bgr"), expected)
    assert_same_faces(prefiqs_ext.score_photo(Image.fromarray(two_faces), scorer=get_default_scorer()), expected)


def test_no_face_is_an_empty_list(sface_file: Path, yunet_file: None) -> None:
    assert prefiqs_ext.score_photo(np.zeros((200, 300, 3), dtype=np.uint8)) == []


REFUSED: dict[str, tuple[Callable[[RGB], Any], type[Exception], str]] = {
    "None": (lambda a: None, TypeError, "expected one photo, a path, a NumPy array or a PIL image, got None$"),
    "a tensor": (lambda a: torch.from_numpy(a), TypeError, r"got Tensor: tensor.permute\(1, 2, 0\).numpy\(\) of"),
    "several": (lambda a: [a, a], TypeError, "got list: score the photos one by one$"),
    "bytes": (lambda a: a.tobytes(), TypeError, "got bytes: decode a file's content with"),
    "floats": (lambda a: a / 255, TypeError, "expected a uint8 numpy array, got float64"),
    "grey": (lambda a: a[..., 0], ValueError, r"expected an image \[H, W, 3\], got \[40, 50\]"),
    "RGBA": (lambda a: np.zeros((40, 50, 4), np.uint8), ValueError, r"leave the fourth channel out, array\[..., :3\]$"),
    "CHW": (lambda a: a.transpose(2, 0, 1), ValueError, r"expected an image \[H, W, 3\], got \[3, 40, 50\]"),
    "PIL grey": (lambda a: Image.fromarray(a[..., 0]), ValueError, r"mode 'RGB', got 'L': image.convert\('RGB'\)$"),
    "missing": (
        lambda a: "absent.jpg",
        FileNotFoundError,
        r"cannot read absent.jpg \(No such file or directory\); check the path",
    ),
    "URL": (
        lambda a: "http://example.com/a.jpg",
        ValueError,
        "got the URL http://example.com/a.jpg: download it first$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str, yunet_file: None) -> None:
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message) as caught:
        prefiqs_ext.score_photo(make(np.zeros((40, 50, 3), dtype=np.uint8)), scorer=small_scorer())
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, prefiqs_ext.PrefiqsError)


def small_scorer(**options: Any) -> Scorer:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return Scorer(network, **(options or {"preset": "arcface"}))


def test_refused_options(yunet_file: None) -> None:
    photo = np.zeros((40, 50, 3), dtype=np.uint8)
    without: Tensor = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="expected a scorer with a preset"):
        prefiqs_ext.score_photo(photo, scorer=small_scorer(example=without))
    with pytest.raises(ValueError, match="expected a finite min_face above 0, got 0"):
        prefiqs_ext.score_photo(photo, scorer=small_scorer(), min_face=0)
    with pytest.raises(ValueError, match="expected colour 'rgb' or 'bgr', got 'grey'"):
        prefiqs_ext.score_photo(photo, scorer=small_scorer(), colour="grey")  # type: ignore[arg-type]
