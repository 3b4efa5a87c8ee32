"""How functions of the library say what a person should know beside the result, for example which files are ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Tell: TypeAlias = Callable[[str], None]
"""Takes one line for a person to read."""


def tell_nobody(line: str) -> None:
    """Takes the line and does nothing."""
