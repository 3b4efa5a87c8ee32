"""Scores for a long time, in all ways that a service might: `python -m tests.soak --minutes 20`.

Random batches by random numbers of threads, from several threads at once, with errors among them; scorers that are
pickled, copied and made anew; folders of photos and broken files, with and without worker processes; every device that
is there. The same image must give the same bits each time. After the warm-up, resident memory must stay within 2 %, and
no descriptor, thread or process may be left over. The exit code is 1 if any of this fails.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import multiprocessing
import os
import pickle
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import prefiqs_ext
from prefiqs_ext import PrefiqsError, ScoreOutput, Scorer, models, ops
from prefiqs_ext.exceptions import MissingWeightsError
from prefiqs_ext.files import score_files
from tests.networks import ZOO_SIZE, calibrated, network_input, pictures

IMAGES = 20  # more than a Scorer runs together
GROWTH = 0.02
WARM_UP = 0.15
"""Of the time: until every way has been gone often enough for torch and malloc to have what they keep."""

INTERVAL_S = 2.0
_M_ARENA_MAX = -8  # of glibc's malloc.h


class Subject(NamedTuple):
    """A scorer and what it gives for its images."""

    name: str
    make: Callable[[], Scorer]
    scorer: Scorer
    images: Tensor
    expected: ScoreOutput


class State(NamedTuple):
    """What a process holds at some time."""

    resident: int
    descriptors: int
    threads: int
    children: int


def use_one_arena() -> None:
    """Make malloc keep one heap for all threads.

    By default glibc gives new threads other heaps, up to eight per core, and each keeps pieces that nothing uses. They
    hide a leak of this size, and look like one.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_ARENA_MAX, 1)


def read_state() -> State:
    """Read what this process holds once Python and malloc have given back what they can."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's; what it keeps for later is no leak
        trim(0)
    status = Path("/proc/self/status").read_text()
    resident, threads = (
        int(re.findall(rf"^{name}:\s*(\d+)", status, re.MULTILINE)[0]) for name in ("VmRSS", "Threads")
    )
    return State(resident << 10, len(os.listdir("/proc/self/fd")), threads, len(multiprocessing.active_children()))


def list_devices() -> list[str]:
    """All devices that a Scorer can compute on here."""
    return ["cpu"] if ops.cuda_missing is not None or not torch.cuda.is_available() else ["cpu", "cuda"]


def make_subjects() -> list[Subject]:
    """Small networks, and SFace if its weights are there, on every device."""
    subjects = []

    def add(name: str, make: Callable[[], Scorer], images: Tensor) -> None:
        scorer = make()
        images = images.to(scorer.device)
        subjects.append(Subject(name, make, scorer, images, scorer(images)))

    for device in list_devices():
        for name in ("mobile", "residual", "norm_first"):
            network, images = calibrated(name), network_input(pictures(IMAGES, ZOO_SIZE, seed=7))
            if device == "cuda":
                network = network.cuda()
            add(f"{name} on {device}", lambda n=network, i=images, d=device: Scorer(n, example=i[:1], device=d), images)
        try:
            add(f"sface on {device}", lambda d=device: Scorer("sface", device=d), pictures(IMAGES, 112, seed=7))
        except MissingWeightsError as error:
            print(f"without SFace: {error}")
    return subjects


def assert_same(got: ScoreOutput, subject: Subject, rows: list[int]) -> None:
    """Assert that these rows have the bits that they had at first."""
    for name, values, expected in zip(ScoreOutput._fields, got, subject.expected, strict=True):
        assert torch.equal(values, expected[rows]), f"{subject.name}: other bits of {name}"


class Soak:
    """The ways to go, each a method that takes one random step.

    Args:
        folder: For files of its own.
        draw: Where every choice comes from.
    """

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self._draw = draw
        self._folder = folder
        self._subjects = make_subjects()
        self._of_photos = [subject for subject in self._subjects if subject.scorer.preset is not None]
        self._paths = self._write_files()
        self._rows = {s.name: self._score_files(s, 0) for s in self._of_photos}
        for subject in self._of_photos[:1]:
            self._score_files(subject, 2)  # the first workers start a server that stays
        for subject in self._subjects:  # which keeps buffers of its largest batch for as many calls as came at once
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(subject.scorer, [subject.images] * 12))

    def _write_files(self) -> list[Path]:
        paths = []
        for index, crop in enumerate(pictures(12, 112, seed=8).permute(0, 2, 3, 1).numpy()):
            paths.append(self._folder / f"{index}.{('png', 'jpg')[index % 2]}")
            Image.fromarray(crop).save(paths[-1])
        whole = paths[1].read_bytes()
        for name, content in (("cut.jpg", whole[:800]), ("empty.png", b""), ("text.png", b"not an image")):
            paths.append(self._folder / name)
            paths[-1].write_bytes(content)
        return [*paths, self._folder / "not there.png", self._folder]

    def _score_files(self, subject: Subject, workers: int) -> list[tuple[Any, ...]]:
        files = score_files(self._paths, subject.scorer, aligned=True, batch_size=5, workers=workers)
        return [(repr(scored.records), scored.embeddings.numpy().tobytes()) for scored in files]

    def _draw_rows(self, most: int) -> list[int]:
        return [self._draw.randrange(IMAGES) for _ in range(self._draw.randint(1, most))]

    def _choose(self) -> Subject:
        return self._draw.choice(self._subjects)

    def score(self) -> None:
        """Score a batch of any size by any number of threads."""
        subject, rows = self._choose(), self._draw_rows(self._draw.choice((1, 3, 3, 9, 9, IMAGES)))
        torch.set_num_threads(self._draw.randint(1, 4))
        assert_same(subject.scorer(subject.images[rows]), subject, rows)

    def score_from_threads(self) -> None:
        """Score by one scorer in four threads, one of which gives it what it refuses."""
        subject = self._choose()
        batches = [self._draw_rows(6) for _ in range(6)]

        def run(rows: list[int]) -> None:
            assert_same(subject.scorer(subject.images[rows]), subject, rows)
            self._assert_refused(lambda: subject.scorer(subject.images[rows].flatten(1)))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, batches))

    def copy(self) -> None:
        """Pickle, deep-copy or make a scorer anew; it gives the same bits and is dropped."""
        subject, rows = self._choose(), self._draw_rows(4)
        make = self._draw.choice(
            (lambda: pickle.loads(pickle.dumps(subject.scorer)), lambda: copy.deepcopy(subject.scorer), subject.make)
        )
        assert_same(make()(subject.images[rows]), subject, rows)

    def refuse(self) -> None:
        """Give a scorer what it refuses."""
        subject = self._choose()
        image = subject.images[:2]
        bad = (
            image[:, :1],
            image.double(),
            image[0, 0],
            image.float() * torch.nan,
            "no image",
            None,
            np.zeros((2, 3, 3, 3, 3)),
            [1, 2],
        )
        self._assert_refused(lambda: subject.scorer(self._draw.choice(bad)))

    def refuse_file(self) -> None:
        """Load a file that is no network, or cut off."""
        path = self._folder / self._draw.choice(("bad.pth", "bad.onnx", "bad.safetensors", "bad.dat"))
        path.write_bytes(self._draw.choice((b"", b"PK\x03\x04", self._draw.randbytes(999), b"\x80\x02}q\x00.")))
        self._assert_refused(lambda: models.load(str(path)))

    def score_files(self) -> None:
        """Score files, broken ones among them, seldom by worker processes."""
        if self._of_photos:
            subject = self._draw.choice(self._of_photos)
            workers = 2 if self._draw.random() < 0.1 else 0
            assert self._score_files(subject, workers) == self._rows[subject.name], "other rows of files"

    def score_photo(self) -> None:
        """Look for faces in what has none."""
        if self._of_photos:
            size = self._draw.randint(40, 400)
            prefiqs_ext.score_photo(pictures(1, size, seed=size)[0].permute(1, 2, 0).numpy().copy())

    def _assert_refused(self, call: Callable[[], object]) -> None:
        told = None
        try:
            call()
        except PrefiqsError as error:
            told = str(error)
        except RuntimeError as error:  # an operator's, where no preset says what an image is
            if not str(error).startswith("prefiqs_ext::"):
                raise
            told = str(error)
        assert told is not None, "accepted what is refused"
        assert told.isprintable(), f"more than one line: {told}"


WEIGHTS = {"score": 60, "refuse": 15, "score_from_threads": 8, "refuse_file": 8, "copy": 5, "score_files": 3}
WEIGHTS |= {"score_photo": 1}


def run(minutes: float, seed: int) -> list[str]:
    """Soak for so long. Returns what failed."""
    draw, counts, states = random.Random(seed), Counter[str](), list[tuple[float, State]]()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="prefiqs-soak-") as folder:
        soak = Soak(Path(folder), draw)
        start = shown = time.monotonic()
        while (seconds := time.monotonic() - start) < 60 * minutes:
            (way,) = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
            getattr(soak, way)()
            counts[way] += 1
            if not states or seconds - states[-1][0] > INTERVAL_S:
                states.append((seconds, read_state()))
            if time.monotonic() - shown > 60:
                shown = time.monotonic()
                print(f"{seconds / 60:5.1f} min  {sum(counts.values()):,} steps  {describe(states[-1][1])}", flush=True)
    print(f"{sum(counts.values()):,} steps: {', '.join(f'{count:,} {way}' for way, count in counts.most_common())}")
    return judge([state for seconds, state in states if seconds >= WARM_UP * 60 * minutes])


def describe(state: State) -> str:
    """Write down a state."""
    rest = f"{state.descriptors} descriptors  {state.threads} threads  {state.children} children"
    return f"{state.resident / 1e6:.1f} MB  {rest}"


def judge(states: list[State]) -> list[str]:
    """Compare the first fifth of the states after the warm-up with the last: medians of memory, the least of the rest.

    Threads that have ended may still be seen for a while, so only what never goes away counts as left over.
    """
    fifth = max(1, len(states) // 5)
    early, late = states[:fifth], states[-fifth:]
    first, last = (statistics.median(state.resident for state in part) for part in (early, late))
    most = max(state.resident for state in states)
    print(f"memory: {first / 1e6:.1f} MB, then {last / 1e6:.1f} MB ({100 * (last / first - 1):+.2f} %)", end="; ")
    print(f"at most {most / 1e6:.1f} MB in {len(states)} readings")
    failed = [] if abs(last / first - 1) <= GROWTH else [f"memory changed by more than {100 * GROWTH:.0f} %"]
    for name in ("descriptors", "threads", "children"):
        before, after = (min(getattr(state, name) for state in part) for part in (early, late))
        print(f"{name}: {before}, then {after}; at most {max(getattr(state, name) for state in states)}")
        if after > before:
            failed.append(f"{name} were left over")
    return failed


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {', '.join(list_devices())}")
    use_one_arena()
    failed = run(asked.minutes, asked.seed)
    print("\n".join(failed) or "all is well")
    return min(len(failed), 1)


if __name__ == "__main__":
    sys.exit(main())
