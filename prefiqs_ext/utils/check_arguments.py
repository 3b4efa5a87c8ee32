"""Checks of arguments that several functions take."""

from __future__ import annotations

import math
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
