"""JSON files read strictly: bounded, no name twice, nothing missing, nothing more."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.utils.text import escape_unprintable, format_path

JSON: TypeAlias = "str | int | float | bool | list[JSON] | dict[str, JSON] | None"
"""A value that JSON can hold."""

_T = TypeVar("_T")
_MAX_BYTES = 1 << 20


def read_strict_json(path: str | os.PathLike[str], what: str, make: Callable[[Any], _T]) -> _T:
    """What `make` makes of the JSON in a file: 1 MiB at most, numbers finite, no name twice in an object.

    FileNotFoundError; ValueError, in one line that says `what` was expected, also for what `make` refuses.
    """
    name = format_path(os.fspath(path))
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileFormatError(f"expected {what} in {name}, cannot read it ({error.strerror})") from error
    try:
        if len(data) > _MAX_BYTES:
            raise FileFormatError(f"expected at most {_MAX_BYTES} bytes")
        return make(json.loads(data, parse_constant=_refuse, object_pairs_hook=_once))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = escape_unprintable(" ".join(str(error).split()))[:200]
        raise FileFormatError(f"expected {what} in {name}: {reason}") from error


def build_dataclass(kind: type[Any], values: Any) -> Any:
    """A dataclass from exactly its fields, lists as tuples; None from null."""
    if values is None:
        return None
    named = check_names(values, tuple(field.name for field in fields(kind)), kind.__name__.lower())
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in named.items()})


def check_names(values: Any, names: tuple[str, ...], what: str) -> dict[str, Any]:
    """A JSON object that must have these names and no others."""
    if not isinstance(values, Mapping) or set(values) != set(names):
        got = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        raise FileFormatError(f"{what} with {', '.join(names)}, got {got}")
    return dict(values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise FileFormatError("a name stands twice in an object")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise FileFormatError(f"got {constant}")
