"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from prefiqs_ext.utils.text import escape_unprintable

Cell = str | int | float | None


def format_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, floats: str = ".4g") -> list[str]:
    """Format rows below their headings, numbers to the right, text to the left.

    Args:
        columns: The headings; none of them for rows without.
        rows: One cell for each column. None is an empty cell; whole numbers get commas.
        floats: The format of floats.
    """
    is_text = [any(isinstance(cell, str) for cell in column) for column in zip(*rows, strict=True)]
    return [
        line.rstrip()
        for line in tabulate(
            [[_format_cell(cell, floats) for cell in row] for row in rows],
            columns,
            tablefmt="plain",
            colalign=["left" if text else "right" for text in is_text],
            disable_numparse=True,  # a name such as 007 is no number
        ).splitlines()
    ]


def _format_cell(cell: Cell, floats: str) -> str:
    if cell is None or isinstance(cell, str):
        return escape_unprintable(cell or "")
    return f"{cell:{floats}}" if isinstance(cell, float) else f"{cell:,}"
