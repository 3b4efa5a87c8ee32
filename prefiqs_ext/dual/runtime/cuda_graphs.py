"""CUDA graphs: the kernel launches of a call are recorded once for each shape of batch, then started together.

At small batches the CPU needs longer for a network's hundred or so launches than the GPU needs for the work.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from prefiqs_ext.dual.runtime.heuristics import MOST_RECORDINGS, SHAPES_REMEMBERED

Outputs = tuple[Tensor, ...]
Function = Callable[[Tensor], Outputs]

# torch allows one recording at a time in a process, and it cannot empty its cache during one.
_RECORDING = threading.Lock()


class Recording(Protocol):
    """The launches for one shape of batch. Before it goes, it waits until nothing of it runs any more."""

    def replay(self, batch: Tensor) -> Outputs:
        """Compute the function's results for a batch of that shape, in memory of their own."""


class CudaGraphs:
    """A function of one CUDA tensor, recorded as CUDA graphs. It is called like the function and gives the same bits.

    A shape is recorded when it comes for the second time, so shapes that come once cost nothing. The recordings that
    were used last are kept. Calls may come from any thread and on any stream: each waits, on the GPU, until the one
    before no longer uses the recordings' memory. As with any operation, the caller may free what it gave and keep what
    it got.

    If memory is short, all recordings are dropped and the call is repeated without one. If that fails too, the function
    itself needs more memory than there is; `is_out_of_memory` recognises the error.

    Args:
        function: Takes a tensor [N, ...], gives tensors, and depends on nothing else. If this object is to be pickled,
            it must be picklable.
        record: Makes a Recording of the function for batches like the one given, beside another recording.
    """

    def __init__(self, function: Function, record: Callable[..., Recording] | None = None) -> None:
        self._function = function
        self._record: Callable[..., Recording] = record or CudaRecording
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._recordings: OrderedDict[tuple[object, ...], Recording] = OrderedDict()
        # The shapes that have come, and whether to record them when they come again.
        self._seen: OrderedDict[tuple[object, ...], bool] = OrderedDict()

    def __call__(self, batch: Tensor) -> Outputs:
        """Compute the function's results for a batch [N, ...]."""
        try:
            return self._replay(batch) or self._function(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # This is outside the handler, because its traceback keeps alive what the failed call had allocated.
        with self._lock:
            self._drop_recordings(0)
            self._seen[_make_key(batch)] = False
        with _RECORDING:
            torch.cuda.empty_cache()
        return self._function(batch)

    def _replay(self, batch: Tensor) -> Outputs | None:
        """Replay the recording for this shape, and record it first if need be; None if it is not to be recorded."""
        key = _make_key(batch)
        with self._lock:
            if key not in self._recordings:
                if key not in self._seen:
                    self._seen[key] = True
                    if len(self._seen) > SHAPES_REMEMBERED:
                        self._seen.popitem(last=False)
                    return None
                if not self._seen[key]:
                    return None
                self._drop_recordings(MOST_RECORDINGS - 1)
                beside = next(iter(self._recordings.values()), None)
                with _alone():
                    self._recordings[key] = self._record(self._function, batch, beside)
            self._recordings.move_to_end(key)
            return self._recordings[key].replay(batch)

    def _drop_recordings(self, most: int) -> None:
        """Drop all recordings but the `most` that were used last."""
        while len(self._recordings) > most:
            self._recordings.popitem(last=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"_function": self._function, "_record": self._record}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


class CudaRecording:
    """One recorded CUDA graph, with the tensors that it reads and writes.

    Recordings share the memory of their intermediate results. torch keeps freed memory for the stream that it was
    allocated on, so all are recorded on one stream; and they run one after the other: the event `_left` says when the
    results of the last one have been copied out.
    """

    def __init__(self, function: Function, batch: Tensor, beside: CudaRecording | None) -> None:
        self._left: torch.cuda.Event = beside._left if beside else torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._stream: torch.cuda.Stream = beside._stream if beside else torch.cuda.Stream(batch.device)  # type: ignore[no-untyped-call]
        # The layout that convolutions read: copying the batch in also puts it in order.
        layout = torch.channels_last if batch.dim() == 4 else torch.contiguous_format
        self._src = torch.empty_like(batch, memory_format=layout)
        self._graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(batch.device)
        current.wait_event(self._left)
        self._src.copy_(batch)
        self._stream.wait_stream(current)
        pool = None if beside is None else beside._graph.pool()
        try:
            # The outer context restores the stream even where torch.cuda.graph, failing at its exit, does not.
            with torch.cuda.stream(self._stream):
                function(self._src)  # libraries set themselves up at a stream's first use, which cannot be recorded
                # thread_local, so that other threads may go on allocating while this one records.
                with torch.cuda.graph(self._graph, pool, self._stream, capture_error_mode="thread_local"):
                    self._results = function(self._src)
        finally:
            current.wait_stream(self._stream)
        self._left.record(current)

    def replay(self, batch: Tensor) -> Outputs:
        """Compute the results for a batch of the recorded shape, in memory of their own."""
        current = torch.cuda.current_stream(batch.device)
        current.wait_event(self._left)
        self._src.copy_(batch)
        self._graph.replay()
        results = tuple(result.clone() for result in self._results)
        self._left.record(current)
        return results

    def __del__(self) -> None:
        # torch knows nothing of the streams on which the recording ran: memory freed now could be used again at once.
        self._left.synchronize()


@contextmanager
def _alone() -> Iterator[None]:
    """Let one recording be made, with no other beside it and no garbage collected.

    The garbage may hold a recording. Dropping that one waits for the GPU, and a recording fails if its thread waits.
    """
    with _RECORDING:
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()


def _make_key(batch: Tensor) -> tuple[object, ...]:
    return tuple(batch.shape), batch.dtype


# How torch says it on CUDA and on the CPU, and our operators, which have no class for it.
_OUT_OF_MEMORY = ("CUDA out of memory", "DefaultCPUAllocator: can't allocate memory", "expected memory for")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it was raised from, says that the device had too little memory."""
    while error is not None:
        said = any(words in str(error) for words in _OUT_OF_MEMORY)
        if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or said:
            return True
        error = error.__cause__ or error.__context__
    return False
