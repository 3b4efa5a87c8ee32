"""Files that are no images, or no more, or far too large ones: one line each, quickly, nothing on stderr."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image, ImageFile

from prefiqs_ext.exceptions import FileAccessError, MissingFileError
from prefiqs_ext.faces import UnreadableImage, decode_rgb, hash_file, read_rgb
from prefiqs_ext.faces import image as image_module
from tests.photos import Levels, reason, saved

data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def photo() -> Levels:
    """The astronaut's head, not square and of odd size, so that no rotation goes unseen: [141, 97, 3]."""
    return np.ascontiguousarray(data.astronaut()[20:161, 170:267])


def test_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert reason(tmp_path / "a.jpg") == "the file is empty"


def test_missing(tmp_path: Path) -> None:
    assert reason(tmp_path / "none.jpg") == "No such file or directory"
    (tmp_path / "to nowhere.jpg").symlink_to(tmp_path / "none.jpg")
    assert reason(tmp_path / "to nowhere.jpg") == "No such file or directory"
    (tmp_path / "to itself.jpg").symlink_to(tmp_path / "to itself.jpg")
    assert "symbolic links" in reason(tmp_path / "to itself.jpg")
    assert reason("a\0b.jpg")
    assert "name too long" in reason("a" * 300)


def test_folders_pipes_and_devices(tmp_path: Path) -> None:
    assert reason(tmp_path) == "expected a file, got a folder"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "got a pipe or a device" in reason(tmp_path / "pipe.jpg")  # nobody writes to it: must not wait
    assert "got a pipe or a device" in reason("/dev/zero")


def test_what_cannot_be_opened_is_no_question_of_content(tmp_path: Path) -> None:
    missing, null = str(tmp_path / "none.jpg"), "a\0b.jpg"
    for read in (read_rgb, hash_file):
        with pytest.raises(MissingFileError) as caught:
            read(missing)
        expected = f"cannot read {missing} (No such file or directory); check the path and its permissions"
        assert str(caught.value) == expected
        with pytest.raises(FileAccessError) as denied:
            read(str(tmp_path))
        assert str(denied.value) == f"cannot read {tmp_path} (expected a file, got a folder); name an image file"
        with pytest.raises(FileAccessError, match="a NUL byte in the name"):
            read(null)


def test_not_permitted(tmp_path: Path, photo: Levels) -> None:
    path = saved(tmp_path / "a.png", photo)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything; somebody else may not
        os.seteuid(65534)
    try:
        assert reason(path) == "Permission denied"
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    "name", ["a.jpg", "p.jpg", "a.png", "a.gif", "a.bmp", "a.tif", "z.tif", "a.webp", "a.jp2", "a.ppm"]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_cut_off(tmp_path: Path, photo: Levels, name: str, share: float) -> None:
    options = {"p.jpg": {"progressive": True}, "z.tif": {"compression": "tiff_lzw"}}.get(name, {})
    path = saved(tmp_path / name, photo, **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert reason(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.bmp", "a.tif", "z.tif", "a.webp", "a.jp2", "a.avif"])
def test_damaged_bytes_never_do_worse_than_unreadable(
    tmp_path: Path, photo: Levels, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two hundred files with a few random bytes each, many of them in the header; nothing may reach stderr."""
    options = {"z.tif": {"compression": "tiff_lzw"}}.get(name, {})
    path = saved(tmp_path / name, photo[::3, ::3].copy(), **options)
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    rng = np.random.default_rng(0)
    reasons = []
    for trial in range(200):
        bad = whole.copy()
        reach = len(bad) if trial % 2 else min(len(bad), 200)
        bad[rng.integers(0, reach, 1 + trial % 5)] = rng.integers(0, 256, 1 + trial % 5)
        path.write_bytes(bad.tobytes())
        try:
            levels = read_rgb(path)
        except UnreadableImage as error:
            reasons.append(str(error))
        else:
            assert levels.dtype == np.uint8
            assert levels.ndim == 3
            assert levels.shape[2] == 3
    assert reasons
    assert not any("\n" in text or len(text) > 400 for text in reasons)
    assert capfd.readouterr() == ("", "")


def test_the_error_survives_a_process_boundary(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UnreadableImage) as caught:
        read_rgb(tmp_path / "empty.jpg")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.path, copy.reason) == (str(caught.value), tmp_path / "empty.jpg", caught.value.reason)
    assert isinstance(copy, ValueError)


@pytest.mark.parametrize("path", [b"a.jpg", b"\xff\xd8\xff", bytearray(b"a.jpg"), 0, None, 1.5, ["a.jpg"]])
def test_what_is_no_path(path: object) -> None:
    with pytest.raises(TypeError) as caught:
        read_rgb(path)  # type: ignore[arg-type]
    name = type(path).__name__
    said = f"expected a path, str or os.PathLike[str], got {name}; an image's bytes go to decode_rgb"
    assert str(caught.value) == said
    with pytest.raises(TypeError, match=f"expected a path, .* got {name}"):
        decode_rgb(b"a", path)  # type: ignore[arg-type]


def test_a_path_of_bytes_in_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with os.scandir(os.fsencode(tmp_path)) as entries, pytest.raises(TypeError, match="got DirEntry"):
        read_rgb(next(entries))  # type: ignore[arg-type]
    assert str(UnreadableImage(b"a.jpg", "it is")) == "cannot read a.jpg: it is"  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["a.jpg", None, 7])
def test_what_is_no_content(content: object) -> None:
    with pytest.raises(TypeError, match=r"expected the bytes of an image file, got \w+; a path goes to read_rgb"):
        decode_rgb(content, "a.jpg")  # type: ignore[arg-type]


def test_threads_leave_the_warnings_as_they_were(
    tmp_path: Path, photo: Levels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to begin is the first to end, so neither undoes just what it has done."""
    paths = [saved(tmp_path / name, photo) for name in ("first.png", "second.png")]
    both, left = threading.Barrier(2, timeout=20), threading.Event()
    decode = image_module._decode

    def in_turn(stream: IO[bytes]) -> Levels:
        both.wait()
        if "second" in os.readlink(f"/proc/self/fd/{stream.fileno()}"):
            assert left.wait(20)
        return decode(stream)

    monkeypatch.setattr(image_module, "_decode", in_turn)
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        first, second = [pool.submit(read_rgb, path) for path in paths]
        first.result()
        left.set()
        assert np.array_equal(second.result(), photo)
    assert warnings.filters == before


def test_standard_error_comes_back_with_the_last(capfd: pytest.CaptureFixture[str]) -> None:
    quiet = image_module._without_stderr
    quiet.__enter__()
    quiet.__enter__()
    os.write(2, b"hidden")
    quiet.__exit__()
    os.write(2, b"hidden")
    quiet.__exit__()
    os.write(2, b"shown")
    assert capfd.readouterr().err == "shown"


# Bombs


def png(width: int, height: int, chunks: list[tuple[bytes, bytes]], depth: int = 8, colour: int = 2) -> bytes:
    """A PNG written by hand: IHDR and the chunks given."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in [(b"IHDR", header), *chunks, (b"IEND", b"")]:
        parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join(parts)


def deflated_zeros(size: int) -> bytes:
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    return b"".join([*(packer.compress(block) for _ in range(size >> 20)), packer.flush()])


def grown_megabytes(*paths: Path) -> list[float]:
    """How much further the peak memory of a fresh process goes up with each file it reads."""
    script = """
import resource, sys
from prefiqs_ext.faces import UnreadableImage, read_rgb
peaks = []
for path in [sys.argv[1], *sys.argv[1:]]:  # twice the first: modules are loaded at first use
    try: assert read_rgb(path).shape == (10, 10, 3)
    except UnreadableImage as error: assert "\\n" not in str(error)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(*[after - before for before, after in zip(peaks, peaks[1:])])
"""
    command = [sys.executable, "-c", script, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [float(word) for word in done.stdout.split()]


def test_the_limit_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "MAX_PIXELS", 200)
    assert read_rgb(saved(tmp_path / "a.png", np.zeros((10, 20, 3), dtype=np.uint8))).shape == (10, 20, 3)
    assert "got 67 x 3 = " in reason(saved(tmp_path / "b.png", np.zeros((3, 67, 3), dtype=np.uint8)))


def test_a_jpeg_of_very_many_scans(photo: Levels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last scan again and again. 1,000 scans of 8 megapixels, in 223 KB, took 24 seconds to decode."""
    path = tmp_path / "a.jpg"
    Image.fromarray(photo).save(path, progressive=True, quality=90)
    whole = path.read_bytes()
    last, scans = whole[whole.rindex(b"\xff\xda") : -2], whole.count(b"\xff\xda")
    monkeypatch.setattr(image_module, "MAX_SCANNED_PIXELS", scans * photo.shape[0] * photo.shape[1])
    # What follows the picture is not decoded, such as the video that some telephones put there.
    path.write_bytes(whole + b"\xff\xda" * 1000)
    np.testing.assert_array_equal(read_rgb(path), np.array(Image.open(path)))
    path.write_bytes(whole[:-2] + last + whole[-2:])
    assert reason(path) == f"expected a JPEG of at most {scans} scans, got more; save it again"


def declaring(name: str, photo: Levels, path: Path) -> Path:
    """A small file whose header promises 3600 megapixels."""
    side = 60_000
    saved(path, photo)
    whole = bytearray(path.read_bytes())
    if name == "a.jpg":
        at = whole.index(b"\xff\xc0") + 5
        whole[at : at + 4] = struct.pack(">HH", side, side)
    elif name == "a.gif":
        whole[6:10] = struct.pack("<HH", side, side)
    elif name == "a.bmp":
        whole[18:26] = struct.pack("<ii", side, side)
    elif name == "a.ppm":
        whole[:] = b"P6 60000 60000 255\n" + bytes(100)
    elif name == "a.tif":
        for tag, size in ((256, photo.shape[1]), (257, photo.shape[0])):
            entry = struct.pack("<HHII", tag, 4, 1, size)
            at = whole.index(entry) + 8
            whole[at : at + 4] = struct.pack("<I", side)
    elif name == "a.png":
        whole[16:24] = struct.pack(">II", side, side)
        whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.gif", "a.bmp", "a.ppm", "a.tif", "a.png"])
def test_a_header_that_promises_too_much_is_refused_before_decoding(
    tmp_path: Path, photo: Levels, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = declaring(name, photo, tmp_path / name)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert reason(path).startswith("expected at most 50 megapixels")
    # Whatever an application has done to Pillow's own limit, this one stands.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert reason(path) == "expected at most 50 megapixels, got 60000 x 60000 = 3600"


def test_between_the_limit_and_pillows_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for width in (10_000, 20_000, 40_000):  # 60: allowed by Pillow; 120: warns; 240: raises
        path = tmp_path / f"{width}.png"
        path.write_bytes(png(width, 6000, [(b"IDAT", b"")]))
        assert reason(path).startswith("expected at most 50 megapixels, got ")
    assert not recwarn.list


def test_what_swells_inside_a_png_is_not_swollen(tmp_path: Path) -> None:
    """256 MB of zeros in each of four chunks of compressed text or profile, before or after the pixels, or as pixels
    beyond the picture's last row."""
    zeros = deflated_zeros(256 << 20)
    pixels = [(b"IDAT", zlib.compress((b"\0" + bytes(30)) * 10))]
    files = {"plain.png": pixels, "pixels.png": [(b"IDAT", zeros)]}
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        files[f"{kind.decode()} before.png"] = [(kind, head + zeros)] * 4 + pixels
        files[f"{kind.decode()} after.png"] = pixels + [(kind, head + zeros)] * 4
    for name, chunks in files.items():
        (tmp_path / name).write_bytes(png(10, 10, chunks))
    grown = grown_megabytes(*(tmp_path / name for name in files))
    assert max(grown) < 64, dict(zip(files, grown, strict=True))


def test_a_file_too_large_to_be_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(b"RIFF\0\0\0\x40WEBPVP8L")
    os.truncate(path, 3 << 30)  # sparse
    assert reason(path).startswith("expected at most 1074 MB, got 3221 MB")


# Nothing on stderr


def test_warnings_and_logs_of_pillow_stay_inside(tmp_path: Path, photo: Levels) -> None:
    """Each of these makes Pillow warn or log when it is used plainly, which is checked too."""
    indexed = Image.fromarray(photo).quantize(4)
    indexed.save(tmp_path / "transparency.png", transparency=bytes([0, 128, 255]))
    path = saved(tmp_path / "odd.tif", photo)
    whole = bytearray(path.read_bytes())
    at = whole.index(struct.pack("<HHI", 277, 3, 1))  # samples per pixel
    whole[at + 8 : at + 10] = struct.pack("<H", 60000)
    path.write_bytes(whole)
    script = "import sys\nfrom PIL import Image\n"
    plain = script + "for p in sys.argv[1:]:\n try: Image.open(p).convert('L')\n except Exception: pass"
    ours = (
        "import sys, warnings\nfrom prefiqs_ext.faces import UnreadableImage, read_rgb\nbefore = list(warnings.filters)"
    )
    ours += "\nfor p in sys.argv[1:]:\n try: read_rgb(p)\n except UnreadableImage: pass"
    ours += "\nassert warnings.filters == before"
    files = [str(tmp_path / "transparency.png"), str(path)]
    said = [
        subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True).stderr
        for code in (plain, ours)
    ]
    assert said[0]
    assert said[1] == ""
