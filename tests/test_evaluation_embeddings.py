"""Embeddings that another tool has saved."""

import pickle

import numpy as np
import pytest

from prefiqs_ext.evaluation.datasets.readers import read_embeddings
from prefiqs_ext.evaluation.datasets.sources import EncodedCrop, LandmarkedPhoto, SwappedCrop
from prefiqs_ext.exceptions import MissingFileError

PATHS = ["data/ann/1.jpg", "data/bo/1.jpg", "data/bo/2.v2.png"]


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def save(folder, names, values):
    for name, row in zip(names, values, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, row)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_one_file(tmp_path, values, dtype):
    np.save(tmp_path / "e.npy", values.astype(dtype))
    result = read_embeddings(tmp_path / "e.npy", PATHS)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, unit(values.astype(dtype).astype(np.float64)), atol=1e-6)


def test_one_file_with_a_list(tmp_path, values):
    np.save(tmp_path / "e.npy", values)
    (tmp_path / "list.txt").write_text("elsewhere/bo/2.v2.png\nann/1.jpg\n/far/data/bo/1.jpg\n")
    result = read_embeddings(tmp_path / "e.npy", PATHS, tmp_path / "list.txt")
    np.testing.assert_allclose(result, unit(values[[1, 2, 0]]), atol=1e-6)
    assert len(read_embeddings(tmp_path / "e.npy", PATHS[1:], tmp_path / "list.txt")) == 2


def test_a_file_an_image(tmp_path, values):
    save(tmp_path, ["ann/1.npy", "bo/1.npy", "2.v2.npy"], [values[0], values[1][None], values[2]])
    np.testing.assert_allclose(read_embeddings(tmp_path, PATHS), unit(values), atol=1e-6)


def test_a_file_an_image_of_every_kind(tmp_path, values):
    save(tmp_path, ["00000.npy", "7.npy", "x.npy"], values)
    images = [
        EncodedCrop(b"", "image 0 of lfw.bin"),
        LandmarkedPhoto("crops/7.jpg", np.zeros((5, 2))),
        SwappedCrop("images/x.jpg"),
    ]
    np.testing.assert_allclose(read_embeddings(tmp_path, images), unit(values), atol=1e-6)


def header(shape):
    """Of a .npy that claims more than it has."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a .npy"),
        (b"no array", "expected a .npy"),
        (pickle.dumps(np.zeros((3, 8))), "expected a .npy"),
        (header((1 << 40, 8)), "expected a .npy"),
        (header((-1, 8)), "expected a .npy"),
        (header("((3, 8)"), "expected a .npy"),
        (np.array([[1], [2], [3]], object), "expected a .npy"),
        (np.ones((3, 8), np.int64), "floating-point"),
        (np.ones((3, 8), complex), "floating-point"),
        (np.ones((4, 8)), "expected embeddings of 3 images, got 4"),
        (np.ones(3), r"expected embeddings \[N, d\], got \[3\]"),
        (np.ones((3, 0)), "not 0; data/ann/1.jpg has another"),
        (np.diag([1, np.nan, 1]), "data/bo/1.jpg has another"),
        (np.diag([1, 1, np.inf]), "data/bo/2.v2.png has another"),
        (np.diag([1.0, 0, 1]), "data/bo/1.jpg has another"),
        (np.diag([1e300, 1, 1]), "data/ann/1.jpg has another"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_file(tmp_path, content, message):
    file = tmp_path / "e.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"e\.npy: .*{message}") as caught:
        read_embeddings(file, PATHS)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(MissingFileError, match=r"cannot read .*e\.npy \(No such file .*\); name a \.npy file"):
        read_embeddings(tmp_path / "e.npy", PATHS)
    np.savez(tmp_path / "e.npz", np.eye(3))
    with pytest.raises(ValueError, match=r"e\.npz: expected a \.npy"):
        read_embeddings(tmp_path / "e.npz", PATHS)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["ann/1.jpg", "bo/1.jpg", "x/bo/1.jpg"], "list.txt:3: 'x/bo/1.jpg' is listed twice"),
        (["ann/1.jpg", "bo/1.jpg"], "list.txt: expected 3 images, one per embedding, got 2"),
        (["ann/1.jpg", "bo/1.jpg", "bo/3.jpg"], "list.txt: data/bo/2.v2.png is not listed"),
    ],
)
def test_bad_list(tmp_path, values, listed, message):
    np.save(tmp_path / "e.npy", values)
    (tmp_path / "list.txt").write_text("\n".join(listed))
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "e.npy", PATHS, tmp_path / "list.txt")


def test_images_that_share_an_embedding(tmp_path, values):
    same = ["a/ann/1.jpg", "b/ann/1.jpg", "bo/1.jpg"]
    np.save(tmp_path / "e.npy", values)
    (tmp_path / "list.txt").write_text("\n".join(path.removeprefix("data/") for path in PATHS))
    with pytest.raises(ValueError, match=r"list\.txt:1: 'ann/1\.jpg' may be a/ann/1\.jpg or b/ann/1\.jpg"):
        read_embeddings(tmp_path / "e.npy", same, tmp_path / "list.txt")
    save(tmp_path, ["1.npy"], values[:1])
    with pytest.raises(ValueError, match=r"1\.npy: expected one embedding per image; data/ann/1\.jpg has it too"):
        read_embeddings(tmp_path, PATHS)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (None, r"data/bo/2\.v2\.png: no embedding .*bo/2\.v2\.npy"),
        (np.ones(9), r"2\.v2\.npy: expected \[8\], got \[9\]"),
        (np.ones((2, 4)), r"2\.v2\.npy: expected \[8\], got \[2, 4\]"),
        (np.float64(3), r"2\.v2\.npy: expected \[8\], got \[\]"),
        (np.full(8, np.nan), r"data/bo/2\.v2\.png has another"),
    ],
)
def test_bad_file_of_an_image(tmp_path, values, last, message):
    save(tmp_path, ["ann/1.npy", "bo/1.npy"], values[:2])
    if last is not None:
        save(tmp_path, ["bo/2.v2.npy"], [last])
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path, PATHS)
