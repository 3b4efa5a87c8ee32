"""From the crops of files to batches of one size, for the CPU or copied to a GPU ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from prefiqs_ext.files.crops import FileCrops

_FILES_PER_CROP = 4  # a batch has at most so many times more files than crops: files without a face are bounded too


class Batch(NamedTuple):
    """Some files and their crops, ready for a Scorer."""

    files: list[FileCrops]
    """Files with and without faces, in order."""
    images: list[Tensor]
    """The crops of all these files, in order, uint8 [N, 3, H, W] RGB with N of at most the batch size.

    There are several tensors where a file has more faces than fit into one."""


def collect_batches(files: Iterator[FileCrops], batch_size: int) -> Iterator[Batch]:
    """Collects files until their crops fill a batch."""
    waiting: list[FileCrops] = []
    count = 0
    for file in files:
        waiting.append(file)
        count += len(file.crops)
        if count >= batch_size or len(waiting) >= _FILES_PER_CROP * batch_size:
            yield stack_crops(waiting, batch_size)
            waiting, count = [], 0
    yield stack_crops(waiting, batch_size)


def stack_crops(files: list[FileCrops], batch_size: int) -> Batch:
    """Stacks the crops of files into tensors of at most `batch_size` images."""
    crops = [torch.as_tensor(crop) for file in files for crop in file.crops]
    stacks = [torch.stack(crops[start : start + batch_size]) for start in range(0, len(crops), batch_size)]
    return Batch(files, [stack.permute(0, 3, 1, 2) for stack in stacks])


def upload_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copies batches to a CUDA device, each one while the batch before it is computed.

    The copies run on a stream of their own. A batch is yielded when the copy of the next one has begun; the stream that
    computes then waits for the batch's own copy.
    """
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin_copy(batch: Batch) -> Batch:
        with torch.cuda.stream(copying):
            # From pinned memory, which torch keeps until the copy has ended, and then uses again.
            return batch._replace(images=[part.pin_memory().to(device, non_blocking=True) for part in batch.images])

    def await_copy(batch: Batch, copied: torch.cuda.Event) -> Batch:
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copied)
        for part in batch.images:
            part.record_stream(computing)  # its memory is not used again before the computation has ended
        return batch

    previous: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        current = begin_copy(batch), copying.record_event()
        if previous is not None:
            yield await_copy(*previous)
        previous = current
    if previous is not None:
        yield await_copy(*previous)
