"""Which errors are wrong usage, with exit code 2: all that is refused before a command begins its work.

Whatever fails later, such as an image that cannot be read or a full disk, has exit code 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from prefiqs_ext.exceptions import PrefiqsError
from prefiqs_ext.utils.text import describe_error, escape_unprintable


@contextmanager
def refuse_usage(option: str = "", kind: type[PrefiqsError] = PrefiqsError) -> Iterator[None]:
    """Turn an error of the package into one of wrong usage. It is for what is checked before the work begins.

    Args:
        option: What the line begins with, such as "--model"; empty for nothing.
        kind: The errors that are wrong usage.

    Raises:
        click.UsageError: with the line of the error.
    """
    try:
        yield
    except kind as error:
        line = escape_unprintable(describe_error(error))
        raise click.UsageError(f"{option}: {line}" if option else line) from error
