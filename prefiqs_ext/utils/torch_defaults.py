"""What a process may set for all of torch (default dtype and device, autocast), and how our numbers are
kept from depending on it.
"""

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
    """Torch as it is when nothing was set, but for the default device; for what converts or runs a caller's network.
    Also a decorator.

    Default device and autocast are this thread's. The default dtype is the process's: where it is not float32, other
    threads see float32 until the last of those inside has left. So what is called for every batch does not use this.
    """
    with (
        _float32(),
        torch.device(device),
        without_autocast("cpu"),
        without_autocast("cuda"),
    ):
        yield


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """Costs next to nothing where autocast is off."""
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


@contextmanager
def _float32() -> Iterator[None]:
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
