"""Natural mistakes, each with the one line that says what to do instead. The tables are for people to read, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from prefiqs_ext import Pruning, Scorer, Settings, calibrate, dualize, models, score_photo
from prefiqs_ext.exceptions import PrefiqsError
from prefiqs_ext.faces import Detector
from prefiqs_ext.files import find_paths, score_files
from tests.command import Command

KNOWN = "known: sface, facexzoo, dlib, w600k_mbf"
COMMANDS: dict[str, tuple[str, str]] = {
    # What is typed -> what the last line says. `faces` has one image; backbone.pth, photos.zip, clip.mp4 are there.
    "a missing file": (
        "score none.jpg",
        "cannot read none.jpg (No such file or directory); check the path and its permissions",
    ),
    "an address": (
        "calibrate https://example.org/a.jpg --output s.json",
        "expected a file or folder, got the URL https://example.org/a.jpg: download it first",
    ),
    "an archive": (
        "calibrate photos.zip --output s.json",
        "expected an image or a folder, got the archive photos.zip: unpack it first",
    ),
    "a video": (
        "score clip.mp4",
        "expected an image or a folder, got the video clip.mp4: write its frames as images first, "
        "`mkdir frames && ffmpeg -i clip.mp4 -vf fps=2 frames/%06d.png`",
    ),
    "an archive instead of a folder": (
        "report photos.zip",
        "expected an image or a folder, got the archive photos.zip: unpack it first",
    ),
    "a missing folder": (
        "degrade none --output out",
        "cannot read none (No such file or directory); check the path and its permissions",
    ),
    "a folder without images": ("score empty", "expected images, found none in empty"),
    "a family of networks for a model": (
        "score faces --model arcface",
        f"--model: no such model or file: arcface; {KNOWN}; "
        "'arcface' is a preset: name a model or its file, and this as its preset",
    ),
    "a typo in a model": ("report faces --model sfase", f"--model: no such model or file: sfase; {KNOWN}"),
    "a checkpoint without its preset": (
        "score faces --model backbone.pth",
        "--model: expected a preset: the file backbone.pth cannot tell the input its network wants; give --preset",
    ),
    "a folder for a model": (
        "calibrate faces --model faces --preset arcface",
        "--model: expected a file, got the folder faces",
    ),
    "a typo in a preset": (
        "score faces --model backbone.pth --preset arcfac",
        "Invalid value for '--preset': 'arcfac' is not one of 'adaface', 'arcface', 'curricularface', 'dlib', "
        "'elasticface', 'facexzoo', 'insightface', 'magface', 'sface'.",
    ),
    "a size that is none": (
        "score faces --size 112,96",
        "Invalid value for '--size': expected HEIGHTxWIDTH or one number of pixels, got '112,96'",
    ),
    "per cent for a fraction": (
        "score faces --sparsity 40",
        "sparsity must be a number in [0, 1), got 40.0",
    ),
    "a pruning that is none": (
        "score faces --pruning magnitud",
        "pruning method must be one of magnitude, random, structured, or n:m such as '2:4', got 'magnitud'",
    ),
    "a sparsity beside N:M": (
        "score faces --pruning 2:4 --sparsity 0.4",
        "pruning method '2:4' has sparsity 0.5, got 0.4: leave sparsity out",
    ),
    "a device by another name": (
        "score faces --device gpu",
        "Invalid value for '--device': 'gpu' is not one of 'auto', 'cpu', 'cuda'.",
    ),
    "a device that is not there": ("score faces --device cuda", "cannot compute on 'cuda': there is none"),
    "float16 on the CPU": (
        "score faces --dtype float16",
        "expected dtype torch.float32 or torch.bfloat16 on the CPU, the only ones computed in there, got "
        "torch.float16: leave dtype out, or use device='cuda'",
    ),
    "a table of another kind": (
        "score faces --output table.xlsx",
        "expected an output that ends in .csv, .jsonl, .txt or .parquet, got table.xlsx",
    ),
    "two choices at once": (
        "score faces --top 3 --below 0.5",
        "--top and --below are two different choices: give one of them",
    ),
    "going on with nothing": (
        "score faces --resume",
        "--resume needs --output FILE, whose FILE.part it continues",
    ),
    "weights that are none": (
        "weights fetch arcface",
        "unknown weights 'arcface': expected one of sface, yunet, facexzoo, dlib, w600k_mbf",
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the mistakes are made about."""
    monkeypatch.chdir(tmp_path)
    for folder in ("faces", "empty"):
        Path(folder).mkdir()
    Image.new("RGB", (112, 112)).save("faces/one.png")
    for file in ("backbone.pth", "photos.zip", "clip.mp4"):
        Path(file).touch()
    return tmp_path


@pytest.mark.parametrize("mistake", COMMANDS)
@pytest.mark.usefixtures("here")
def test_mistakes_at_the_command_line(
    mistake: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for loads in ("prefiqs_ext.scorer.resolve_network", "prefiqs_ext.models.weights.obtain_file"):
        monkeypatch.setattr(loads, lambda *_: pytest.fail("a network is loaded or fetched"))
    monkeypatch.setattr("prefiqs_ext.device.why_no_cuda", lambda *_: "there is none")
    typed, line = COMMANDS[mistake]
    result = Command(capsys)(*typed.split())
    assert result.code == (1 if mistake == "a folder without images" else 2)
    assert result.out == ""
    assert result.err.splitlines()[-1] == f"Error: {line}"
    assert result.err.count("Error") == 1
    assert result.code == 2 or result.err.count("\n") == 1  # a wrong use has the way to use it above


RGB = np.zeros((112, 112, 3), np.uint8)
CALLS: dict[str, tuple[Callable[[Scorer], object], str]] = {
    # What is called with a scorer of 112 x 112 -> what the error says at its end.
    "channels last in a tensor": (
        lambda scorer: scorer(torch.from_numpy(RGB)[None]),
        "got [1, 112, 112, 3]; channels come second: batch.permute(0, 3, 1, 2)",
    ),
    "channels first in an array": (
        lambda scorer: scorer(RGB.transpose(2, 0, 1)),
        "got [3, 112, 112]; channels come last: array.transpose(1, 2, 0)",
    ),
    "grey": (
        lambda scorer: scorer(RGB[..., 0]),
        "got [112, 112]; repeat the grey channel: array[..., None].repeat(3, axis=-1)",
    ),
    "an alpha channel": (
        lambda scorer: scorer(Image.new("RGBA", (112, 112))),
        "expected a PIL image in mode 'RGB', got 'RGBA': image.convert('RGB')",
    ),
    "a picture of 16 bits": (
        lambda scorer: scorer(Image.new("I;16", (112, 112))),
        "got 'I;16': scale its levels to 0-255 in 8 bits first, for convert clips them",
    ),
    "a photo instead of a crop": (
        lambda scorer: scorer(np.zeros((480, 640, 3), np.uint8)),
        "got [480, 640, 3]; align and crop to that size first; a photo? prefiqs_ext.score_photo(photo)",
    ),
    "integers of another type": (
        lambda scorer: scorer(torch.zeros(1, 3, 112, 112, dtype=torch.int64)),
        "expected uint8 images of 0-255 or floating ones of [0, 1], got torch.int64",
    ),
    "floating levels of 0-255": (
        lambda scorer: scorer(torch.full((1, 3, 112, 112), 200.0)),
        "got values from 200 to 200; divide levels of 0-255 by 255, or pass them as uint8",
    ),
    "a normalised batch": (
        lambda scorer: scorer(torch.full((1, 3, 112, 112), -1.0)),
        "they look normalised already, which the preset does itself: pass levels of 0-255 as uint8",
    ),
    "a floating array": (
        lambda scorer: scorer(RGB / 255),
        "got float64: (array * 255).round().astype('uint8') if it is in [0, 1], array.round().astype('uint8') if in "
        "0-255",
    ),
    "an empty list": (lambda scorer: scorer([]), "expected one image or more, got an empty list"),
    "a list of lists": (
        lambda scorer: scorer([[RGB]]),
        "image 0 of the list: expected one image, got a list: give one flat list",
    ),
    "a file's bytes": (
        lambda scorer: scorer(b"\xff\xd8\xff"),
        "got bytes: decode a file's content with prefiqs_ext.faces.decode_rgb(data, name)",
    ),
    "a colour that is none": (lambda scorer: scorer(RGB, colour="gbr"), "expected colour 'rgb' or 'bgr', got 'gbr'"),
    "the colour of a file": (
        lambda scorer: scorer("faces/one.png", colour="bgr"),
        "an image file says its colours itself, got colour='bgr': leave colour out; it is for arrays",
    ),
    "a missing file": (
        lambda scorer: scorer("none.jpg"),
        "cannot read none.jpg (No such file or directory); check the path and its permissions",
    ),
    "a folder": (
        lambda scorer: scorer("faces"),
        "expected a file, got the folder faces: give a list of its files, or run `prefiqs score`",
    ),
    "an address": (
        lambda scorer: scorer("https://example.org/a.jpg"),
        "expected a file, got the URL https://example.org/a.jpg: download it first",
    ),
    "an archive": (lambda scorer: scorer("photos.zip"), "got the archive photos.zip: unpack it first"),
    "a video": (lambda scorer: scorer("clip.mp4"), "`mkdir frames && ffmpeg -i clip.mp4 -vf fps=2 frames/%06d.png`"),
    "a family of networks for a model": (
        lambda _: Scorer("arcface"),
        f"no such model or file: arcface; {KNOWN}; "
        "'arcface' is a preset: name a model or its file, and this as its preset",
    ),
    "a typo in a preset": (
        lambda _: Scorer("sface", preset="arcfac"),
        "unknown preset 'arcfac': expected one of arcface, elasticface, magface, curricularface, adaface, facexzoo, "
        "insightface, sface, dlib, or a Preset",
    ),
    "a device by another name": (
        lambda _: Scorer("sface", device="gpu"),
        "expected device 'cpu', 'cuda' or 'cuda:0', got 'gpu'",
    ),
    "per cent for a fraction": (
        lambda _: Pruning(sparsity=40),
        "sparsity must be a number in [0, 1), got 40",
    ),
    "a sparsity for a pruning": (
        lambda _: Scorer(pruning=0.4),  # type: ignore[arg-type]
        "expected a Pruning, or a dictionary of masks, got float: Pruning(sparsity=0.4)",
    ),
    "a method for a pruning": (
        lambda _: Scorer(pruning="2:4"),  # type: ignore[arg-type]
        "expected a Pruning, or a dictionary of masks, got str: Pruning('2:4')",
    ),
    "a sparsity for dualize": (
        lambda _: dualize(nn.Linear(3, 4).eval(), 0.4, example=torch.ones(1, 3)),  # type: ignore[arg-type]
        "expected a Pruning, or a dictionary of masks, got float: Pruning(sparsity=0.4)",
    ),
    "masks as arrays": (
        lambda _: Scorer(pruning={"conv": np.ones(3, bool)}),  # type: ignore[dict-item]
        "expected a bool tensor as mask of 'conv', got ndarray",
    ),
    "a chunk that is no number": (
        lambda _: Scorer(chunk="a"),  # type: ignore[arg-type]
        "expected chunk of 1 or more, got 'a'",
    ),
    "an array for an example": (
        lambda _: Scorer(nn.Linear(3, 4).eval(), example=np.ones((1, 3))),  # type: ignore[arg-type]
        "expected a tensor as example, got ndarray",
    ),
    "a batch size that is no number": (
        lambda scorer: score_files([], scorer, batch_size="a"),  # type: ignore[arg-type]
        "expected batch_size of 1 or more, got 'a'",
    ),
    "workers that are no number": (
        lambda scorer: score_files([], scorer, workers=0.5),  # type: ignore[arg-type]
        "expected workers of 0 or more, got 0.5",
    ),
    "a name for a scorer": (
        lambda _: score_photo(RGB, scorer="sface"),  # type: ignore[arg-type]
        "expected a Scorer, got str: Scorer('sface')",
    ),
    "a width that is no number": (
        lambda scorer: score_photo(RGB, scorer=scorer, min_face="a"),  # type: ignore[arg-type]
        "expected a finite min_face above 0, got 'a'",
    ),
    "a width that cannot be compared": (
        lambda scorer: score_photo(RGB, scorer=scorer, min_face=[30]),  # type: ignore[arg-type]
        "expected a finite min_face above 0, got [30]",
    ),
    "few faces": (
        lambda _: calibrate([RGB]),
        "expected 50 or more different faces, got 1: give more, as they usually come",
    ),
    "faces of a network that has no preset": (
        lambda _: calibrate(torch.zeros(60, 3, 112, 112), nn.Conv2d(3, 4, 112).eval()),
        "expected a preset, or an example batch that shows the network's input; got neither",
    ),
    "a name that is too long": (
        lambda _: Scorer("x" * 300),
        "(File name too long); check the path and its permissions",
    ),
    "a name that is too long for load": (
        lambda _: models.load("x" * 300),
        "(File name too long); check the path and its permissions",
    ),
    "a NUL byte in a path of settings": (
        lambda _: Settings.load("a\0b"),
        "cannot read a\\x00b (a NUL byte in the name); name a file with a Scorer's settings",
    ),
    "a NUL byte in a path to write": (
        lambda scorer: scorer.settings.save("a\0b"),
        "cannot write a\\x00b (a NUL byte in the name); name another place",
    ),
    "one path for several": (
        lambda _: find_paths("faces"),
        "expected several paths, as a list has them, got one str",
    ),
    "a number for a path": (
        lambda _: find_paths([5]),  # type: ignore[list-item]
        "expected a path, str or os.PathLike[str], got int",
    ),
    "a threshold that is no number": (
        lambda _: Detector("a"),  # type: ignore[arg-type]
        "expected score_threshold in [0, 1], got 'a'",
    ),
    "a NUL byte in a path to score": (
        lambda _: find_paths(["a\0b"]),
        "cannot read a\\x00b (a NUL byte in the name); check the path and its permissions",
    ),
    "a NUL byte in the path of a crop": (
        lambda scorer: scorer("a\0b"),
        "cannot read a\\x00b (a NUL byte in the name); check the path and its permissions",
    ),
    "a NUL byte in the path of a model": (lambda _: Scorer("a\0b"), f"no such model or file: a\\x00b; {KNOWN}"),
}


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(4 * 14 * 14, 8)).eval()
    return Scorer(network, preset="arcface")


@pytest.mark.parametrize("mistake", CALLS)
@pytest.mark.usefixtures("here")
def test_mistakes_in_python(mistake: str, scorer: Scorer) -> None:
    call, line = CALLS[mistake]
    with pytest.raises(PrefiqsError) as caught:
        call(scorer)
    assert str(caught.value).endswith(line)
    assert "\n" not in str(caught.value)
