"""Groups as rows of a table, as lines for a terminal, and as values for JSON."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefiqs_ext.evaluation.groups import GroupComparison, GroupCurve
from prefiqs_ext.utils.strict_json import JSON
from prefiqs_ext.utils.tables import Cell, format_table

COLUMNS = ("method", "fmr", "group", "images", "ratio", "discarded", "persons", "mated", "fnmr", "low", "high")
"""Of the rows, one per method, FMR, group and discard ratio."""
TOO_SMALL = "too few"
"""What tables say in place of an FNMR of too few persons or pairs."""
_PRINTED = ("images", "persons", "mated", "fnmr", "discarded", "left", "fnmr left", "low", "high")


def make_rows(groups: GroupComparison) -> list[list[Cell]]:
    """Make the rows, with the cells of COLUMNS; a cell is None if it cannot be, and TOO_SMALL if it is not known."""
    return [
        [curve.method, curve.fmr, curve.group, curve.images, round(float(curve.ratios[at]), 9), *_make_cells(curve, at)]
        for curve in groups.curves
        for at in range(len(curve.ratios))
    ]


def _make_cells(curve: GroupCurve, at: int) -> list[Cell]:
    """The cells from `discarded` on, at one ratio."""
    persons = None if curve.persons is None else int(curve.persons[at])
    fnmr: Cell = float(curve.fnmr[at]) if curve.known[at] else TOO_SMALL
    ends: list[Cell] = [None, None]
    if curve.interval is not None:
        ends = list(map(float, curve.interval[at])) if curve.known[at] else [TOO_SMALL] * 2
    return [float(curve.discarded[at]), persons, int(curve.mated[at]), fnmr, *ends]


def format_groups(groups: GroupComparison, limit: float) -> list[str]:
    """Format what a discard ratio does to each group, for a terminal.

    Only the FMRs that can be measured are shown, or the highest if none can.

    Args:
        groups: What was measured.
        limit: The discard ratio, or the next lower one that was measured.
    """
    curves = groups.curves
    at = int(np.searchsorted(curves[0].ratios, limit + 1e-9)) - 1
    fmrs = sorted({curve.fmr for curve in curves if curve.known.any()} or {max(curve.fmr for curve in curves)})
    rows: list[Sequence[Cell]] = []
    for curve in curves:
        if curve.fmr in fmrs:
            _, persons, mated, fnmr, *_ = _make_cells(curve, 0)
            discarded, _, left, fnmr_left, low, high = _make_cells(curve, at)
            cells = [curve.images, persons, mated, fnmr, discarded, left, fnmr_left, low, high]
            rows.append([curve.method, curve.fmr, curve.group, *cells])
    return [
        f"by {groups.column}, with {curves[0].ratios[at]:g} of the pairs discarded",
        *format_table(("method", "fmr", "group", *_PRINTED), rows),
    ]


def describe_groups(groups: GroupComparison) -> dict[str, JSON]:
    """Describe groups as a value for JSON: each curve with lists over the discard ratios."""
    curves: list[JSON] = []
    for curve in groups.curves:
        points = zip(*(_make_cells(curve, at) for at in range(len(curve.ratios))), strict=True)
        own: dict[str, JSON] = {"method": curve.method, "fmr": curve.fmr, "group": curve.group, "images": curve.images}
        own["ratios"] = curve.ratios.tolist()
        curves.append(own | {name: list(values) for name, values in zip(COLUMNS[5:], points, strict=True)})
    return {"column": groups.column, "curves": curves}
