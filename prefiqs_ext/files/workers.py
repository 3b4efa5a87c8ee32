"""Processes that read files ahead of who wants the results: in order, bounded, and no wait for one that is gone.

Each process has a pipe of its own, which ends when the process does, whatever ended it. Nothing travels in shared
memory: containers have little of it, and to write beyond its end kills.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import cv2
import torch

from prefiqs_ext.exceptions import WorkerError

_T = TypeVar("_T")

_CHUNK = 4  # paths a worker takes at a time: few, so that a handful of photos keeps all workers busy
_REAP_S = 5.0  # for the news of how a process ended, which is only shown
_REMEDY = (
    "out of memory? Take fewer workers (--workers) or a smaller batch size (--batch-size), or allow more memory; "
    "`prefiqs score` keeps what is done and goes on with --resume"
)

_GUARD = 'does the script that started this lack its `if __name__ == "__main__":`, or is it'


def read_ahead(
    paths: Iterable[str], read: Callable[[str], _T], lost: Callable[[str], _T], *, workers: int, ahead: int
) -> Generator[_T, None, None]:
    """What `read` makes of each path, in order, by processes.

    Args:
        paths: taken as they are needed.
        read: it, and what it gives, can be pickled.
        lost: in the place of `read` for a path on which a process dies, also one that reads nothing else.
        workers: processes, 1 or more.
        ahead: about how many paths are begun before the first of them is wanted.

    Raises:
        OSError: processes do not start, or die although no path is to blame.
        RuntimeError: `read` raised; its cause has the trace.
    """
    hands: list[_Hand[_T]] = []
    idle: SimpleQueue[_Hand[_T]] = SimpleQueue()
    pool = ThreadPoolExecutor(workers)
    try:
        for _ in range(workers):
            hands.append(_Hand(read, lost))
            idle.put(hands[-1])

        def done(chunk: list[str]) -> list[_T]:
            hand = idle.get()  # there is one for each thread
            try:
                return hand.do(chunk)
            finally:
                idle.put(hand)

        todo = iter(paths)
        begun: deque[Future[list[_T]]] = deque()
        while chunk := list(islice(todo, _CHUNK)):
            begun.append(pool.submit(done, chunk))
            if len(begun) >= max(2 * workers, -(-ahead // _CHUNK)):
                yield from begun.popleft().result()
        while begun:
            yield from begun.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for hand in hands:
            hand.end()
        pool.shutdown()


class _Died(Exception):
    """The process at the other end of the pipe, or it was ended."""


class _Hand(Generic[_T]):
    """A process, and another one where it dies. For one thread at a time; only `end` may come from another."""

    def __init__(self, read: Callable[[str], _T], lost: Callable[[str], _T]) -> None:
        self._read = read
        self._lost = lost
        self._ended = False
        self._starting = threading.Lock()  # none starts unseen by `end`
        self._start()

    def _start(self) -> None:
        # Forked off a server that has no threads: a fork of this process would have the locks of torch's threads, and
        # nobody to release them.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, type(self._read).__module__])  # imported once, not by each worker
        with self._starting:
            if self._ended:
                raise _Died
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(self._read, theirs), daemon=True)
            self._serves = False
            try:
                self._process.start()
            except (OSError, EOFError) as error:
                raise WorkerError(
                    f"cannot start a process that reads files ({error or 'its server died'}): {_REMEDY}"
                ) from error
            finally:
                theirs.close()

    def end(self) -> None:
        with self._starting:
            self._ended = True
            if self._process.pid is not None:  # it did start
                self._process.kill()

    def do(self, chunk: list[str]) -> list[_T]:
        """What each path gives. Where the process dies, each path gets one again, by itself: if that dies too, it is
        the path's fault."""
        try:
            return self._ask(chunk)
        except _Died:
            how = self._restarted()
        results, lost = [], 0
        for path in chunk:
            try:
                results += self._ask([path])
            except _Died:
                how = self._restarted()
                results.append(self._lost(path))
                lost += 1
        if not lost:
            raise WorkerError(f"a process that reads files {how}, and none of its files does that alone: {_REMEDY}")
        if lost == len(chunk) > 1:  # so many broken files in a row are less likely
            raise WorkerError(f"a process that reads files {how}, and so did one for each of its files: {_REMEDY}")
        return results

    def _restarted(self) -> str:
        """How the process ended that was before."""
        self._process.join(_REAP_S)
        code = self._process.exitcode
        self._pipe.close()
        self._start()
        if code is not None and code < 0:
            return f"was killed by signal {-code} ({signal.strsignal(-code)})"
        return "died" if code is None else f"ended with exit code {code}"

    def _ask(self, chunk: list[str]) -> list[_T]:
        if not self._serves:
            try:
                self._answer()
            except _Died:
                if self._ended:
                    raise
                how = self._restarted()
                raise WorkerError(f"a process that reads files {how} before it had one: {_GUARD} {_REMEDY}") from None
            self._serves = True
        with _death():
            self._pipe.send(chunk)  # it waits for that, so neither end can be full
        results, failure = self._answer()
        if failure:
            raise RuntimeError(f"reading files failed: {failure.splitlines()[-1]}") from RuntimeError(failure)
        return results  # type: ignore[no-any-return]

    def _answer(self) -> Any:
        # Not the pipe alone: a process that a caller's thread forked meanwhile would keep its other end open.
        if self._pipe not in wait([self._pipe, self._process.sentinel]):
            raise _Died
        with _death():
            return self._pipe.recv()


@contextmanager
def _death() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError) as error:  # of the pipe
        raise _Died from error


def _serve(read: Callable[[str], Any], pipe: Connection) -> None:
    """What a worker does until its pipe ends, with the parent or before."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the main process ends the workers
    with suppress(OSError, EOFError):
        pipe.send(None)
        while True:
            chunk = pipe.recv()
            try:
                answer = [read(path) for path in chunk], ""
            except Exception:
                answer = [], traceback.format_exc()  # errors themselves may not be fit to travel
            pipe.send(answer)
