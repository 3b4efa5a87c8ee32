"""CUDA graphs: the kernel launches of a call are recorded once for each shape of batch, then started together.

At small batches the CPU needs longer for a network's hundred or so launches than the GPU needs for the work.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from prefiqs_ext.dual.runtime.heuristics import MOST_RECORDINGS, SHAPES_REMEMBERED

Outputs = tuple[Tensor, ...]
Function = Callable[[Tensor], Outputs]


class Recording(Protocol):
    """The launches for one shape of batch."""

    def replay(self, batch: Tensor) -> Outputs:
        """Compute the function's results for a batch of that shape, in memory of their own."""

    def finish(self) -> None:
        """Wait until nothing of it runs any more."""


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
                self._recordings[key] = self._record(self._function, batch, beside)
            self._recordings.move_to_end(key)
            return self._recordings[key].replay(batch)

    def _drop_recordings(self, most: int) -> None:
        """Drop all recordings but the `most` that were used last."""
        while len(self._recordings) > most:
            next(iter(self._recordings.values())).finish()
            self._recordings.popitem(last=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"_function": self._function, "_record": self._record}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


class CudaRecording:
    """One recorded CUDA graph, with the tensors that it reads and writes.

    Recordings share the memory of their intermediate results, so they run one after the other: the event `_left` says
    when the results of the last one have been copied out.
    """

    def __init__(self, function: Function, batch: Tensor, beside: CudaRecording | None) -> None:
        # The layout that convolutions read: copying the batch in also puts it in order.
        layout = torch.channels_last if batch.dim() == 4 else torch.contiguous_format
        self._src = torch.empty_like(batch, memory_format=layout)
        self._graph = torch.cuda.CUDAGraph()
        self._left: torch.cuda.Event = beside._left if beside else torch.cuda.Event()  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(batch.device)
        if beside is not None:
            current.wait_event(self._left)
        self._src.copy_(batch)
        stream = torch.cuda.Stream(batch.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            function(self._src)  # libraries set themselves up at a stream's first use, which cannot be recorded
        current.wait_stream(stream)
        pool = None if beside is None else beside._graph.pool()
        # thread_local, so that other threads may go on allocating while this one records.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._results = function(self._src)
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

    def finish(self) -> None:
        """Wait until the results of the last replay have been copied out."""
        self._left.synchronize()


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
