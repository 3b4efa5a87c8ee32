"""Checks of arguments that several functions take."""

from __future__ import annotations

import math
import os
from numbers import Integral, Real

from prefiqs_ext.exceptions import InputError, InputTypeError


def check_count(value: object, name: str, least: int = 1) -> None:
    """Checks a count, an int of any kind.

    Raises:
        InputTypeError: It is no integer.
        InputError: It is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputTypeError(f"expected {name} of {least} or more, got {value!r}")
    if int(value) < least:
        raise InputError(f"expected {name} of {least} or more, got {value}")


def check_positive(value: object, name: str) -> None:
    """Checks a finite number above 0.

    Raises:
        InputTypeError: It is no number.
        InputError: It is 0, negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputTypeError(f"expected a finite {name} above 0, got {value!r}")
    if not 0 < float(value) < math.inf:
        raise InputError(f"expected a finite {name} above 0, got {float(value):g}")


def check_fraction(value: object, name: str) -> None:
    """Checks a number in [0, 1].

    Raises:
        InputTypeError: It is no number.
        InputError: It is outside.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputTypeError(f"expected {name} in [0, 1], got {value!r}")
    if not 0 <= float(value) <= 1:
        raise InputError(f"expected {name} in [0, 1], got {float(value):g}")


def check_path(path: str | os.PathLike[str], remedy: str = "") -> str:
    """Checks that something is a path, and returns it as text.

    Args:
        path: What a caller gave.
        remedy: More for the error.

    Raises:
        InputTypeError: It is something else, such as bytes or the number of an open file.
    """
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(name, str):
        raise InputTypeError(f"expected a path, str or os.PathLike[str], got {type(path).__name__}{remedy}")
    return name
