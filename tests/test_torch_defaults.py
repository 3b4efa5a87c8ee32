"""What a process has set for all of torch changes no number, breaks no call, and is as it was afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from networks import calibrated, pictures
from torch import Tensor, nn

from prefiqs_ext import Preset, Scorer, dualize, methods, reference, sensitivity
from prefiqs_ext.models import load
from prefiqs_ext.utils.torch_defaults import torch_defaults

PRESET = Preset("small", (32, 32), "bgr", (127.5, 120, 110), (127.5,) * 3)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
        assert torch.get_default_device() == torch.device(name)
    finally:
        torch.set_default_device(None)


STATES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "float64": lambda: _default_dtype(torch.float64),
    "float16": lambda: _default_dtype(torch.float16),
    "meta": lambda: _default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),  # type: ignore[dict-item, return-value]
    "inference mode": torch.inference_mode,  # type: ignore[dict-item]
}


class _Forward(nn.Module):
    """Reads torch's defaults in its forward: factories, floats made of levels, a matrix product. torch.export, which
    `branches` needs, keeps the factories as operations; torch.fx runs them once."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.branches = branches
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.head = nn.Linear(16, 16)
        self.eval()

    def forward(self, levels: Tensor) -> Tensor:
        if self.branches and levels.shape[1] != 3:
            raise ValueError("expected three channels")
        gamma = torch.where(levels > 250, 0.3, 0.1) + levels.sqrt() + levels**0.5 + torch.exp(-levels.int())
        x = (self.conv(levels / 255 + gamma) - 0.5).mean((2, 3))
        x = torch.cat([x * torch.linspace(0, 1, 8), x @ torch.full((8, 8), 0.3)], dim=1)
        return self.head(x) + torch.eye(16)[3:4]


@pytest.fixture(scope="module", params=["residual", "fx", "export"])
def made_outside(request: pytest.FixtureRequest) -> tuple[nn.Module, Scorer]:
    torch.manual_seed(0)
    network = calibrated("residual") if request.param == "residual" else _Forward(request.param == "export")
    preset = PRESET if request.param == "residual" else None
    return network, Scorer(network, preset=preset, example=pictures(1, 32))


@pytest.mark.parametrize("state", STATES)
def test_a_scorers_numbers(made_outside: tuple[nn.Module, Scorer], state: str) -> None:
    network, outside = made_outside
    images = pictures(3, 32)
    expected = outside(images)
    with STATES[state]():
        inside = Scorer(network, preset=outside.preset, example=images)
        outputs = [inside(images), outside(images), outside.forward(images)]
        assert outside(images[:0]).quality.dtype == torch.float32
    outputs.append(inside(images))
    for output in outputs:
        assert all(tensor.dtype == torch.float32 for tensor in output)
        assert all(map(torch.equal, output, expected))


@pytest.mark.parametrize("state", STATES)
def test_what_else_runs_a_network(state: str) -> None:
    network, images = calibrated("residual"), pictures(2, 32)
    floats = images / 255

    def everything() -> list[Tensor]:
        made = [methods.create(name, network, PRESET) for name in ("prefiqs", "sharpness", "brightness", "random")]
        made.append(methods.GraFIQs(network, PRESET, stages=("stem", "blocks.1", "blocks.3", "conv2")))
        scored = [method.score(images) for method in made]
        graph = dualize(network, example=floats)
        scored += [sensitivity(images, network, preset=PRESET), *reference.score(network, images, preset=PRESET)]
        with torch.no_grad():
            return [*scored, graph(floats)]

    expected = everything()
    with STATES[state]():
        got = everything()
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("state", ["float64", "meta"])
@pytest.mark.parametrize("name", ["sface", "facexzoo", "dlib"])
def test_loading_a_network(name: str, state: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{name}_file")
    expected = load(name)[0].state_dict()
    with STATES[state]():
        got = load(name)[0].state_dict()
    for key, tensor in got.items():
        assert tensor.dtype == expected[key].dtype
        assert torch.equal(tensor, expected[key])


def test_the_default_dtype_comes_back_when_the_last_thread_has_left() -> None:
    barrier = threading.Barrier(2)
    seen = []

    def inside(first: bool) -> None:
        with torch_defaults():
            barrier.wait()  # both are inside
            seen.append(torch.get_default_dtype())
            if first:
                barrier.wait()
        if not first:
            seen.append(torch.get_default_dtype())
            barrier.wait()

    with _default_dtype(torch.float64):
        threads = [threading.Thread(target=inside, args=(first,)) for first in (True, False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [torch.float32] * 3


class _Parent(nn.Module):
    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, x: Tensor) -> Tensor:
        return self.scorer(x).distance


def test_a_parent_in_train_mode_exported_and_compiled_under_autocast() -> None:
    images = pictures(3, 32)
    scorer = Scorer(calibrated("residual"), preset=PRESET)
    expected, parent = scorer(images).distance, _Parent(scorer).train()
    with STATES["autocast"]():
        assert torch.equal(torch.export.export(parent, (images,)).module()(images), expected)
        assert torch.equal(torch.compile(parent, backend="aot_eager")(images), expected)
    torch.compiler.reset()
