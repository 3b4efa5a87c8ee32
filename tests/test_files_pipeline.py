"""Reading and scoring side by side: the same rows as the API's, whatever the files and however many workers."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prefiqs_ext import Scorer
from prefiqs_ext.exceptions import MissingWeightsError
from prefiqs_ext.faces import Detector, find_faces, read_rgb
from prefiqs_ext.files import Record, pipeline, score_files
from prefiqs_ext.files.batches import stack_crops, upload_ahead
from prefiqs_ext.files.crops import CropReader, FaceBox, FileCrops
from prefiqs_ext.files.image import EncodedImage
from prefiqs_ext.models import weights
from tests.conftest import list_face_files


class Small(nn.Module):
    """Fast, and blank images have no direction in it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4, bias=False)
        self.linear = nn.Linear(8 * 28 * 28, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.linear(torch.relu(self.conv(x)).flatten(1))
        return embedding


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    torch.manual_seed(5)
    return Scorer(Small().eval(), preset="sface", on_bad="nan")


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Thirty crops, losslessly."""
    random = np.random.default_rng(3)
    paths = [str(tmp_path / f"{index:02}.png") for index in range(30)]
    for path in paths:
        assert cv2.imwrite(path, random.integers(0, 256, (112, 112, 3), dtype=np.uint8))
    return paths


def _rows(paths: list[str], scorer: Scorer, **options: Any) -> list[Record]:
    return [row for scored in score_files(paths, scorer, aligned=True, **options) for row in scored.records]


def test_crops_go_to_the_device_one_batch_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """In what order copies start, are waited for and are used; tests/test_cuda_scorer.py looks at the rows."""
    events: list[str] = []

    class Stream:
        def __init__(self, _: object = None) -> None: ...

        def record_event(self) -> str:
            return events[-1]

        def wait_event(self, event: str) -> None:
            events.append(f"wait for {event}")

    def pin(part: Tensor) -> Tensor:
        events.append(f"copy {int(part[0, 0, 0, 0])}")
        return part

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: None)
    files = [FileCrops("p", crops=[np.full((2, 2, 3), i)], boxes=[FaceBox()]) for i in range(3)]
    batches = [stack_crops([file], 1) for file in files]
    for batch in upload_ahead(iter(batches), torch.device("cpu")):
        assert batch.images[0].shape == (1, 3, 2, 2)
        events.append(f"use {int(batch.images[0].flatten()[0])}")
    expected = ["copy 0", "copy 1", "wait for copy 0", "use 0", "copy 2", "wait for copy 1", "use 1"]
    assert events == [*expected, "wait for copy 2", "use 2"]
    assert not list(upload_ahead(iter([]), torch.device("cpu")))


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"workers": 1, "batch_size": 7}, {"workers": 3}])
def test_rows_have_the_bits_of_the_api(options: dict[str, int], images: list[str], scorer: Scorer) -> None:
    before = torch.get_rng_state()
    scored = list(score_files(images, scorer, aligned=True, **options))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
    pixels = np.stack([cv2.imread(path)[..., ::-1] for path in images])
    expected = scorer(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert [one.path for one in scored] == images
    assert torch.equal(torch.cat([one.embeddings for one in scored]), expected.embedding)
    rows = [row for one in scored for row in one.records]
    assert [row.quality for row in rows] == expected.quality.tolist()
    assert [row.score for row in rows] == expected.score.tolist()
    assert [row.distance for row in rows] == expected.distance.tolist()
    assert [row.embedding_norm for row in rows] == expected.embedding_norm.tolist()
    assert {(row.face, row.status, row.x, row.detector_score) for row in rows} == {(0, "ok", None, None)}


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_are_no_crop(workers: int, images: list[str], scorer: Scorer, tmp_path: Path) -> None:
    good = Path(images[0]).read_bytes()
    (tmp_path / "truncated.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "corrupted.png").write_bytes(good[:1000] + b"\xaa" * 200 + good[1200:])
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "wrong.jpg").write_bytes(good)
    cv2.imwrite(str(tmp_path / "large.png"), np.full((250, 200, 3), 9, dtype=np.uint8))
    cv2.imwrite(str(tmp_path / "blank.png"), np.zeros((112, 112, 3), dtype=np.uint8))
    # 10 000 x 10 000 pixels in a few kilobytes
    (tmp_path / "bomb.pgm").write_bytes(b"P5 10000 10000 255\n" + bytes(1000))
    os.symlink("loop.png", tmp_path / "loop.png")
    os.mkfifo(tmp_path / "fifo.png")
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(good)
    names = ["truncated.png", "corrupted.png", "zero.jpg", "text.jpg", "bomb.pgm", "loop.png", "fifo.png", "none.jpg"]
    names += ["large.png", "blank.png", "wrong.jpg", name]
    rows = _rows([str(tmp_path / each) for each in names], scorer, workers=workers)
    assert [row.status for row in rows] == ["unreadable"] * 8 + ["not_assessable"] * 2 + ["ok"] * 2
    for row in rows[:10]:
        assert row.reason
        assert "\n" not in row.reason
        assert row.score is row.quality is None
    assert "megapixels" in rows[4].reason
    assert rows[8].reason == "expected a crop of 112 x 112 pixels, got 200 x 250; a photo needs no --aligned"
    assert rows[10].quality == rows[11].quality


class Crashing(CropReader):
    """Ends its process on some files, as a fault in a decoder would."""

    def __call__(self, image: EncodedImage) -> Any:
        if Path(image.path).name in ("03.png", "04.png", "29.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(image)


def test_a_worker_that_dies_costs_one_file(images: list[str], scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _rows(images, scorer)
    monkeypatch.setattr(pipeline, "CropReader", Crashing)
    rows = _rows(images, scorer, workers=2, batch_size=4)
    for index, (row, whole) in enumerate(zip(rows, expected, strict=True)):
        if index in (3, 4, 29):
            assert row.status == "unreadable"
            assert "process that read it died" in row.reason
        else:
            assert row == whole


def test_workers_end_with_the_iteration(images: list[str], scorer: Scorer) -> None:
    scored = score_files(images * 20, scorer, aligned=True, workers=2, batch_size=2)
    next(scored)
    scored.close()
    assert _rows(images, scorer, workers=1) == _rows(images, scorer)


def test_paths_are_taken_as_they_are_needed(images: list[str], scorer: Scorer) -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield images[taken % 30]

    for workers in (0, 2):
        taken = 0
        scored = score_files(endless(), scorer, aligned=True, workers=workers, batch_size=8)
        for _ in range(40):
            next(scored)
        scored.close()
        assert taken < 120


def test_wrong_arguments(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="expected batch_size of 1 or more, got 0"):
        score_files([], scorer, aligned=True, batch_size=0)
    bare = Scorer(Small().eval(), example=torch.zeros(1, 3, 112, 112))
    with pytest.raises(ValueError, match="a scorer with a preset"):
        score_files([], bare)
    assert list(score_files([], scorer, aligned=True)) == []


def test_paths_are_text_or_path_objects(images: list[str], scorer: Scorer) -> None:
    [one] = score_files([Path(images[0])], scorer, aligned=True)
    assert (one.path, one.records) == (images[0], _rows(images[:1], scorer))
    with pytest.raises(TypeError, match="expected several paths, as a list has them, got one str"):
        score_files(images[0], scorer, aligned=True)
    with pytest.raises(TypeError, match=r"expected a path, str or os.PathLike\[str\], got bytes"):
        list(score_files([b"a.png"], scorer, aligned=True))  # type: ignore[list-item]


def test_photos(scorer: Scorer, tmp_path: Path) -> None:
    """Several faces in a photo, none in another; boxes and crops are those of find_faces."""
    try:
        weights.find_file("yunet")
    except MissingWeightsError as error:
        pytest.skip(str(error))
    astronaut = pytest.importorskip("skimage.data").astronaut()[:256, 100:356]
    pair = np.concatenate([astronaut, np.zeros_like(astronaut)], axis=1)
    pair[:128, 256:384] = astronaut[::2, ::2]
    cv2.imwrite(str(tmp_path / "pair.png"), pair[..., ::-1])
    cv2.imwrite(str(tmp_path / "none.png"), np.full((300, 300, 3), 90, dtype=np.uint8))
    paths = [str(tmp_path / "none.png"), str(tmp_path / "pair.png")]
    faces = find_faces(read_rgb(paths[1]), Detector())
    assert len(faces) == 2
    output = scorer(torch.stack([torch.from_numpy(face.crop) for face in faces]).permute(0, 3, 1, 2))
    for workers in (0, 1):
        none, both = score_files(paths, scorer, workers=workers)
        assert none.records == [Record(paths[0], None, "no_face", reason="no face found")]
        assert torch.isnan(none.embeddings).all()
        assert none.embeddings.shape == (1, 16)
        assert [row.face for row in both.records] == [0, 1]
        assert [row.quality for row in both.records] == output.quality.tolist()
        assert [(row.x, row.y, row.w, row.h) for row in both.records] == [
            tuple(map(float, face.detection[:4])) for face in faces
        ]
        assert both.records[0].w > both.records[1].w  # type: ignore[operator]
    with pytest.raises(ValueError, match="min_face above 0, got -1"):  # it reaches the detector
        score_files(paths, scorer, min_face=-1)


@pytest.mark.slow
def test_real_crops(sface_file: Path) -> None:
    paths = list(map(str, list_face_files()))[::40]
    scorer = Scorer(on_bad="nan")
    rows = _rows(paths, scorer, workers=1)
    pixels = np.stack([cv2.imread(path)[..., ::-1] for path in paths])
    assert [row.quality for row in rows] == scorer(torch.from_numpy(pixels).permute(0, 3, 1, 2)).quality.tolist()
