"""Targets: images, lists of files and of pairs, scores, settings, the states of runs, .bin and .npy files."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features

from prefiqs_ext import Pruning, Settings
from prefiqs_ext.evaluation.datasets.ijbc import read_ijbc
from prefiqs_ext.evaluation.datasets.insightface_bin import read_bin
from prefiqs_ext.evaluation.datasets.readers import (
    PairList,
    read_embeddings,
    read_image_list,
    read_lfw_pairs,
    read_pair_list,
    read_scores,
)
from prefiqs_ext.faces import decode_rgb
from prefiqs_ext.faces.image import MAX_PIXELS
from prefiqs_ext.files import find_paths
from prefiqs_ext.files.progress import Progress, RunState
from prefiqs_ext.models.preset import Preset
from tests.calibrations import make_calibration
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_lines
from tests.fuzz.target import Target

Mutate = Callable[[bytes, random.Random], bytes]
Read = Callable[[Path, Path], None]


class FileTarget:
    """A reader of one kind of file.

    Args:
        name: What it reads.
        seeds: Makes files that are right.
        mutate: Makes another file of one of these.
        read: Reads a file, which lies in a folder of its own among images of two people. Raises AssertionError if the
            result is not what a reader gives.
    """

    def __init__(self, name: str, seeds: Callable[[], Sequence[bytes]], mutate: Mutate, read: Read) -> None:
        self.name = name
        self._seeds = cache(seeds)
        self._mutate = mutate
        self._read = read

    def make(self, random: random.Random) -> bytes:
        return self._mutate(random.choice(self._seeds()), random)

    def run(self, data: bytes) -> None:
        folder = make_folder(tempfile.gettempdir())
        (folder / "file").write_bytes(data)
        self._read(folder / "file", folder)


@cache
def make_folder(parent: str) -> Path:
    """Makes a folder with two images of Ann and one of Bo, and the lists that readers want beside the one they read."""
    folder = Path(parent) / "data"
    image = _save(np.zeros((4, 4, 3), np.uint8), "PNG")
    for name in ("Ann/Ann_0001.png", "Ann/Ann_0002.png", "Bo/Bo_0001.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image)
    (folder / "images.txt").write_text("Ann/Ann_0001.png\nAnn/Ann_0002.png\nBo/Bo_0001.png\n")
    (folder / "ijbc").mkdir()
    for name in ("faces", "landmarks", "pairs"):
        (folder / "ijbc" / name).mkdir()
    return folder


# Images


@cache
def _draw() -> np.ndarray:
    """A picture with edges and noise, [19, 26, 3]."""
    drawn = np.random.default_rng(0).integers(0, 60, (19, 26, 3), dtype=np.uint8)
    drawn[5:, 8:20] += 150
    return drawn


def _save(levels: np.ndarray, form: str, mode: str | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(levels)
    (image.convert(mode) if mode else image).save(file, form, **options)
    return file.getvalue()


def _make_images() -> list[bytes]:
    levels, deep = _draw(), _draw()[..., 0].astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.fromarray(levels), Image.fromarray(levels[::-1].copy())]
    more = {"save_all": True, "append_images": frames[1:]}
    found = [
        *(_save(levels, "JPEG", quality=quality, exif=exif, progressive=progressive)
          for quality, progressive in ((90, False), (50, True))),
        *(_save(levels, "JPEG", mode) for mode in ("L", "CMYK")),
        *(_save(levels, "PNG", mode) for mode in (None, "RGBA", "L", "LA", "P", "1")),
        _save(levels, "PNG", exif=exif, transparency=(0, 0, 0)),
        _save(deep, "PNG"),
        _save(levels, "PNG", **more),
        *(_save(levels, "TIFF", mode, compression=compression) for mode, compression in (
            ("RGB", "raw"), ("RGB", "tiff_lzw"), ("L", "tiff_deflate"), ("RGB", "jpeg"), ("1", "group4"),
            ("RGB", "packbits"))),
        _save(deep, "TIFF"),
        _save(_draw()[..., 0].astype(np.float32) / 255, "TIFF"),
        _save(levels, "GIF"),
        _save(levels, "GIF", **more),
        *(_save(levels, "BMP", mode) for mode in ("RGB", "L", "P", "1")),
        *(_save(levels, "PPM", mode) for mode in ("RGB", "L", "1")),
        b"P3 3 2 255\n" + b"1 2 3 " * 6,
        b"P2 3 2 65535\n" + b"40000 " * 6,
    ]  # fmt: skip
    if features.check("webp"):
        found += [_save(levels, "WEBP", lossless=lossless, exif=exif) for lossless in (True, False)]
        found += [_save(levels, "WEBP", "RGBA", **more)]
    if features.check("jpg_2000"):
        found += [_save(levels, "JPEG2000", irreversible=lossy) for lossy in (True, False)]
    if features.check("avif"):
        found += [_save(levels, "AVIF", speed=10)]
    return found


def _mutate_image(data: bytes, random: random.Random) -> bytes:
    """Changes bytes; of half of the PNG files it changes what a chunk holds, and makes its checksums right again."""
    if not data.startswith(b"\x89PNG") or random.randrange(2):
        return mutate_bytes(data, random)
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    place = random.randrange(len(chunks))
    kind, content = chunks[place]
    if kind == b"IDAT":
        content = zlib.compress(mutate_bytes(zlib.decompress(content), random))
    else:
        content = mutate_bytes(content, random)
    change = random.randrange(4)
    if change == 0:
        chunks.insert(random.randrange(len(chunks) + 1), (kind, content))
    elif change == 1:
        chunks.insert(place, chunks.pop(random.randrange(len(chunks))))
    else:
        chunks[place] = kind, content
    return data[:8] + b"".join(
        len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        for kind, content in chunks
    )


class ImageTarget(FileTarget):
    """Images, decoded from memory."""

    def __init__(self) -> None:
        super().__init__("images", _make_images, _mutate_image, lambda file, folder: None)

    def run(self, data: bytes) -> None:
        levels = decode_rgb(data, "an image")
        assert levels.dtype == np.uint8
        assert levels.ndim == 3
        assert levels.shape[2] == 3
        assert 0 < levels.shape[0] * levels.shape[1] <= MAX_PIXELS
        assert levels.flags.c_contiguous
        assert levels.flags.writeable


# Lists


def _read_list(file: Path, folder: Path) -> None:
    lines = file.read_bytes().splitlines()
    if not any(line.strip()[-1:] in (b"/", b".", b"~") for line in lines):  # a list may name the whole disk
        found = list(find_paths([f"@{file}"]))
        assert found
    read_image_list(file)


def _check_pairs(found: PairList) -> None:
    assert found.pairs.shape == (len(found.mated), 2)
    assert len(found.pairs)
    assert found.pairs.min() >= 0
    assert found.pairs.max() < len(found.images)


def _read_pairs(file: Path, folder: Path) -> None:
    _check_pairs(read_lfw_pairs(file, folder))


def _read_pair_list(file: Path, folder: Path) -> None:
    _check_pairs(read_pair_list(folder / "images.txt", file))


_IJBC = {
    "ijbc_face_tid_mid.txt": "Ann_0001.png 1 1\nAnn_0002.png 1 2\n",
    "ijbc_name_5pts_score.txt": "Ann_0001.png 1 2 3 4 5 6 7 8 9 10 0.9\nAnn_0002.png 1 2 3 4 5 6 7 8 9 10.5 0.9\n",
    "ijbc_template_pair_label.txt": "1 1 1\n1 1 0\n",
}


def _read_ijbc(file: Path, folder: Path) -> None:
    """The first line says which of the three lists this is."""
    name, _, content = file.read_bytes().partition(b"\n")
    for other, text in _IJBC.items():
        (folder / "ijbc" / other).write_text(text)
    (folder / "ijbc" / sorted(_IJBC)[name[0] % 3 if name else 0]).write_bytes(content)
    found = read_ijbc(folder / "ijbc", folder / "Ann")
    assert found.template.max() < len(found.ids)
    assert found.pairs.min() >= 0
    assert found.pairs.max() < len(found.ids)
    assert all(np.isfinite(image.landmarks).all() for image in found.images)


def _make_ijbc() -> list[bytes]:
    return [f"{letter}\n{_IJBC[name]}".encode() for letter, name in zip("cab", sorted(_IJBC), strict=True)]


def _read_scores(file: Path, folder: Path) -> None:
    found = read_scores(file, read_image_list(folder / "images.txt"))
    assert found.shape == (3,)
    assert np.isfinite(found).all()


# Settings and states


def _make_settings() -> list[bytes]:
    preset, cpu = Preset.resolve("arcface"), ("cpu", "float32")
    found = [
        Settings("sface", "1" * 64, Preset.resolve("sface"), Pruning(), *cpu),
        Settings(None, "2" * 64, None, Pruning("structured", 0.1, seed=3, layers=("a", "b")), *cpu, 1, rank_by="norm"),
        Settings("a.onnx", "3" * 64, preset, Pruning("2:4"), "cuda", "bfloat16", "emb"),
        Settings("sface", "4" * 64, preset, Pruning(), *cpu, 1, make_calibration()),
    ]
    return [settings.to_json().encode() for settings in found]


def _read_settings(file: Path, folder: Path) -> None:
    found = Settings.load(file)
    found.save(folder / "again.json")
    assert Settings.load(folder / "again.json") == found
    if found.calibration is not None:
        layers = torch.tensor([[0.5], [20.0]]).expand(2, len(found.calibration.layers))
        scores = found.calibration(torch.tensor([0.1, 1.5]), torch.tensor([20.0, 3.0]), layers)
        assert ((scores >= 0) & (scores <= 100)).all(), scores


def _make_states() -> list[bytes]:
    progress = Progress(2, 3, 4, {"table": 100, "embeddings": 176}, "0" * 32, {"ok": 3})
    file = Path(tempfile.mkdtemp()) / "t.csv.part.state"
    RunState({"sparsity": 0.4, "layers": ["a"]}, progress).write(file)
    return [file.read_bytes()]


def _read_state(file: Path, folder: Path) -> None:
    """A state that is damaged is as good as none; one that is accepted can be compared and written."""
    found = RunState.read(file)
    if found is not None:
        found.progress.extend("a.jpg", rows=1, columns=4, statuses=["ok"]).grow({"table": 1})
        found.write(folder / "again")
        found.check_same_run("t.csv.part", {"sparsity": 0.4}, ["a", "b"])


# Files of arrays


def _make_bins() -> list[bytes]:
    images = [_save(_draw()[:4, :4], "PNG") for _ in range(4)]
    arrays = [np.frombuffer(image, np.uint8) for image in images]
    forms = [
        (images, [True, False]),
        (arrays, np.array([True, False])),
        (arrays, [np.bool_(True), np.bool_(False)]),
        (images, [np.int64(1), np.int64(0)]),
    ]
    return [pickle.dumps(form, protocol) for form in forms for protocol in range(6)]


def _mutate_pickle(data: bytes, random: random.Random) -> bytes:
    """Moves, repeats, removes and changes opcodes, so that what comes of it still is one pickle now and then."""
    if random.randrange(3) == 0:
        return mutate_bytes(data, random)
    starts = [position for _, _, position in pickletools.genops(data) if position is not None]
    pieces = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(1 << random.randrange(4)):
        at, kind = random.randrange(len(pieces)), random.randrange(5)
        if kind == 0 and len(pieces) > 1:
            del pieces[at]
        elif kind == 1:
            pieces.insert(random.randrange(len(pieces) + 1), pieces[at])
        elif kind == 2:
            pieces[at] = random.choice(pieces)
        elif kind == 3:
            pieces[at] = pieces[at][:1] + mutate_bytes(pieces[at][1:], random)
        else:
            opcodes = (b"N", b")", b"]", b"}", b"(", b"0", b"2", b"R", b"b", b"\x85", b"\x86", b"\x87", b"\x88", b".")
            more = (
                b"K\x01",
                b"J\xff\xff\xff\x7f",
                b"\x8a\x01\x02",
                b"cos\nsystem\n",
                b"h\x00",
                b"q\x00",
                b"\x93",
                b"a",
            )
            pieces.insert(at, random.choice((*opcodes, *more)))
    return b"".join(pieces)


def _read_bin(file: Path, folder: Path) -> None:
    found = read_bin(file)
    _check_pairs(found)
    assert all(type(image.data) is bytes for image in found.images)  # type: ignore[union-attr]


def _make_arrays() -> list[bytes]:
    values = np.random.default_rng(0).standard_normal((3, 5))
    found = []
    for kind in (np.float16, np.float32, np.float64, ">f4"):
        file = io.BytesIO()
        np.save(file, np.asfortranarray(values.astype(kind)) if kind == ">f4" else values.astype(kind))
        found.append(file.getvalue())
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 5), }".ljust(115) + b"\n"
    return [*found, b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + values.astype("<f4").tobytes()]


def _read_embeddings(file: Path, folder: Path) -> None:
    found = read_embeddings(file, read_image_list(folder / "images.txt"))
    assert found.shape[0] == 3
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)


TARGETS: tuple[Target, ...] = (
    ImageTarget(),
    FileTarget("lists", lambda: [b"Ann/Ann_0001.png\nAnn/Ann_0002.png\nBo/Bo_0001.png\n"], mutate_lines, _read_list),
    FileTarget("pairs", lambda: [b"2\nAnn 1 2\nAnn 1 Bo 1\n", b"10 300\nAnn 2 1\n"], mutate_lines, _read_pairs),
    FileTarget(
        "pair-lists", lambda: [b"Ann_0001 Ann_0002 1\nAnn/Ann_0001.png Bo_0001 0\n"], mutate_lines, _read_pair_list
    ),
    FileTarget("ijbc", _make_ijbc, mutate_lines, _read_ijbc),
    FileTarget(
        "scores", lambda: [b"Ann_0001 0.5\nAnn/Ann_0002.png 1e-3\nx/Bo/Bo_0001.png -7\n"], mutate_lines, _read_scores
    ),
    FileTarget("settings", _make_settings, mutate_json, _read_settings),
    FileTarget("states", _make_states, mutate_json, _read_state),
    FileTarget("bins", _make_bins, _mutate_pickle, _read_bin),
    FileTarget("arrays", _make_arrays, mutate_bytes, _read_embeddings),
)
