"""What the measurements on a GPU share: where and in what dtype, the networks, and how a time is taken."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.gpu_environment import FOLDER
from benchmarks.peers import TwoModels
from benchmarks.score import load_network
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.scorer import Scorer
from tests.networks import ZOO, ZOO_SIZE, calibrated, pictures

_TIMED_SECONDS = 3.0  # of one contender
_MOST_ROUNDS, _FEWEST_ROUNDS = 30, 5
Calls = Mapping[str, Callable[[], object]]


class Bench:
    """The device, and the networks that are on it; each is converted once.

    Args:
        device: "cuda", or "cpu" for trying the code.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.dtype = torch.float16 if self.on_gpu else torch.float32
        torch.backends.cudnn.benchmark = True  # the fastest that cuDNN has, for the peers
        if self.on_gpu and not torch.cuda.is_available():
            raise SystemExit("expected a CUDA device, found none: --device cpu is for trying the code")
        self.card = torch.cuda.get_device_name() if self.on_gpu else "no GPU: for trying only"
        self._networks: dict[str, tuple[nn.Module, Preset]] = {}
        self._pairs: dict[str, TwoModels] = {}
        self._scorers: dict[str, Scorer] = {}

    def time_call(self, call: Callable[[], object], repeats: int) -> float:
        """Return the milliseconds of one call, averaged over `repeats` calls in a row."""
        if not self.on_gpu:
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            return (time.perf_counter() - start) / repeats * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / repeats

    def time_rounds(self, calls: Calls, *, seconds: float = _TIMED_SECONDS) -> dict[str, list[float]]:
        """Return the milliseconds of each contender in each round; every round begins with another contender."""
        seconds = seconds if self.on_gpu else seconds / 10
        for call in calls.values():
            for _ in range(3):  # set up, recorded, replayed
                call()
        once = {name: self.time_call(call, 1) for name, call in calls.items()}
        # A timing is some 20 ms long, so that starting it does not count.
        repeats = {name: max(1, round(20 / took)) for name, took in once.items()}
        longest = max(once[name] * repeats[name] for name in calls) / 1e3
        count = max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, int(seconds / longest)))
        times: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        for turn in range(count):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(self.time_call(calls[name], repeats[name]))
        return times

    def load_network(self, name: str) -> tuple[nn.Module, Preset]:
        """Return a network and its preset; the small ones of tests/networks.py are for trying."""
        if name not in self._networks:
            small = replace(Preset.resolve("arcface"), size=(ZOO_SIZE, ZOO_SIZE))
            self._networks[name] = (calibrated(name), small) if name in ZOO else load_network(name)
        return self._networks[name]

    def build_two_models(self, name: str) -> TwoModels:
        """Return the peer: two copies of the network on the device, channels_last."""
        if name not in self._pairs:
            model, preset = self.load_network(name)
            pair = TwoModels(copy.deepcopy(model), preset, dtype=self.dtype).eval().requires_grad_(False)
            self._pairs[name] = pair.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self._pairs[name]

    def build_scorer(self, name: str) -> Scorer:
        """Return ours on the device; kept in a file, too, for the process with the other kernel."""
        file = FOLDER / f"{name}.pt"
        if name not in self._scorers and file.exists():
            self._scorers[name] = torch.load(file, weights_only=False)  # our own file
        elif name not in self._scorers:
            model, preset = self.load_network(name)
            self._scorers[name] = Scorer(model, preset=preset, device=self.device)
            save(self._scorers[name], file)
        return self._scorers[name]

    def make_images(self, count: int, preset: Preset | None) -> Tensor:
        """Make synthetic images of a preset's size on the device."""
        assert preset is not None  # every network here has one
        return pictures(count, preset.size).to(self.device)


def save(value: object, file: Path) -> None:
    """Save a value for a later process; the file is there only when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)
