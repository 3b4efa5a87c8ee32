"""What pyarrow raises of a damaged file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefiqs_ext.exceptions import FileFormatError, PrefiqsError
from prefiqs_ext.utils.text import format_untrusted


@contextmanager
def explain_damage(what: str, *, or_memory: bool = False) -> Iterator[None]:
    """Turns pyarrow's errors into one line. Those of the operating system pass.

    Args:
        what: What the line begins with, such as "expected a Parquet file, it is damaged".
        or_memory: Whether too little memory counts as damage: a damaged size asks for very much. Otherwise it passes.

    Raises:
        FileFormatError: The file is damaged, or something else than it should be.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:  # the third is of the columns' names
        # pyarrow says by an OSError without a number, too, that a file is damaged.
        if isinstance(error, PrefiqsError) or getattr(error, "errno", None) is not None:
            raise
        if isinstance(error, MemoryError) and not or_memory:
            raise
        text = format_untrusted(error, 200) or type(error).__name__
        raise FileFormatError(f"{what} ({text})") from error
