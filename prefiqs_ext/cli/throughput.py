"""How a command's work is spread over the machine: the same rule for every command that scores files."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click
from tqdm import tqdm

from prefiqs_ext.cli.options import omit, pick

if TYPE_CHECKING:
    from prefiqs_ext.files.crops import FileCrops
    from prefiqs_ext.files.image import InputImage
    from prefiqs_ext.files.pipeline import ScoredFile
    from prefiqs_ext.models.template import CropTemplate
    from prefiqs_ext.scorer import Scorer

_P = ParamSpec("_P")
_T = TypeVar("_T")
_NAMES = ("workers", "batch_size", "threads")
_MOST_WORKERS = 8
# A process takes two or three seconds to start, in which this one finds the faces of a dozen photos.
_IMAGES_PER_WORKER = 16
_AHEAD = 64  # files that are read ahead where crops are collected


@dataclass(frozen=True)
class Throughput:
    """How many processes read files, how many crops are scored together, and by how many threads.

    Attributes:
        workers: processes that read files and find faces; 0: this one does. None: by the number of files and cores.
        batch_size: crops scored together. None: 32 on the CPU, 256 on a GPU.
        threads: threads that score. None: as many as torch takes by itself.
    """

    workers: int | None = None
    batch_size: int | None = None
    threads: int | None = None

    def choose_workers(self, images: int | None) -> int:
        """Return how many processes read so many images: up to half of the cores, since scoring needs the others.

        `images` is None where nobody knows how many there are: they are taken for many.
        """
        if self.workers is not None:
            return self.workers
        most = min(_MOST_WORKERS, max(1, count_cores() // 2))
        return most if images is None else min(most, images // _IMAGES_PER_WORKER)

    def score(
        self,
        images: Iterable[InputImage],
        scorer: Scorer,
        *,
        aligned: bool,
        total: int | None,
        min_face: float | None = None,
        done: int = 0,
    ) -> Generator[ScoredFile, None, None]:
        """Score images one after another, and show on a terminal how far that is.

        Args:
            images: the images that are still to be scored.
            scorer: what scores them.
            aligned: the images are ready crops of the preset's size.
            total: how many images the run has, those of an earlier run too; None if nobody knows.
            min_face: width in pixels from which faces in photos are found. None: 60.
            done: how many images an earlier run has scored.

        Yields:
            What each image gave, in order. Close the generator, and the processes that read images end.
        """
        from prefiqs_ext.faces.detect import MIN_FACE
        from prefiqs_ext.files.pipeline import score_images

        self._set_threads()
        scored_files = score_images(
            images,
            scorer,
            aligned=aligned,
            batch_size=self.batch_size,
            workers=self.choose_workers(None if total is None else total - done),
            min_face=min_face or MIN_FACE,
        )
        yield from _show_progress(scored_files, total, done)

    def read(self, paths: Sequence[str], template: CropTemplate, *, aligned: bool) -> Generator[FileCrops, None, None]:
        """Read the crops of files one after another, and show on a terminal how far that is.

        Args:
            paths: the files.
            template: what a crop is like.
            aligned: the files are ready crops of this size.

        Yields:
            The crops of each file, in order. Close the generator, and the processes that read files end.
        """
        from prefiqs_ext.faces import Detector
        from prefiqs_ext.files.crops import CropReader, read_crops
        from prefiqs_ext.files.image import EncodedImage

        self._set_threads()
        reader = CropReader(template, None if aligned else Detector())
        ahead = self.batch_size or _AHEAD
        files = read_crops(map(EncodedImage, paths), reader, workers=self.choose_workers(len(paths)), ahead=ahead)
        yield from _show_progress(files, len(paths))

    def _set_threads(self) -> None:
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)


def _show_progress(files: Generator[_T, None, None], total: int | None, done: int = 0) -> Generator[_T, None, None]:
    """Pass on what each image gives, with a bar on a terminal (disable=None); close with it, which ends the workers."""
    with closing(files), tqdm(total=total, initial=done, unit="image", disable=None, leave=False) as bar:
        for file in files:
            yield file
            bar.update()


_OPTIONS = (
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        metavar="N",
        help="Processes that read files and find faces; 0 reads them in the main process. [default: half of the cores, "
        "at most 8; none for a few files]",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        metavar="N",
        help="Faces scored together; less takes less memory and gives the same numbers. [default: 32; on a GPU 256]",
    ),
    click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="Threads that score. [default: one per core]"
    ),
)


def throughput_options(command: Callable[_P, None]) -> Callable[_P, None]:
    """Add --workers, --batch-size and --threads; the command gets them as `throughput`, a :class:`Throughput`."""

    @functools.wraps(command)
    def with_throughput(*_: _P.args, **given: _P.kwargs) -> None:
        context = click.get_current_context()
        own = pick(context.params, _NAMES)
        context.invoke(command, **omit(given, own), throughput=Throughput(**own))

    for option in reversed(_OPTIONS):
        with_throughput = option(with_throughput)
    return with_throughput


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
