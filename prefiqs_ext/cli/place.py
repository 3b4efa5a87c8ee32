"""`--device auto` and `--dtype auto`: what they stand for on this machine."""

from __future__ import annotations

from prefiqs_ext.cli.messages import tell
from prefiqs_ext.utils.text import name_dtype


def choose_device(device: str) -> str:
    """Return "cpu" or "cuda" for "auto", and any other device as it is."""
    if device != "auto":
        return device
    from prefiqs_ext import device as devices

    return devices.choose_device()


def choose_dtype(dtype: str | None, device: str) -> str | None:
    """Return the type that "auto" stands for on a device, and say which it is; return any other as it is."""
    if dtype != "auto":
        return dtype
    from prefiqs_ext import device as devices

    name = name_dtype(devices.choose_dtype(device))
    tell(f"--dtype auto: computing in {name} on {device}")
    return name
