"""CudaGraphs without a GPU: the bookkeeping, with recordings that only count, and what one asks of torch.cuda."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefiqs_ext.dual import CudaGraphs, is_out_of_memory
from prefiqs_ext.dual.runtime.cuda_graphs import Function


def negative(batch: Tensor) -> tuple[Tensor, ...]:
    return (-batch,)


class Recorder:
    """Makes recordings, and notes what happens to them."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.fail: type[Exception] | None = None

    def __call__(self, function: Any, batch: Tensor, beside: Any) -> Any:
        self.events.append(("record", len(batch)))
        if self.fail is torch.cuda.OutOfMemoryError:
            try:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            except RuntimeError:
                raise RuntimeError("capture was invalidated")  # noqa: B904, as torch.cuda.graph's exit does
        if self.fail is not None:
            raise self.fail("broken")
        return _Recording(self, function, len(batch))

    def taken(self) -> list[tuple[str, int]]:
        events, self.events = self.events, []
        return events


class _Recording:
    def __init__(self, recorder: Recorder, function: Any, rows: int) -> None:
        self.recorder, self.function, self.rows = recorder, function, rows

    def replay(self, batch: Tensor) -> tuple[Tensor, ...]:
        self.recorder.events.append(("replay", self.rows))
        assert len(batch) == self.rows
        return self.function(batch)  # type: ignore[no-any-return]

    def __del__(self) -> None:
        self.recorder.events.append(("finish", self.rows))


def test_a_shape_is_recorded_when_it_comes_again() -> None:
    recorder = Recorder()
    graphs = CudaGraphs(negative, recorder)
    for rows in (3, 2, 3, 3):
        assert torch.equal(graphs(torch.ones(rows))[0], -torch.ones(rows))
    assert recorder.taken() == [("record", 3), ("replay", 3), ("replay", 3)]
    graphs(torch.ones(2, dtype=torch.uint8))  # another type is another shape, another layout is not
    graphs(torch.ones(2, 2))
    graphs(torch.ones(2, 2).t())
    assert recorder.taken() == [("record", 2), ("replay", 2)]


def test_the_recordings_used_last_are_kept() -> None:
    recorder = Recorder()
    graphs = CudaGraphs(negative, recorder)
    for rows in (1, 1, 2, 2, 3, 3, 4, 4, 1):
        graphs(torch.ones(rows))
    recorder.taken()
    for rows in (5, 5, 1, 2):
        graphs(torch.ones(rows))
    # The fifth takes the place of the second, as the first was used after it; that one is recorded anew.
    expected = [("finish", 2), ("record", 5), ("replay", 5), ("replay", 1), ("finish", 3), ("record", 2), ("replay", 2)]
    assert recorder.taken() == expected


def test_thousands_of_shapes_are_not_remembered() -> None:
    graphs = CudaGraphs(negative, Recorder())
    for rows in range(1000):
        graphs(torch.ones(rows))
    assert len(graphs._seen) <= 64
    assert not graphs._recordings


def test_short_of_memory_all_recordings_go_and_the_call_is_made_again() -> None:
    recorder = Recorder()
    graphs = CudaGraphs(negative, recorder)
    for rows in (1, 1, 2):
        graphs(torch.ones(rows))
    recorder.taken()
    recorder.fail = torch.cuda.OutOfMemoryError
    assert torch.equal(graphs(torch.ones(2))[0], -torch.ones(2))
    assert recorder.taken() == [("record", 2), ("finish", 1)]
    for _ in range(3):  # what did not fit is not tried at every call
        graphs(torch.ones(2))
    assert recorder.taken() == []


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, RuntimeError])
def test_what_does_not_fit_by_itself_raises(error: type[Exception]) -> None:
    calls = []

    def starved(batch: Tensor) -> tuple[Tensor, ...]:
        calls.append(batch)
        raise error("expected memory for 9 numbers, got none (CUDA out of memory)")

    with pytest.raises(error):
        CudaGraphs(starved, Recorder())(torch.ones(1))
    assert len(calls) == 2


def test_other_errors_pass() -> None:
    recorder = Recorder()
    graphs = CudaGraphs(negative, recorder)
    graphs(torch.ones(1))
    recorder.fail = RuntimeError
    with pytest.raises(RuntimeError, match="broken"):
        graphs(torch.ones(1))


def test_a_pickle_carries_no_recordings() -> None:
    graphs = CudaGraphs(negative, Recorder())
    for _ in range(2):
        graphs(torch.ones(1))
    copy = CudaGraphs.__new__(CudaGraphs)
    copy.__setstate__({**graphs.__getstate__(), "_record": None})
    assert not copy._recordings
    assert torch.equal(pickle.loads(pickle.dumps(copy))(torch.ones(1))[0], -torch.ones(1))


def test_threads_replay_one_after_the_other() -> None:
    recorder = Recorder()
    graphs = CudaGraphs(negative, recorder)
    sizes = [1, 2, 3, 4, 5, 6] * 20
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda rows: graphs(torch.full((rows,), float(rows))), sizes))
    assert all(torch.equal(result[0], torch.full((n,), -float(n))) for n, result in zip(sizes, results, strict=True))
    kinds = [kind for kind, _ in recorder.events]
    assert kinds.count("record") - kinds.count("finish") == len(graphs._recordings) <= 4


class Crowd:
    """Notes whether two threads are ever inside together; whoever enters waits a little for the other."""

    def __init__(self) -> None:
        self.meeting, self.met = threading.Barrier(2), False

    def enter(self) -> None:
        try:
            self.meeting.wait(0.1)
            self.met = True
        except threading.BrokenBarrierError:
            self.meeting.reset()


def starved(batch: Tensor) -> tuple[Tensor, ...]:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(("function", "calls"), [(negative, 2), (starved, 1)], ids=["record", "empty the cache"])
def test_nothing_goes_on_beside_a_recording(function: Function, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd()
    monkeypatch.setattr(torch.cuda, "empty_cache", crowd.enter)

    def record(function: Function, *_: Any) -> Any:
        crowd.enter()
        return SimpleNamespace(replay=function)

    def run(function: Function, calls: int) -> None:
        graphs = CudaGraphs(function, record)
        for _ in range(calls):
            graphs(torch.ones(1))

    with ThreadPoolExecutor(2) as pool:
        recorded, beside = pool.submit(run, negative, 2), pool.submit(run, function, calls)
    assert recorded.exception() is None
    assert is_out_of_memory(beside.exception()) == (function is starved)
    assert not crowd.met


# --- recordings of a torch.cuda that only notes what is asked of it ---------------------------------------------------


class Stream:
    """Knows for which streams and events it waits."""

    def __init__(self, device: object = None) -> None:
        self.waits: list[object] = []
        self.wait_stream = self.wait_event = self.waits.append


class Cuda:
    """Stands in for torch.cuda: it computes at once, on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = Stream()
        self.captures: list[tuple[object, Stream]] = []  # pool and stream of each
        self.capturing = False
        self.log: list[str] = []
        cuda = self

        class Event:
            def record(self, stream: Stream) -> None: ...
            def synchronize(self) -> None:
                cuda.log.append("waited while capturing" if cuda.capturing else "waited")

        class Graph:
            pool: Any

            def replay(self) -> None: ...

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.current)
        for name in ("stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, cuda_graph: Any, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        before, self.current = self.current, stream
        pool = pool or object()
        cuda_graph.pool = lambda: pool
        self.captures.append((pool, stream))
        self.capturing = True
        try:
            yield
        except RuntimeError:
            raise RuntimeError("capture was invalidated")  # noqa: B904, as torch.cuda.graph's exit does
        finally:
            self.capturing = False
        self.current = before  # not after a failure: neither does torch


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def test_all_shapes_are_recorded_on_one_stream_into_one_pool(cuda: Cuda) -> None:
    graphs = CudaGraphs(negative)
    for rows in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 1):
        assert torch.equal(graphs(torch.ones(rows))[0], -torch.ones(rows))
    assert len(cuda.captures) == 6
    assert len(set(cuda.captures)) == 1
    assert cuda.current not in dict(cuda.captures).values()


def test_the_input_is_freed_when_the_last_replay_is_over(cuda: Cuda) -> None:
    def watch(batch: Tensor) -> tuple[Tensor, ...]:
        if cuda.capturing:
            weakref.finalize(batch, cuda.log.append, "freed")
        return negative(batch)

    graphs = CudaGraphs(watch)
    for _ in range(3):
        graphs(torch.ones(1))
    assert cuda.log == []
    del graphs
    assert cuda.log == ["waited", "freed"]


def test_no_garbage_is_collected_while_recording(cuda: Cuda) -> None:
    def litter(batch: Tensor) -> tuple[Tensor, ...]:
        kept = [[batch] for _ in range(3 * gc.get_threshold()[0])] if cuda.capturing else []
        return (-batch + len(kept),)

    graphs = CudaGraphs(litter)
    graphs(torch.ones(1))
    gc.disable()  # so that what is dropped is young, and the first to be looked at
    dropped = CudaGraphs(negative)
    for _ in range(2):
        dropped(torch.ones(1))
    dropped.itself = dropped  # type: ignore[attr-defined]
    del dropped
    gc.enable()
    graphs(torch.ones(1))
    assert gc.isenabled()
    gc.collect()
    assert cuda.log == ["waited"]


def test_a_failed_recording_leaves_the_stream_as_it_was(cuda: Cuda) -> None:
    caller = cuda.current

    def fail(batch: Tensor) -> tuple[Tensor, ...]:
        if cuda.capturing:
            raise RuntimeError("broken")
        return negative(batch)

    graphs = CudaGraphs(fail)
    graphs(torch.ones(1))
    with pytest.raises(RuntimeError, match="invalidated"):
        graphs(torch.ones(1))
    assert cuda.current is caller
    assert caller.waits[-1] is cuda.captures[0][1]  # what it left running reads the input
