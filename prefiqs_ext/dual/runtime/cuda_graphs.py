"""CUDA graphs: the launches of a call recorded once for each shape of batch, then started together.

At small batches a network's some hundred launches take the CPU longer than the GPU needs for the work.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]
Function = Callable[[Tensor], Outputs]

# Each keeps the memory of its largest intermediate results, shared with the others, and its input.
_RECORDINGS = 4
_SHAPES_REMEMBERED = 64


class Recording(Protocol):
    """One shape's launches."""

    def replay(self, batch: Tensor) -> Outputs:
        """The function's results for a batch of that shape, in memory of their own."""

    def finish(self) -> None:
        """Waits until nothing of it runs any more."""


class CudaGraphs:
    """A function of one CUDA tensor; called as the function is, with the same bits.

    A shape is recorded when it comes for the second time, so those that come once cost nothing; the recordings used
    last are kept. Calls come from any thread and on any stream: each waits, on the GPU, until the one before has left
    the recordings' memory. What is given may be freed, and what is returned kept, as with any operation.

    Short of memory, all recordings are given up and the call is made once more as it is; an error that `out_of_memory`
    knows then means that the function itself needs more than there is.

    Args:
        function: of a tensor [N, ...], gives tensors, and depends on nothing else. Picklable if this is to be.
        record: makes a Recording of the function for batches like the one given, beside others.
    """

    def __init__(self, function: Function, record: Callable[..., Recording] | None = None) -> None:
        self._function = function
        self._record: Callable[..., Recording] = record or CudaRecording
        self._empty()

    def _empty(self) -> None:
        self._lock = threading.Lock()
        self._recordings: OrderedDict[tuple[object, ...], Recording] = OrderedDict()
        # The shapes that have come, and whether to record them when they come again.
        self._seen: OrderedDict[tuple[object, ...], bool] = OrderedDict()

    def __call__(self, batch: Tensor) -> Outputs:
        try:
            return self._replayed(batch) or self._function(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # Outside the handler, whose traceback holds on to what the failed call had allocated.
        with self._lock:
            self._give_up(0)
            self._seen[_key(batch)] = False
        torch.cuda.empty_cache()
        return self._function(batch)

    def _replayed(self, batch: Tensor) -> Outputs | None:
        """None where there is no recording to replay."""
        key = _key(batch)
        with self._lock:
            if key not in self._recordings:
                if key not in self._seen:
                    self._seen[key] = True
                    if len(self._seen) > _SHAPES_REMEMBERED:
                        self._seen.popitem(last=False)
                    return None
                if not self._seen[key]:
                    return None
                self._give_up(_RECORDINGS - 1)
                beside = next(iter(self._recordings.values()), None)
                self._recordings[key] = self._record(self._function, batch, beside)
            self._recordings.move_to_end(key)
            return self._recordings[key].replay(batch)

    def _give_up(self, most: int) -> None:
        """All recordings but the `most` that were used last."""
        while len(self._recordings) > most:
            next(iter(self._recordings.values())).finish()
            self._recordings.popitem(last=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"_function": self._function, "_record": self._record}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._empty()


class CudaRecording:
    """A traced graph, with the tensors that it reads and writes.

    Recordings share the memory of their intermediate results: they run one after the other. `left` is where the last
    one's results had been copied out.
    """

    def __init__(self, function: Function, batch: Tensor, beside: CudaRecording | None) -> None:
        # The layout that convolutions read: the one copy of a batch puts it in order.
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
            function(self._src)  # libraries set themselves up at a stream's first use, which cannot be traced
        current.wait_stream(stream)
        pool = None if beside is None else beside._graph.pool()
        # thread_local: other threads go on allocating while this one captures.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._results = function(self._src)
        self._left.record(current)

    def replay(self, batch: Tensor) -> Outputs:
        current = torch.cuda.current_stream(batch.device)
        current.wait_event(self._left)
        self._src.copy_(batch)
        self._graph.replay()
        results = tuple(result.clone() for result in self._results)
        self._left.record(current)
        return results

    def finish(self) -> None:
        self._left.synchronize()


def _key(batch: Tensor) -> tuple[object, ...]:
    return tuple(batch.shape), batch.dtype


# Of torch on CUDA and on the CPU, and of our operators, which know no class for it.
_OUT_OF_MEMORY = ("CUDA out of memory", "DefaultCPUAllocator: can't allocate memory", "expected memory for")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether the device had too little memory: the error says so, or one that it came from (a capture that broke)."""
    while error is not None:
        said = any(words in str(error) for words in _OUT_OF_MEMORY)
        if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or said:
            return True
        error = error.__cause__ or error.__context__
    return False
