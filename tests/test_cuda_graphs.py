"""CudaGraphs' bookkeeping, with recordings that only count: what is recorded when, what goes when memory is short."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from prefiqs_ext.dual import CudaGraphs


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
        return _Recording(self, function, len(batch), beside)

    def taken(self) -> list[tuple[str, int]]:
        events, self.events = self.events, []
        return events


class _Recording:
    def __init__(self, recorder: Recorder, function: Any, rows: int, beside: Any) -> None:
        self.recorder, self.function, self.rows, self.beside = recorder, function, rows, beside

    def replay(self, batch: Tensor) -> tuple[Tensor, ...]:
        self.recorder.events.append(("replay", self.rows))
        assert len(batch) == self.rows
        return self.function(batch)  # type: ignore[no-any-return]

    def finish(self) -> None:
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
