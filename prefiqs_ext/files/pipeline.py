"""From images to scores, in a few steps, each an iterator over the one before.

    InputImage (images.py) -> FileCrops (crops.py, in worker processes) -> Batch (batches.py) -> ScoredFile (here)

While this process scores a batch, the workers read the next files. Memory is bounded: the workers are a few batches
ahead at most, and only crops travel between processes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from os import PathLike
from typing import NamedTuple

import torch
from torch import Tensor

from prefiqs_ext.device import choose_batch_size
from prefiqs_ext.exceptions import InputTypeError
from prefiqs_ext.faces import Detector
from prefiqs_ext.faces.detect import MIN_FACE
from prefiqs_ext.files.batches import Batch, collect_batches, upload_ahead
from prefiqs_ext.files.crops import CropReader, FaceBox, FileCrops, read_crops
from prefiqs_ext.files.image import CarriedRow, EncodedImage, InputImage
from prefiqs_ext.files.records import Record
from prefiqs_ext.output import ImageScore, split_output
from prefiqs_ext.scorer import Scorer, get_template
from prefiqs_ext.utils.check_arguments import check_count, check_path

ReadCrops = Callable[[Iterable[EncodedImage], CropReader], Generator[FileCrops, None, None]]
"""Reads the crops of images, in order; see :func:`prefiqs_ext.files.crops.read_crops`."""

_NO_DIRECTION = "its embedding has no direction: a blank image, or broken weights"


class ScoredFile(NamedTuple):
    """What one image gave: one record per face, or a single record that says why there is none."""

    path: str
    records: list[Record]
    embeddings: Tensor
    """[len(records), d] L2-normalised, float32; NaN where a record has no embedding."""
    content_hash: bytes | None = None
    """BLAKE2b of the encoded image, 16 bytes; None if it was not read."""
    carried: CarriedRow | None = None
    """The columns beside it in its input, if they are carried."""


def score_files(
    paths: Iterable[str | PathLike[str]],
    scorer: Scorer,
    *,
    aligned: bool = False,
    batch_size: int | None = None,
    workers: int = 0,
    min_face: float = MIN_FACE,
) -> Generator[ScoredFile, None, None]:
    """Scores image files, in order. A face gets the same bits as the scorer gives for its crop alone.

    Args:
        paths: The files, taken as they are needed.
        scorer: A Scorer with a preset. With ``on_bad="nan"``, a face that cannot be assessed gives a record that says
            so; otherwise it raises.
        aligned: The files are ready crops of exactly the preset's size. Otherwise they are photos, in which faces are
            found and aligned to that size.
        batch_size: How many crops are scored together; None means 32 on the CPU and 256 on a GPU.
        workers: Processes that read files ahead; 0 means that this process reads. A file that ends its worker, and
            ends another one that reads this file alone, is "unreadable". Each worker is a new Python process, so a
            script that uses workers must guard its main code with ``if __name__ == "__main__":``.
        min_face: Width in pixels from which faces in photos are found; see :class:`prefiqs_ext.faces.Detector`.

    Yields:
        One ScoredFile per path.

    Raises:
        InputTypeError: `paths` is a single path, or has something that is no path.
        InputError: The scorer has no preset, batch_size is below 1, workers below 0, or min_face not above 0.
        MissingWeightsError: The detector's weights are not there and cannot be fetched.
        WorkerError: Workers do not start, or die and no file is to blame.
    """
    if isinstance(paths, (str, bytes, PathLike)):
        raise InputTypeError(f"expected several paths, as a list has them, got one {type(paths).__name__}")
    images = (InputImage(check_path(path)) for path in paths)
    return score_images(images, scorer, aligned=aligned, batch_size=batch_size, workers=workers, min_face=min_face)


def score_images(
    images: Iterable[InputImage],
    scorer: Scorer,
    *,
    aligned: bool = False,
    batch_size: int | None = None,
    workers: int = 0,
    min_face: float = MIN_FACE,
    read: ReadCrops | None = None,
) -> Generator[ScoredFile, None, None]:
    """Scores the images of files, archives and Parquet files as :func:`score_files` scores files.

    Args:
        images: What :class:`prefiqs_ext.files.InputImages` gives, taken as they are needed.
        scorer: As for score_files, like all below.
        aligned: The images are ready crops.
        batch_size: How many crops are scored together.
        workers: Processes that decode images and find faces.
        min_face: Width in pixels from which faces in photos are found.
        read: Reads the crops of the images in order, elsewhere than in workers of this machine.

    Yields:
        One ScoredFile per image.

    Raises:
        InputError, MissingWeightsError, WorkerError: As for score_files.
        FileAccessError: An archive or a Parquet file was opened, and then could not be read on.
    """
    template = get_template(scorer)
    if batch_size is None:
        batch_size = choose_batch_size(scorer.device)
    check_count(batch_size, "batch_size")
    check_count(workers, "workers", least=0)
    detector = None if aligned else Detector(min_face=min_face)  # it fetches its weights before workers start
    reader = CropReader(template, detector)
    carried: deque[CarriedRow | None] = deque()

    def encode() -> Iterator[EncodedImage]:
        for image in images:
            encoded = image.encode()
            carried.append(image.carry())
            yield encoded

    if read is None:
        read = partial(read_crops, workers=workers, ahead=2 * batch_size)
    files = read(encode(), reader)
    return _score(files, scorer, template.size, batch_size, carried)


def _score(
    files: Generator[FileCrops, None, None],
    scorer: Scorer,
    size: tuple[int, int],
    batch_size: int,
    carried: deque[CarriedRow | None],
) -> Generator[ScoredFile, None, None]:
    no_embedding = make_no_embedding(scorer, size)
    with closing(files):  # at once, whatever happens: the workers read for nobody else
        batches = collect_batches(files, batch_size)
        if scorer.device.type != "cpu":
            batches = upload_ahead(batches, scorer.device)
        for batch in batches:
            for scored in score_batch(batch, scorer, no_embedding):
                yield scored._replace(carried=carried.popleft())


def make_no_embedding(scorer: Scorer, size: tuple[int, int]) -> Tensor:
    """Makes what stands for the embedding of a face that has none: float32 [d] of NaN, on the CPU.

    Args:
        scorer: What scores.
        size: Height and width of its crops.
    """
    no_images = torch.empty(0, 3, *size, dtype=torch.uint8, device=scorer.device)
    nothing = scorer(no_images).embedding.cpu()
    return nothing.new_full(nothing.shape[1:], torch.nan)


def score_batch(batch: Batch, scorer: Scorer, no_embedding: Tensor) -> Iterator[ScoredFile]:
    """Scores the crops of some images and gives what each image gave; `no_embedding` is for faces without one."""
    scores = _score_images(batch.images, scorer)
    for file in batch.files:
        faces = list(zip(file.boxes, islice(scores, len(file.boxes)), strict=True))
        if faces:
            records = [_make_record(file.path, face, box, each) for face, (box, each) in enumerate(faces)]
            embeddings = [
                each.embedding if record.status == "ok" else no_embedding
                for record, (_, each) in zip(records, faces, strict=True)
            ]
        else:
            records = [Record(path=file.path, face=None, status=file.status, reason=file.reason)]
            embeddings = [no_embedding]
        yield ScoredFile(file.path, records, torch.stack(embeddings), file.content_hash)


def _score_images(images: list[Tensor], scorer: Scorer) -> Iterator[ImageScore]:
    """Scores all images and then gives their scores one by one, on the CPU."""
    outputs = [scorer(batch) for batch in images]  # all begun before the first result is waited for
    on_cpu = [output._replace(embedding=output.embedding.cpu()) for output in outputs]
    return iter([score for output in on_cpu for score in split_output(output)])


def _make_record(path: str, face: int, box: FaceBox, score: ImageScore) -> Record:
    record = Record(
        path=path,
        face=face,
        status="ok",
        score=score.score,
        quality=score.quality,
        distance=score.distance,
        embedding_norm=score.embedding_norm,
        x=box.x,
        y=box.y,
        w=box.w,
        h=box.h,
        detector_score=box.detector_score,
    )
    if math.isnan(score.distance):
        return record._replace(
            status="not_assessable", score=None, quality=None, distance=None, embedding_norm=None, reason=_NO_DIRECTION
        )
    return record
