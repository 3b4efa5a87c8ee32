"""Keeps what a process sets for all of torch (default dtype and device, autocast) away from our numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

_lock = threading.Lock()
_inside = 0
_outside = torch.float32


@contextmanager
def torch_defaults(device: torch.device | str = "cpu") -> Iterator[None]:
    """Runs the body with torch's own defaults: float32 and no autocast. It is also a decorator.

    It is for code that converts or runs a caller's network. The default device and autocast belong to this thread. The
    default dtype belongs to the process: where it is not float32, other threads see float32 until the last thread
    inside has left. So code that runs for every batch does not use this.

    Args:
        device: The default device inside.
    """
    with (
        _float32_default(),
        torch.device(device),
        without_autocast("cpu"),
        without_autocast("cuda"),
    ):
        yield


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """Switches autocast off for a kind of device ("cpu", "cuda"). Where it is off, this costs next to nothing."""
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


@contextmanager
def _float32_default() -> Iterator[None]:
    global _inside, _outside
    with _lock:
        if not _inside:
            _outside = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.set_default_dtype(_outside)
