"""Paths in, rows out: worker processes read the photos and find faces while this process scores them.

Memory is bounded: workers are a few batches ahead at most, and only crops travel.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefiqs_ext.exceptions import InputError, InputTypeError
from prefiqs_ext.faces import RGB, Detector, UnreadableImage, find_faces, read_rgb
from prefiqs_ext.faces.detect import MIN_FACE
from prefiqs_ext.faces.image import path_name
from prefiqs_ext.files.records import Record, Status
from prefiqs_ext.files.workers import read_ahead
from prefiqs_ext.scorer import Scorer


class Scored(NamedTuple):
    """What one path gave: one row a face, or one row that says why there is none."""

    path: str
    rows: list[Record]
    embeddings: Tensor
    """[len(rows), d] L2-normalised, float32; NaN in a row without one."""


class _Read(NamedTuple):
    """What a worker found in one file. boxes: (x, y, w, h, detector_score) of each crop; None for a ready crop."""

    path: str
    crops: Sequence[RGB]
    boxes: Sequence[tuple[float, ...] | None]
    status: Status = "ok"
    reason: str = ""


def score_files(
    paths: Iterable[str | PathLike[str]],
    scorer: Scorer,
    *,
    aligned: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    min_face: float = MIN_FACE,
) -> Generator[Scored, None, None]:
    """Score image files, in order. A row's numbers have the same bits as the scorer gives for the crop alone.

    Args:
        paths: files; taken as they are needed.
        scorer: has a preset, and on_bad="nan" if a face that cannot be assessed is to give a row instead of an error.
        aligned: files are ready crops of exactly the preset's size. Otherwise faces are found and aligned to it.
        batch_size: crops scored together.
        workers: processes that read files ahead; 0: this one reads. A file on which a worker dies, and one again that
            reads it alone, is "unreadable". They are started afresh, so a script that uses them needs its
            `if __name__ == "__main__":`.
        min_face: as for Detector.

    Raises:
        TypeError: paths that are one path, or hold something else.
        ValueError: a scorer without preset, batch_size below 1, workers below 0, min_face not above 0.
        OSError: the detector's weights are not to be had; workers do not start, or die and no file is to blame.
    """
    if isinstance(paths, (str, bytes, PathLike)):
        raise InputTypeError(f"expected several paths, as a list has them, got one {type(paths).__name__}")
    if scorer.preset is None:
        raise InputError("expected a scorer with a preset, which says how large a crop is; got none")
    if batch_size < 1 or workers < 0:
        raise InputError(f"expected batch_size >= 1 and workers >= 0, got {batch_size} and {workers}")
    detector = None if aligned else Detector(min_face=min_face)  # which fetches its weights before workers start
    names = map(path_name, paths)
    return _score(_read(names, _Reader(scorer.preset.size, detector), workers, batch_size), scorer, batch_size)


def read_crops(paths: Iterable[str], size: tuple[int, int], *, aligned: bool = False) -> Generator[Tensor, None, None]:
    """The largest face of each file, in order, uint8 [3, *size] RGB; files without one give nothing. As score_files
    reads them, in this process."""
    for read in _read(paths, _Reader(size, None if aligned else Detector()), 0, 1):
        if len(read.crops):
            yield torch.as_tensor(read.crops[0]).permute(2, 0, 1).contiguous()


def _score(reads: Generator[_Read, None, None], scorer: Scorer, batch_size: int) -> Generator[Scored, None, None]:
    nothing = scorer(torch.empty(0, 3, *_size(scorer), dtype=torch.uint8, device=scorer.device)).embedding.cpu()
    with closing(reads):  # at once, whatever happens: workers read for nobody else
        batches = _batches(reads, batch_size)
        for batch in batches if scorer.device.type == "cpu" else _uploaded(batches, scorer.device):
            yield from _score_batch(batch, scorer, nothing)


class _Batch(NamedTuple):
    reads: list[_Read]
    parts: list[Tensor]
    """The reads' crops, in order, in tensors [N, 3, H, W] of at most the batch size."""


def _batches(reads: Iterator[_Read], batch_size: int) -> Iterator[_Batch]:
    waiting: list[_Read] = []
    crops = 0
    for read in reads:
        waiting.append(read)
        crops += len(read.crops)
        # Files without a face wait as well, in order; they too are bounded.
        if crops >= batch_size or len(waiting) >= 4 * batch_size:
            yield _batch(waiting, batch_size)
            waiting, crops = [], 0
    yield _batch(waiting, batch_size)


def _batch(reads: list[_Read], batch_size: int) -> _Batch:
    crops = [torch.as_tensor(crop) for read in reads for crop in read.crops]
    parts = [torch.stack(crops[i : i + batch_size]) for i in range(0, len(crops), batch_size)]
    return _Batch(reads, [part.permute(0, 3, 1, 2) for part in parts])


def _uploaded(batches: Iterator[_Batch], device: torch.device) -> Iterator[_Batch]:
    """The batches on a CUDA device, a batch later: one is copied there while the one before is computed."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def started(batch: _Batch) -> _Batch:
        with torch.cuda.stream(stream):
            # From pinned memory, which torch keeps until the copy has ended, and then uses again.
            return batch._replace(parts=[part.pin_memory().to(device, non_blocking=True) for part in batch.parts])

    def ended(batch: _Batch, copied: torch.cuda.Event) -> _Batch:
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for part in batch.parts:
            part.record_stream(current)
        return batch

    before: tuple[_Batch, torch.cuda.Event] | None = None
    for batch in batches:
        following = started(batch), stream.record_event()
        if before is not None:
            yield ended(*before)
        before = following
    if before is not None:
        yield ended(*before)


def _score_batch(batch: _Batch, scorer: Scorer, nothing: Tensor) -> Iterator[Scored]:
    reads = batch.reads
    outputs = [scorer(part) for part in batch.parts]
    numbers = iter(
        [
            values
            for output in outputs
            for values in zip(
                output.quality.tolist(),
                output.distance.tolist(),
                output.embedding_norm.tolist(),
                output.embedding.cpu(),
                strict=True,
            )
        ]
    )
    for read in reads:
        rows, embeddings = [], []
        for face, (box, (quality, distance, norm, embedding)) in enumerate(
            zip(read.boxes, islice(numbers, len(read.boxes)), strict=True)
        ):
            x, y, w, h, score = box or (None,) * 5
            if distance == distance:
                rows.append(Record(read.path, face, "ok", quality, distance, norm, x, y, w, h, score))
                embeddings.append(embedding)
            else:
                why = "its embedding has no direction: a blank image, or broken weights"
                rows.append(Record(read.path, face, "not_assessable", None, None, None, x, y, w, h, score, why))
                embeddings.append(torch.full_like(embedding, torch.nan))
        if not rows:
            rows = [Record(read.path, None, read.status, reason=read.reason)]
            embeddings = [nothing.new_full(nothing.shape[1:], torch.nan)]
        yield Scored(read.path, rows, torch.stack(embeddings))


def _size(scorer: Scorer) -> tuple[int, int]:
    assert scorer.preset is not None
    return scorer.preset.size


class _Reader:
    """A path -> its crops. Lives in the workers. detector: None for ready crops."""

    def __init__(self, size: tuple[int, int], detector: Detector | None) -> None:
        self._size = size
        self._detector = detector

    def __call__(self, path: str) -> _Read:
        try:
            image = read_rgb(path)
        except UnreadableImage as error:
            return _Read(path, (), (), "unreadable", error.reason)
        if self._detector is None:
            return self._crop(path, image)
        try:
            faces = find_faces(image, self._detector, self._size)
        except Exception as error:  # OpenCV raises classes of its own; one photo must not end the others
            reason = " ".join(str(error).split()) or type(error).__name__
            return _Read(path, (), (), "not_assessable", reason)
        if not faces:
            return _Read(path, (), (), "no_face", "no face found")
        boxes = [(*map(float, face.detection[:4]), float(face.detection.score)) for face in faces]
        return _Read(path, [face.crop for face in faces], boxes)

    def _crop(self, path: str, image: np.ndarray) -> _Read:
        if image.shape[:2] != self._size:
            (wanted, wide), (height, width) = self._size, image.shape[:2]
            reason = f"expected a crop of {wide} x {wanted} pixels, got {width} x {height}; a photo needs no --aligned"
            return _Read(path, (), (), "not_assessable", reason)
        return _Read(path, (image,), (None,))


def _read(paths: Iterable[str], reader: _Reader, workers: int, batch_size: int) -> Generator[_Read, None, None]:
    """What the reader makes of each path, in order."""
    if workers:
        return read_ahead(paths, reader, _lost, workers=workers, ahead=2 * batch_size)
    return (reader(path) for path in paths)


def _lost(path: str) -> _Read:
    return _Read(path, (), (), "unreadable", "the process that read it died: out of memory, or a fault in a decoder")
