"""What a command says beside its results."""

from __future__ import annotations

import sys

from tqdm import tqdm

from prefiqs_ext.utils.text import escape_unprintable


def tell(line: str) -> None:
    """One line to standard error, above a bar of progress."""
    tqdm.write(f"prefiqs: {escape_unprintable(line)}", file=sys.stderr)
