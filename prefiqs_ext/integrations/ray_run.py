"""`prefiqs score --engine ray`: a run in units, each of which some actor of a cluster reads, scores and writes.

A unit is one archive or Parquet file, or a thousand image files. Its output is the table that one process would write,
and gets its name when it is complete: so tasks can be tried again, and a finished unit is never done twice.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from prefiqs_ext.exceptions import InputError, PrefiqsError, WorkerError
from prefiqs_ext.files.crops import CropReader, FileCrops, report_death
from prefiqs_ext.files.image import EncodedImage
from prefiqs_ext.files.images import InputImages
from prefiqs_ext.files.pipeline import score_images
from prefiqs_ext.files.remote import open_input
from prefiqs_ext.files.writer import Writer
from prefiqs_ext.integrations.output_folder import OutputFolder
from prefiqs_ext.integrations.ray_nodes import enter_folder, hold_node
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.utils.suffixes import is_address, is_container
from prefiqs_ext.utils.text import describe_error, format_untrusted

if TYPE_CHECKING:
    import ray

_SLICE = 1000  # image files of one unit
_WAVE = 2000  # units that Ray knows of at a time: the memory of a run does not grow with their number
_CHUNK = 16  # images of one reading task
_SLICE_NAME = re.compile(r"images-\d{6,}-[0-9a-f]{8}\.parquet")
_MOST_REASONS = 20  # that are said of one unit


@dataclass(frozen=True)
class Unit:
    """What is scored as one, into one output.

    Attributes:
        name: The name of the output in its folder.
        paths: A single archive or Parquet file, or image files.
    """

    name: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """What every actor must know.

    Attributes:
        make_scorer: Makes the Scorer.
        output: The folder of the outputs.
        run: What the run is called, to tell whether a node sees the same folder.
        folder: The working directory of the command.
        aligned: The images are ready crops.
        min_face: Width in pixels from which faces in photos are found.
        image_column: The column of Parquet files with the images.
        embedding_column: Whether the outputs have a column of embeddings.
        batch_size: Crops scored together; None for the default.
        threads: Threads that score.
        readers: Tasks that decode images and find faces for one actor; 0: the actor does.
    """

    make_scorer: Callable[[], Scorer]
    output: OutputFolder
    run: str
    folder: str
    aligned: bool
    min_face: float
    image_column: str
    embedding_column: bool
    batch_size: int | None
    threads: int
    readers: int


@dataclass
class UnitResult:
    """What came of a unit.

    Attributes:
        name: Of its output.
        counts: Faces, and images without one, by status.
        images: How many images it had.
        reasons: Lines about what is not "ok": the first ones.
        error: One line, if the unit could not be done.
    """

    name: str
    counts: dict[str, int] = field(default_factory=dict)
    images: int = 0
    reasons: list[str] = field(default_factory=list)
    error: str = ""


def list_units(paths: Iterable[str]) -> Iterator[Unit]:
    """Cuts the files of a run into units, in their order.

    An output is named after its archive, by its whole path, so that no two have one name. Image files are numbered in
    slices; a hash of their paths is in the name, so that a slice is known again.
    """
    waiting: list[str] = []
    count = 0
    for path in paths:
        if is_container(path):
            yield Unit(f"{_make_relative(path)}.parquet", (path,))
            continue
        waiting.append(path)
        if len(waiting) == _SLICE:
            yield _make_slice(count, waiting)
            waiting, count = [], count + 1
    if waiting:
        yield _make_slice(count, waiting)


class PendingUnits:
    """The units of a run that have no output yet. They are found as they are needed, and once.

    Args:
        units: All units of the run.
        outputs: The names of the outputs that are there.

    Attributes:
        finished: How many units were found that have an output.
    """

    def __init__(self, units: Iterable[Unit], outputs: set[str]) -> None:
        self._units = units
        self._outputs = outputs
        self.finished = 0

    def __iter__(self) -> Iterator[Unit]:
        """Finds one unit after another.

        Raises:
            InputError: Two archives would have the same output, or a slice of image files an output that an earlier run
                has made of others.
        """
        slices = {_get_slice(name): name for name in self._outputs if _SLICE_NAME.fullmatch(name)}
        named: set[str] = set()
        for unit in self._units:
            if unit.name in named:
                raise InputError(f"{unit.paths[0]}: another input has its output's name, {unit.name}; give it once")
            if _SLICE_NAME.fullmatch(unit.name) is None:
                named.add(unit.name)
            elif (other := slices.get(_get_slice(unit.name), unit.name)) != unit.name:
                raise InputError(f"{other} was made from other images than this run's: name another folder")
            if unit.name in self._outputs:
                self.finished += 1
            else:
                yield unit


def run_units(
    units: Iterable[Unit], job: Job, *, concurrency: int, num_gpus: float
) -> Generator[UnitResult, None, None]:
    """Scores units on a cluster that Ray is connected to, in any order.

    Args:
        units: The units, taken as they are needed.
        job: What every actor must know.
        concurrency: Actors that score.
        num_gpus: GPUs of each actor.

    Yields:
        One result per unit.

    Raises:
        PrefiqsError: An actor cannot be made: a node lacks the folder, or the weights.
    """
    import ray
    from ray.data import ActorPoolStrategy

    rest = iter(units)
    while wave := list(islice(rest, _WAVE)):
        rows = [{"unit": json.dumps([unit.name, unit.paths])} for unit in wave]
        dataset = ray.data.from_items(rows, override_num_blocks=len(wave))
        results = dataset.map_batches(
            UnitScorer,
            fn_constructor_args=(job,),
            batch_size=1,
            batch_format="numpy",
            # One unit at a time: an actor that holds a second one back leaves another actor idle.
            compute=ActorPoolStrategy(size=min(concurrency, len(wave)), max_tasks_in_flight_per_actor=1),
            num_cpus=job.threads,
            num_gpus=num_gpus or None,
        )
        try:
            for row in results.iter_rows():
                yield UnitResult(**json.loads(row["result"]))
        except ray.exceptions.RayError as error:
            raise _find_cause(error) from error


class UnitScorer:
    """An actor that scores units.

    Args:
        job: What it must know.
    """

    def __init__(self, job: Job) -> None:
        import torch

        enter_folder(job.folder)
        job.output.check_run(job.run)
        torch.set_num_threads(job.threads)
        with hold_node():  # one process of a node fetches the weights, if need be
            self._scorer = job.make_scorer()
        self._job = job

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Scores one unit and writes its output. What goes wrong is in the result."""
        name, paths = json.loads(batch["unit"][0])
        unit = Unit(name, tuple(paths))
        try:
            result = self.score(unit)
        except PrefiqsError as error:
            result = UnitResult(unit.name, error=describe_error(error))
        return {"result": [json.dumps(result.__dict__)]}

    def score(self, unit: Unit) -> UnitResult:
        """Scores one unit, writes its output and says what came of it.

        Raises:
            PrefiqsError: It cannot be read to its end, or the output cannot be written.
        """
        job = self._job
        if job.output.has(unit.name):  # by a task that died after it had written
            return _read_result(job.output, unit.name)
        images = InputImages(unit.paths, image_column=job.image_column, carry=True)
        read = partial(_read_by_tasks, tasks=job.readers, folder=job.folder) if job.readers else None
        result = UnitResult(unit.name)
        with tempfile.TemporaryDirectory(prefix="prefiqs-") as folder:
            table = Path(folder, "unit.parquet")
            writer = Writer(table, settings={}, paths=(), embedding_column=job.embedding_column, carried=images.carried)
            with writer:
                scored_files = score_images(
                    images,
                    self._scorer,
                    aligned=job.aligned,
                    batch_size=job.batch_size,
                    min_face=job.min_face,
                    read=read,
                )
                with closing(scored_files):
                    for scored in scored_files:
                        writer.add(scored)
                        bad = (record for record in scored.records if record.status != "ok")
                        for record in islice(bad, _MOST_REASONS - len(result.reasons)):
                            result.reasons.append(f"{record.path}: {record.status}: {record.reason}")
                writer.finish()
            result.counts, result.images = dict(writer.progress.counts), writer.progress.paths
            job.output.publish(table, unit.name)
        return result


def _read_by_tasks(
    images: Iterable[EncodedImage], reader: CropReader, *, tasks: int, folder: str
) -> Generator[FileCrops, None, None]:
    """Reads the crops of images by tasks on any node's CPUs, in order."""
    import ray

    shipped = ray.put(reader)
    task = ray.remote(num_cpus=1, max_retries=3)(_read_chunk)

    def read(images: list[EncodedImage]) -> ray.ObjectRef[list[FileCrops]]:
        return task.remote(shipped, images, folder)

    rest = iter(images)
    begun: deque[tuple[list[EncodedImage], ray.ObjectRef[list[FileCrops]]]] = deque()
    while chunk := list(islice(rest, _CHUNK)):
        begun.append((chunk, read(chunk)))
        if len(begun) > 2 * tasks:
            yield from _get_crops(*begun.popleft(), read)
    while begun:
        yield from _get_crops(*begun.popleft(), read)


def _get_crops(
    chunk: list[EncodedImage],
    begun: ray.ObjectRef[list[FileCrops]],
    read: Callable[[list[EncodedImage]], ray.ObjectRef[list[FileCrops]]],
) -> list[FileCrops]:
    """Waits for a task; where it dies again and again, each of its images gets one of its own, and may be to blame."""
    import ray

    try:
        return ray.get(begun)
    except ray.exceptions.RayTaskError as error:
        raise _find_cause(error) from error
    except ray.exceptions.RayError:
        if len(chunk) == 1:
            return [report_death(chunk[0])]
    alone = [([image], read([image])) for image in chunk]
    return [crops for each in alone for crops in _get_crops(*each, read)]


def _read_chunk(reader: CropReader, images: list[EncodedImage], folder: str) -> list[FileCrops]:
    """Runs as a task."""
    enter_folder(folder)
    return [reader(image) for image in images]


def _read_result(output: OutputFolder, name: str) -> UnitResult:
    """Reads from an output what came of its unit."""
    import pyarrow.parquet as pq

    with open_input(output.get_address(name), "name a Parquet file") as stream:
        table = pq.read_table(stream, columns=["path", "status"])
    counts = Counter(table["status"].to_pylist())
    return UnitResult(name, dict(counts), len(set(table["path"].to_pylist())))


def _make_relative(path: str) -> str:
    """Makes a path or an address into one below a folder."""
    place = path.split("://", 1)[1] if is_address(path) else path
    if ".." in place.split("/"):
        place = os.path.abspath(place)
    return "/".join(part for part in place.split("/") if part not in ("", "."))


def _make_slice(number: int, paths: list[str]) -> Unit:
    digest = blake2b(b"\0".join(map(os.fsencode, paths)), digest_size=4).hexdigest()
    return Unit(f"images-{number:06}-{digest}.parquet", tuple(paths))


def _get_slice(name: str) -> str:
    """Gives the name of a slice's output without the hash of its paths."""
    return name.rpartition("-")[0]


def _find_cause(error: BaseException) -> PrefiqsError:
    """Finds the error of this package in what Ray makes of it; any other becomes one line."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, PrefiqsError) and not hasattr(found, "traceback_str"):
            return found
        found = getattr(found, "cause", None) or found.__cause__
    return WorkerError(f"the cluster gave up: {format_untrusted(error, 300)}")
