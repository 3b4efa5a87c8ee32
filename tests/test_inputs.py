"""What score() and a Scorer take: every kind gives the bits of the tensor; what is ambiguous gets one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import prefiqs_ext
from prefiqs_ext import Preset, ScoreOutput, Scorer
from prefiqs_ext.inputs import make_batch

PRESET = Preset("tiny", (16, 20), "bgr", (127.5,) * 3, (127.5,) * 3)
Levels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.PReLU(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6)
    )
    return Scorer(network.eval(), preset=PRESET)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """NCHW; no channel is like another."""
    return torch.randint(0, 256, (4, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def arrays(images: Tensor) -> Levels:
    """The same, NHWC."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


@pytest.fixture
def files(arrays: Levels, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{index}.png" for index in range(len(arrays))]
    for path, levels in zip(paths, arrays, strict=True):
        Image.fromarray(levels).save(path)
    return paths


def assert_same_bits(got: ScoreOutput, expected: ScoreOutput) -> None:
    for name, a, b in zip(ScoreOutput._fields, got, expected, strict=True):
        assert torch.equal(a, b), name


def read_only(array: Levels) -> Levels:
    array = array.copy()
    array.flags.writeable = False
    return array


ALL: dict[str, Callable[[Tensor, Levels, list[Path]], Any]] = {
    "NCHW": lambda t, a, f: t,
    "NHWC array": lambda t, a, f: a,
    "a read-only array": lambda t, a, f: read_only(a),
    "an array turned twice": lambda t, a, f: a[:, ::-1, ::-1].copy()[:, ::-1, ::-1],
    "list of CHW": lambda t, a, f: list(t),
    "list of HWC arrays": lambda t, a, f: list(a),
    "tuple of PIL images": lambda t, a, f: tuple(map(Image.fromarray, a)),
    "list of files of PIL": lambda t, a, f: list(map(Image.open, f)),
    "paths": lambda t, a, f: f,
    "paths as text": lambda t, a, f: list(map(str, f)),
    "a mixed list": lambda t, a, f: [t[0], a[1], Image.fromarray(a[2]), f[3]],
}
ONE: dict[str, Callable[[Tensor, Levels, list[Path]], Any]] = {
    "CHW": lambda t, a, f: t[0],
    "floating CHW": lambda t, a, f: t[0] / 255,
    "HWC array": lambda t, a, f: a[0],
    "PIL image": lambda t, a, f: Image.fromarray(a[0]),
    "path": lambda t, a, f: f[0],
    "text": lambda t, a, f: str(f[0]),
}
BGR: dict[str, Callable[[Tensor, Levels], Any]] = {
    "NCHW": lambda t, a: t.flip(1),
    "CHW": lambda t, a: t[0].flip(0),
    "NHWC array": lambda t, a: a[..., ::-1],
    "HWC array": lambda t, a: a[0][..., ::-1],
    "list": lambda t, a: [t[0].flip(0), a[1][..., ::-1].copy()],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ALL)
def test_every_kind_has_the_bits_of_the_tensor(
    scorer: Scorer, images: Tensor, arrays: Levels, files: list[Path], kind: str
) -> None:
    assert_same_bits(scorer(ALL[kind](images, arrays, files)), scorer(images))


@pytest.mark.parametrize("kind", ONE)
def test_one_image_is_a_batch_of_one(
    scorer: Scorer, images: Tensor, arrays: Levels, files: list[Path], kind: str
) -> None:
    got, expected = scorer(ONE[kind](images, arrays, files)), scorer(images[:1])
    if kind == "floating CHW":  # x / 255 * 255 is not always x
        torch.testing.assert_close(got.distance, expected.distance, rtol=0, atol=1e-6)
    else:
        assert_same_bits(got, expected)


@pytest.mark.parametrize("kind", BGR)
def test_bgr_is_turned(scorer: Scorer, images: Tensor, arrays: Levels, kind: str) -> None:
    given = BGR[kind](images, arrays)
    got = scorer(given, colour="bgr")
    assert_same_bits(got, scorer(images[: len(got.distance)]))
    assert not torch.equal(got.distance, scorer(given).distance)


def test_nothing_is_copied_of_a_tensor_or_a_plain_array(images: Tensor, arrays: Levels) -> None:
    cpu = torch.device("cpu")
    assert make_batch(images, PRESET, device=cpu) is images
    assert make_batch(images[0], PRESET, device=cpu).data_ptr() == images.data_ptr()
    assert make_batch(arrays, PRESET, device=cpu).data_ptr() == arrays.ctypes.data


def test_an_empty_array_gives_empty_tensors(scorer: Scorer, arrays: Levels) -> None:
    assert [len(field) for field in scorer(arrays[:0])] == [0] * 7


def test_a_camera_that_was_turned(scorer: Scorer, images: Tensor, arrays: Levels, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    path = tmp_path / "turned.png"
    Image.fromarray(arrays[0][::-1, ::-1].copy()).save(path, exif=exif)
    for given in (path, Image.open(path)):
        assert_same_bits(scorer(given), scorer(images[:1]))


def test_score_takes_them_too(sface_file: Path, crops: Tensor) -> None:
    array = crops[0].permute(1, 2, 0).numpy()
    expected = prefiqs_ext.score(crops[:1])
    for given in (crops[0], array, [array], Image.fromarray(array)):
        assert_same_bits(prefiqs_ext.score(given), expected)
    assert_same_bits(prefiqs_ext.score(array[..., ::-1], colour="bgr"), expected)


# --- refused: the thing, and the line --------------------------------------------------------------------------------

SIZES = r"expected an array \[16, 20, 3\] or \[N, 16, 20, 3\] \(preset 'tiny'\), got "
REFUSED: dict[str, tuple[Callable[[Tensor, Levels, list[Path]], Any], type[Exception], str]] = {
    "None": (lambda t, a, f: None, TypeError, "expected a tensor, a NumPy array, .* or a list of these, got None"),
    "a number": (lambda t, a, f: 3, TypeError, "expected a tensor, .* got int"),
    "bytes": (
        lambda t, a, f: f[0].read_bytes(),
        TypeError,
        r"got bytes: decode a file's content with prefiqs_ext.faces.decode_rgb\(data, name\)",
    ),
    "a generator": (lambda t, a, f: iter(f), TypeError, "got list_iterator: make a list of it"),
    "an empty list": (lambda t, a, f: [], ValueError, "expected one image or more, got an empty list"),
    "a list of lists": (
        lambda t, a, f: [[1, 2]],
        TypeError,
        "image 0 of the list: expected one image, got a list: give one flat list",
    ),
    "a list of batches": (
        lambda t, a, f: [t, t],
        ValueError,
        r"image 0 of the list: expected one image, got shape \[4, 3, 16, 20\]: batches are joined by torch.cat.*",
    ),
    "mixed sizes": (
        lambda t, a, f: [a[0], a[1, :9]],
        ValueError,
        r"image 1 of the list: expected an array \[16, 20, 3\] .* got \[9, 20, 3\]; align and crop .*",
    ),
    "mixed types": (
        lambda t, a, f: [t[0], t[1] / 255],
        TypeError,
        "expected images of one type, got uint8 and float32: make them all uint8 of 0-255",
    ),
    "float array": (
        lambda t, a, f: a / 255,
        TypeError,
        r"expected a uint8 array of levels 0-255, got float64: \(array \* 255\).round\(\).astype\('uint8'\) if it is "
        r"in \[0, 1\], array.round\(\).astype\('uint8'\) if in 0-255",
    ),
    "integer array": (
        lambda t, a, f: a.astype(int),
        TypeError,
        r"expected a uint8 array of levels 0-255, got int64: array.astype\('uint8'\) if its levels are 0-255",
    ),
    "16-bit array": (
        lambda t, a, f: a.astype(np.uint16),
        TypeError,
        r"expected a uint8 array of levels 0-255, got uint16: of 16-bit levels \(array // 257\).astype\('uint8'\), .*",
    ),
    "mask array": (
        lambda t, a, f: a > 9,
        TypeError,
        r"expected a uint8 array of levels 0-255, got bool: array.astype\('uint8'\) \* 255",
    ),
    "array of objects": (
        lambda t, a, f: a.astype(object),
        TypeError,
        "expected a uint8 array of levels 0-255, got object: give levels as numbers",
    ),
    "another size": (
        lambda t, a, f: a[:, :9],
        ValueError,
        SIZES + r"\[4, 9, 20, 3\]; align and crop to that size first; a photo\? prefiqs_ext.score_photo\(photo\)",
    ),
    "five dimensions": (lambda t, a, f: a[None], ValueError, SIZES + r"\[1, 4, 16, 20, 3\]; align and crop .*"),
    "PIL grey": (
        lambda t, a, f: Image.fromarray(a[0]).convert("L"),
        ValueError,
        r"expected a PIL image in mode 'RGB', got 'L': image.convert\('RGB'\)",
    ),
    "PIL of another size": (
        lambda t, a, f: Image.new("RGB", (40, 30)),
        ValueError,
        r"expected a crop of 20 x 16 pixels \(preset 'tiny'\), got 40 x 30; a photo\? prefiqs_ext.score_photo\(photo\)",
    ),
    "a missing file": (
        lambda t, a, f: "absent.png",
        FileNotFoundError,
        r"cannot read absent.png \(No such file or directory\); check the path and its permissions",
    ),
    "a URL": (
        lambda t, a, f: "https://example.com/face.jpg",
        ValueError,
        "expected a file, got the URL https://example.com/face.jpg: download it first",
    ),
    "a folder": (
        lambda t, a, f: f[0].parent,
        ValueError,
        r"expected a file, got the folder .*: give a list of its files, or run `prefiqs score`",
    ),
    "an archive": (
        lambda t, a, f: write(f[0].parent / "faces.zip"),
        ValueError,
        "expected an image, got the archive .*faces.zip: unpack it first",
    ),
    "a video": (
        lambda t, a, f: write(f[0].parent / "clip.mp4"),
        ValueError,
        "expected an image, got the video .*clip.mp4: write its frames as images first, .*",
    ),
    "text": (
        lambda t, a, f: write(f[0].parent / "notes.txt"),
        ValueError,
        "cannot read .*notes.txt: expected JPEG, .*",
    ),
    "a photo": (
        lambda t, a, f: photo(f[0].parent / "photo.png"),
        ValueError,
        r"expected a crop of 20 x 16 .* got 40 x 30; a photo\? prefiqs_ext.score_photo\('.*photo.png'\)",
    ),
}


def write(path: Path) -> Path:
    path.write_bytes(b"PK\x03\x04 and more")
    return path


def photo(path: Path) -> Path:
    Image.new("RGB", (40, 30)).save(path)
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(scorer: Scorer, images: Tensor, arrays: Levels, files: list[Path], case: str) -> None:
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message + "$") as caught:
        scorer(make(images, arrays, files))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, prefiqs_ext.PrefiqsError)


LAYOUTS: dict[str, tuple[Callable[[Levels], Levels], str]] = {
    "NCHW": (lambda a: a.transpose(0, 3, 1, 2), "array.transpose(0, 2, 3, 1), or give torch.from_numpy(array)"),
    "CHW": (lambda a: a[0].transpose(2, 0, 1), "array.transpose(1, 2, 0)"),
    "HW": (lambda a: a[0, ..., 0], "array[..., None].repeat(3, axis=-1)"),
    "NHW": (lambda a: a[..., 0], "array[..., None].repeat(3, axis=-1)"),
    "NHW1": (lambda a: a[..., :1], "array.repeat(3, axis=-1)"),
    "RGBA": (lambda a: np.concatenate([a, a[..., :1]], axis=-1), "array[..., :3]"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_another_layout_of_an_array_gets_the_line_that_mends_it(scorer: Scorer, arrays: Levels, case: str) -> None:
    change, remedy = LAYOUTS[case]
    array = change(arrays)
    with pytest.raises(ValueError, match=re.escape(f"got {list(array.shape)}; ")) as caught:
        scorer(array)
    assert str(caught.value).endswith(remedy)
    mended = eval(remedy.partition(", or")[0])
    scorer(mended)
    if case in ("NCHW", "CHW", "RGBA"):
        assert np.array_equal(mended, arrays if mended.ndim == 4 else arrays[0])


def test_colour_is_for_tensors_and_arrays(scorer: Scorer, arrays: Levels, files: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"^an image file says its colours itself, got colour='bgr': leave colour out"):
        scorer(files[0], colour="bgr")
    with pytest.raises(ValueError, match=r"^image 1 of the list: a PIL image says its colours itself"):
        scorer([arrays[0], Image.fromarray(arrays[0])], colour="bgr")
    with pytest.raises(ValueError, match=r"^expected colour 'rgb' or 'bgr', got 'BGR'$"):
        scorer(arrays, colour="BGR")  # type: ignore[arg-type]


def test_without_a_preset_only_a_tensor_is_taken(arrays: Levels) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    scorer = Scorer(network, example=torch.rand(1, 3, 16, 20))
    for given in (arrays, list(arrays), "face.jpg", None):
        with pytest.raises(
            TypeError, match=r"^expected a tensor of the network's own input, got .*preset=\.\.\. to give"
        ):
            scorer(given)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got colour='bgr': a scorer without a preset"):
        scorer(torch.rand(1, 3, 16, 20), colour="bgr")
