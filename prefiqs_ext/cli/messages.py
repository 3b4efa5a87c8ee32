"""What a command says beside its results."""

from __future__ import annotations

import sys

from tqdm import tqdm

from ..whole import printable


def tell(line: str) -> None:
    """One line to standard error, above a bar of progress."""
    tqdm.write(f"prefiqs: {printable(line)}", file=sys.stderr)
