"""Worker processes that read files ahead of their consumer: results come in order, and a dead worker holds nothing up.

There is one thread for each process, which sends it some images, or their paths, through a pipe and waits for the
answer. The pipe ends when the process does, whatever ended it. Nothing travels in shared memory: containers have little
of it, and a write beyond its end kills the process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Generic, TypeVar, cast

import cv2
import torch

from prefiqs_ext.exceptions import WorkerError

_Image = TypeVar("_Image")
_T = TypeVar("_T")

_CHUNK = 4  # images a worker takes at a time: few, so that a handful of photos keeps all workers busy
_DESCRIPTORS = 12  # a process takes seven to start and keeps two
_REAP_S = 5.0  # how long to wait for the news of how a process ended, which only goes into the error
_REMEDY = (
    "out of memory? Take fewer workers (--workers) or a smaller batch size (--batch-size), or allow more memory; "
    "`prefiqs score` keeps what is done and goes on with --resume"
)
_GUARD = (
    'guard the script\'s main code with `if __name__ == "__main__":`. If it has that, memory may be short: '
    "take fewer workers (--workers)"
)


def read_ahead(
    images: Iterable[_Image],
    read: Callable[[_Image], _T],
    report_death: Callable[[_Image], _T],
    *,
    workers: int,
    ahead: int,
) -> Generator[_T, None, None]:
    """Reads images in worker processes and gives the results in their order.

    Args:
        images: Paths, or whatever `read` takes and can be pickled; taken as they are needed.
        read: Reads one image. It, and what it gives, can be pickled.
        report_death: Gives the result for an image on which a process dies, and then another one that reads only this
            image.
        workers: How many processes there are, 1 or more.
        ahead: About how many images are begun before the first of them is wanted.

    Yields:
        One result per image.

    Raises:
        WorkerError: Processes do not start, or die although no image is to blame.
        RuntimeError: `read` raised, which is a fault of the package; the cause has the trace.
    """
    processes: list[_Worker[_Image, _T]] = []
    idle: SimpleQueue[_Worker[_Image, _T]] = SimpleQueue()
    threads = ThreadPoolExecutor(workers)
    try:
        for _ in range(workers):
            processes.append(_Worker(read, report_death))
            idle.put(processes[-1])

        def read_chunk(chunk: list[_Image]) -> list[_T]:
            worker = idle.get()  # there is one for each thread
            try:
                return worker.read(chunk)
            finally:
                idle.put(worker)

        rest = iter(images)
        begun: deque[Future[list[_T]]] = deque()
        while chunk := list(islice(rest, _CHUNK)):
            try:
                begun.append(threads.submit(read_chunk, chunk))
            except RuntimeError as error:  # too many threads for this user
                raise WorkerError(f"cannot start a thread that waits for a process ({error}): {_REMEDY}") from error
            if len(begun) >= max(2 * workers, -(-ahead // _CHUNK)):
                yield from begun.popleft().result()
        while begun:
            yield from begun.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in processes:
            worker.end()
        threads.shutdown()


class _WorkerDied(Exception):
    """The process at the other end of the pipe died, or was ended."""


class _Worker(Generic[_Image, _T]):
    """A process that reads, and a new one each time it dies.

    It belongs to one thread at a time; only :meth:`end` may be called from another one.
    """

    def __init__(self, read: Callable[[_Image], _T], report_death: Callable[[_Image], _T]) -> None:
        self._read = read
        self._report_death = report_death
        self._ended = False
        self._starting = threading.Lock()  # no process starts unseen by `end`
        self._start()

    def _start(self) -> None:
        # Forked off a server that has no threads: a fork of this process would have the locks of torch's threads, and
        # nobody to release them.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, type(self._read).__module__])  # imported once, not by each worker
        with self._starting:
            if self._ended:
                raise _WorkerDied
            try:
                _check_descriptors()
                self._pipe, theirs = context.Pipe()
                with theirs:
                    self._process = context.Process(target=_serve, args=(self._read, theirs), daemon=True)
                    self._serves = False
                    self._process.start()
            except (OSError, EOFError) as error:
                raise WorkerError(
                    f"cannot start a process that reads files ({error or 'its server died'}): {_REMEDY}"
                ) from error

    def end(self) -> None:
        """Kills the process, and lets no other one start."""
        with self._starting:
            self._ended = True
            if self._process.pid is not None:  # it did start
                self._process.kill()

    def read(self, chunk: list[_Image]) -> list[_T]:
        """Reads some images.

        Where the process dies, each image gets a process of its own. If that dies too, the image is to blame.
        """
        try:
            return self._ask(chunk)
        except _WorkerDied:
            how = self._restart()
        results, deaths = [], 0
        for image in chunk:
            try:
                results += self._ask([image])
            except _WorkerDied:
                how = self._restart()
                results.append(self._report_death(image))
                deaths += 1
        if not deaths:
            raise WorkerError(f"a process that reads files {how}, and none of its files does that alone: {_REMEDY}")
        if deaths == len(chunk) > 1:  # so many broken files in a row are less likely
            raise WorkerError(f"a process that reads files {how}, and so did one for each of its files: {_REMEDY}")
        return results

    def _restart(self) -> str:
        """Starts a new process and says how the old one ended."""
        self._process.join(_REAP_S)
        code = self._process.exitcode
        self._pipe.close()
        self._start()
        if code is not None and code < 0:
            return f"was killed by signal {-code} ({signal.strsignal(-code)})"
        return "died" if code is None else f"ended with exit code {code}"

    def _ask(self, chunk: list[_Image]) -> list[_T]:
        if not self._serves:
            try:
                self._receive()  # that it is ready
            except _WorkerDied:
                if self._ended:
                    raise
                how = self._restart()
                raise WorkerError(f"a process that reads files {how} before it had one; {_GUARD}") from None
            self._serves = True
        with _detect_death():
            self._pipe.send(chunk)  # it waits for that, so neither end can be full
        results, failure = cast(tuple[list[_T], str], self._receive())
        if failure:
            raise RuntimeError(f"reading files failed: {failure.splitlines()[-1]}") from RuntimeError(failure)
        return results

    def _receive(self) -> object:
        # Not the pipe alone: a process that a caller's thread forked meanwhile would keep its other end open.
        if self._pipe not in wait([self._pipe, self._process.sentinel]):
            raise _WorkerDied
        with _detect_death():
            answer: object = self._pipe.recv()
            return answer


def _check_descriptors() -> None:
    """Raises an OSError where too few descriptors are free for one more process; its server would print a traceback."""
    with ExitStack() as stack:
        for _ in range(_DESCRIPTORS):
            stack.enter_context(open(os.devnull, "rb"))


@contextmanager
def _detect_death() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError) as error:  # of the pipe
        raise _WorkerDied from error


def _serve(read: Callable[[_Image], object], pipe: Connection[object, list[_Image]]) -> None:
    """Runs in the worker: answers until the pipe ends, which it does at the latest with the parent."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the main process ends the workers
    with suppress(OSError, EOFError):
        pipe.send(None)
        while True:
            chunk = pipe.recv()
            try:
                answer = [read(image) for image in chunk], ""
            except Exception:
                answer = [], traceback.format_exc()  # errors themselves may not be fit to travel
            pipe.send(answer)
