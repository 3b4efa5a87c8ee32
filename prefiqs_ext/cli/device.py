"""--device, the same for all subcommands that score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from prefiqs_ext.device import choose_device

_Command = TypeVar("_Command", bound=Callable[..., Any])


def device_option(command: _Command) -> _Command:
    """Gives the command `device`, "cpu" or "cuda"."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="cpu",
        show_default=True,
        callback=lambda _context, _option, value: choose_device() if value == "auto" else value,
        help="Where to compute; auto: on the GPU if there is one that can be used.",
    )(command)
