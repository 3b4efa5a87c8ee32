"""JSON files read strictly: bounded, no name twice, nothing missing, nothing more."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeAlias, TypeVar

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.regular_file import open_regular
from prefiqs_ext.utils.text import describe_error, escape_unprintable, format_path

JSON: TypeAlias = "str | int | float | bool | list[JSON] | dict[str, JSON] | None"
"""A value that a JSON file can hold."""

_T = TypeVar("_T")
_MAX_BYTES = 1 << 23  # settings with the constants of the largest networks have a few MiB


def read_strict_json(
    path: str | os.PathLike[str], what: str, make: Callable[[Any], _T], *, most: int = _MAX_BYTES
) -> _T:
    """Reads a JSON file and turns it into an object.

    Args:
        path: The file. Its numbers must be finite, and no object may have a name twice.
        what: What the file should hold, for errors: "a Scorer's settings".
        make: Turns the JSON value into the object. ValueError and TypeError mean that the value is not acceptable.
        most: The most bytes that the file may have.

    Returns:
        What `make` gives.

    Raises:
        MissingFileError: There is no such file.
        FileAccessError: The file cannot be read.
        FileFormatError: The file holds something else; the error names the file and `what`.
    """
    name = format_path(os.fspath(path))
    remedy = f"name a file with {what}"
    with open_regular(path, remedy, if_denied=remedy) as file, explain_read_errors(name):
        data = file.read(most + 1)
    try:
        if len(data) > most:
            raise FileFormatError(f"expected at most {most} bytes")
        return make(json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = escape_unprintable(describe_error(error))[:400]
        raise FileFormatError(f"expected {what} in {name}: {reason}") from error


def build_dataclass(kind: type[Any], values: Any, what: str = "") -> Any:
    """Builds a dataclass from a JSON object that has exactly its fields.

    Args:
        kind: The dataclass.
        values: The JSON object. Lists become tuples.
        what: What errors call it: "a calibration". Empty: the name of the class.

    Returns:
        An instance, or None if `values` is None (JSON's null).

    Raises:
        FileFormatError: A field is missing, or a name is no field.
    """
    if values is None:
        return None
    named = check_names(values, tuple(field.name for field in fields(kind)), what or kind.__name__.lower())
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in named.items()})


def check_names(values: Any, names: tuple[str, ...], what: str) -> dict[str, Any]:
    """Checks that a JSON value is an object with these names and no others, and returns it as a new dict.

    Raises:
        FileFormatError: It is something else, or its names differ.
    """
    if not isinstance(values, Mapping) or set(values) != set(names):
        got = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        raise FileFormatError(f"{what} with {', '.join(names)}, got {got}")
    return dict(values)


def check_version(version: JSON, expected: int) -> None:
    """Checks the version number of a file.

    Raises:
        FileFormatError: It is another one.
    """
    if type(version) is not int or version != expected:
        raise FileFormatError(f"expected version {expected}, got {version!r}")


def _refuse_duplicates(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    if len(dict(pairs)) != len(pairs):
        raise FileFormatError("a name stands twice in an object")
    return dict(pairs)


def _refuse_constant(constant: str) -> None:
    raise FileFormatError(f"got {constant}")
