"""Reading photo files: what they may hold, and what is wrong with some of them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prefiqs_ext.faces import UnreadableImage, read_rgb
from tests.photos import Levels, reason, saved

cv2 = pytest.importorskip("cv2")
data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def photo() -> Levels:
    """The astronaut's head, not square and of odd size, so that no rotation goes unseen: [141, 97, 3]."""
    return np.ascontiguousarray(data.astronaut()[20:161, 170:267])


# What files hold


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("lzw.tif", {"compression": "tiff_lzw"}),
        ("deflate.tif", {"compression": "tiff_adobe_deflate"}),
        ("a.ppm", {}),
        ("a.webp", {"lossless": True}),
        ("a.jp2", {"irreversible": False}),
    ],
)
def test_lossless_formats_give_the_levels_saved(
    tmp_path: Path, photo: Levels, name: str, options: dict[str, object]
) -> None:
    levels = read_rgb(saved(tmp_path / name, photo, **options))
    np.testing.assert_array_equal(levels, photo)
    assert levels.dtype == np.uint8
    assert levels.flags.c_contiguous
    assert levels.flags.writeable


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.avif"])
def test_lossy_formats_agree_with_opencv(tmp_path: Path, photo: Levels, name: str) -> None:
    if not Image.registered_extensions().get(Path(name).suffix):
        pytest.skip("this Pillow has no AVIF")
    path = saved(tmp_path / name, photo, quality=90)
    levels = read_rgb(path)
    assert np.abs(levels.astype(int) - photo).mean() < 6
    other = cv2.imread(str(path))
    if other is not None:  # OpenCV may lack AVIF; decoders may round chroma differently
        assert np.abs(levels.astype(int) - other[..., ::-1]).max() <= 4


def test_reads_path_objects_and_strings_and_bytes_names(tmp_path: Path, photo: Levels) -> None:
    path = saved(tmp_path / "a.png", photo)
    odd = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"\xff\n.png"))
    os.rename(path, odd)
    np.testing.assert_array_equal(read_rgb(odd), photo)
    np.testing.assert_array_equal(read_rgb(Path(odd)), photo)
    with open(odd, "wb"):
        pass
    with pytest.raises(UnreadableImage) as caught:
        read_rgb(odd)
    assert str(caught.value).encode().count(b"\n") == 0  # encodable, and one line
    assert "\\udcff\\n.png" in str(caught.value)


# The eight orientations as (rows and columns of the stored picture), from the EXIF standard's table.
STORE = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),  # is shown after a turn to the right, so is stored turned to the left
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
def test_exif_orientation(tmp_path: Path, photo: Levels, orientation: int, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "a.webp" else {"quality": 95, "subsampling": 0} if name == "a.jpg" else {}
    stored = np.ascontiguousarray(STORE[orientation](photo))
    path = saved(tmp_path / name, stored, exif=exif, **options)
    levels = read_rgb(path)
    assert levels.shape == photo.shape
    assert np.abs(levels.astype(int) - photo).max() <= (40 if name == "a.jpg" else 0)
    if name == "a.jpg":
        assert np.abs(levels.astype(int) - photo).mean() < 3
        other = cv2.imread(str(path))[..., ::-1]  # applies the orientation too
        assert np.abs(levels.astype(int) - other).max() <= 4


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_leaves_the_picture(tmp_path: Path, photo: Levels, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_rgb(saved(tmp_path / "a.png", photo, exif=exif)), photo)


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1"]
)
def test_damaged_exif_leaves_the_picture(tmp_path: Path, photo: Levels, exif: bytes) -> None:
    plain = saved(tmp_path / "plain.jpg", photo)
    path = tmp_path / "a.jpg"
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    path.write_bytes(plain.read_bytes()[:2] + segment + plain.read_bytes()[2:])
    np.testing.assert_array_equal(read_rgb(path), read_rgb(plain))


def test_grey_is_repeated(tmp_path: Path, photo: Levels) -> None:
    grey = photo[..., 1]
    for name in ("a.png", "a.tif", "a.pgm"):
        np.testing.assert_array_equal(read_rgb(saved(tmp_path / name, grey)), np.stack([grey] * 3, axis=-1))


def test_one_bit_is_black_and_white(tmp_path: Path, photo: Levels) -> None:
    bits = photo[..., 1] > 100
    for name in ("a.png", "a.tif", "a.pbm"):
        levels = read_rgb(saved(tmp_path / name, bits))
        np.testing.assert_array_equal(levels, np.stack([bits * np.uint8(255)] * 3, axis=-1))


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "rgb.png", "rgb.tif", "rgba.png", "grey.pgm", "rgb.ppm"])
def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path, name: str) -> None:
    """OpenCV writes them, so no code of Pillow's makes the file."""
    rng = np.random.default_rng(0)
    channels = {"grey": 1, "rgb": 3, "rgba": 4}[name.split(".")[0]]
    deep = rng.integers(0, 65536, (37, 23, channels), dtype=np.uint16)
    deep[0, 0], deep[0, 1] = 0, 65535
    if channels == 4:
        deep[..., 3] = 65535
    path = tmp_path / name
    bgr = deep if channels == 1 else deep[..., [2, 1, 0, *range(3, channels)]]
    assert cv2.imwrite(str(path), bgr)
    levels = read_rgb(path)
    expected = np.broadcast_to((deep[..., :3] >> 8), (37, 23, 3))
    # Pillow reads the PPM family by stretching its range, which rounds.
    assert np.abs(levels.astype(int) - expected).max() <= (1 if path.suffix in (".pgm", ".ppm") else 0)


def test_floating_levels(tmp_path: Path, photo: Levels) -> None:
    grey = photo[..., 1]
    path = saved(tmp_path / "a.tif", grey.astype(np.float32) / 255)
    np.testing.assert_array_equal(read_rgb(path), np.stack([grey] * 3, axis=-1))
    assert "[0, 1]" in reason(saved(tmp_path / "b.tif", grey.astype(np.float32)))
    assert "[0, 1]" in reason(saved(tmp_path / "c.tif", np.full((4, 4), np.nan, dtype=np.float32)))


def test_integers_of_thirty_two_bits_are_refused(tmp_path: Path) -> None:
    assert "8 or 16 bits" in reason(saved(tmp_path / "a.tif", np.full((4, 4), 70000, dtype=np.int32)))


def test_cmyk(tmp_path: Path, photo: Levels) -> None:
    cmyk = Image.fromarray(photo).convert("CMYK")
    cmyk.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.tif"), photo)
    cmyk.save(tmp_path / "a.jpg", quality=95, subsampling=0)
    levels = read_rgb(tmp_path / "a.jpg")
    assert np.abs(levels.astype(int) - photo).mean() < 5  # not inverted


def test_palette(tmp_path: Path, photo: Levels) -> None:
    picture = Image.fromarray(photo).quantize(200)
    for name in ("a.png", "a.gif", "a.bmp", "a.tif"):
        picture.save(tmp_path / name)
        np.testing.assert_array_equal(read_rgb(tmp_path / name), np.array(picture.convert("RGB")))


# What is transparent is black


def half_transparent(photo: Levels) -> tuple[Levels, Levels]:
    """Alpha: 0 in the upper third, 128 in the middle, 255 below; and what the picture then is."""
    alpha = np.full(photo.shape[:2], 255, dtype=np.uint8)
    alpha[:94], alpha[:47] = 128, 0
    expected = np.round(photo.astype(np.float64) * alpha[..., None] / 255).astype(np.uint8)
    return alpha, expected


def test_alpha_is_laid_over_black(tmp_path: Path, photo: Levels) -> None:
    alpha, expected = half_transparent(photo)
    rgba = np.dstack([photo, alpha])
    for name in ("a.png", "a.tif", "a.webp"):
        options = {"lossless": True, "exact": True} if name == "a.webp" else {}
        assert np.abs(read_rgb(saved(tmp_path / name, rgba, **options)).astype(int) - expected).max() <= 1


def test_grey_with_alpha(tmp_path: Path, photo: Levels) -> None:
    alpha, expected = half_transparent(np.repeat(photo[..., 1:2], 3, axis=2))
    path = tmp_path / "a.png"
    Image.merge("LA", [Image.fromarray(photo[..., 1]), Image.fromarray(alpha)]).save(path)
    assert np.abs(read_rgb(path).astype(int) - expected).max() <= 1


def test_palette_with_transparent_colours(tmp_path: Path, photo: Levels) -> None:
    picture = Image.fromarray(photo).quantize(50)
    indices = np.array(picture)
    colours = np.array(picture.convert("RGB"))
    one = colours.copy()
    one[indices == 7] = 0
    for name in ("a.png", "a.gif"):
        picture.save(tmp_path / name, transparency=7)
        np.testing.assert_array_equal(read_rgb(tmp_path / name), one)
    picture.save(tmp_path / "b.png", transparency=bytes([0, 128] + [255] * 48))
    alphas = np.array([0, 128] + [255] * 48)[indices][..., None]
    assert np.abs(read_rgb(tmp_path / "b.png") - colours * alphas / 255).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_transparent_grey_level(tmp_path: Path, dtype: type[np.generic]) -> None:
    grey = np.arange(1, 201, dtype=dtype).reshape(10, 20) * np.array(1 if dtype is np.uint8 else 300, dtype=dtype)
    key = int(grey[3, 4])
    path = saved(tmp_path / "a.png", grey, transparency=key)
    expected = np.where(grey == key, 0, grey >> (0 if dtype is np.uint8 else 8)).astype(np.uint8)
    np.testing.assert_array_equal(read_rgb(path), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_frame_of_several(tmp_path: Path, photo: Levels, name: str) -> None:
    colours = [Image.new("RGB", (31, 17), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if name == "a.webp" else {}
    colours[0].save(tmp_path / name, save_all=True, append_images=colours[1:], **options)
    with Image.open(tmp_path / name) as opened:
        assert opened.n_frames == 3
    np.testing.assert_array_equal(read_rgb(tmp_path / name), np.broadcast_to(np.uint8([255, 0, 0]), (17, 31, 3)))


def test_content_decides_not_the_name(tmp_path: Path, photo: Levels) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photo).save(path, format="PNG")
    np.testing.assert_array_equal(read_rgb(path), photo)
    path.rename(tmp_path / "notes.txt")
    np.testing.assert_array_equal(read_rgb(tmp_path / "notes.txt"), photo)
    path.write_text("not an image at all\n" * 100)
    assert "expected JPEG" in reason(path)


def test_formats_that_start_programs_are_refused(tmp_path: Path, photo: Levels) -> None:
    path = tmp_path / "a.eps"
    Image.fromarray(photo).save(path)
    path.rename(tmp_path / "a.jpg")
    assert "expected JPEG" in reason(tmp_path / "a.jpg")


def test_one_pixel(tmp_path: Path) -> None:
    assert read_rgb(saved(tmp_path / "a.png", np.uint8([[[1, 2, 3]]]))).tolist() == [[[1, 2, 3]]]
