"""Writes comparisons as tables, as pictures of the curves, and as one JSON file with everything."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prefiqs_ext.evaluation import group_results
from prefiqs_ext.evaluation.comparison import Comparison, Protocol
from prefiqs_ext.evaluation.datasets.paper_benchmarks import AVERAGE_TARGET, BENCHMARKS, LEFT_OUT
from prefiqs_ext.evaluation.edc import TOO_FEW, Curve
from prefiqs_ext.evaluation.groups import GroupComparison
from prefiqs_ext.utils.atomic_write import write_folder
from prefiqs_ext.utils.optional_packages import require_packages
from prefiqs_ext.utils.strict_json import JSON
from prefiqs_ext.utils.tables import Cell, format_table
from prefiqs_ext.utils.text import format_csv

COLUMNS = ("data", "verifier", "method", "mode", "fmr", "fnmr", "pauc", "auc", "useless", "low", "high", "published")
_DIFFERENCES = ("data", "verifier", "fmr", "method", "other", "difference", "low", "high")
_GROUPS = ("data", "verifier", *group_results.COLUMNS)
_FORMS = ("png", "svg")


class Result(NamedTuple):
    """What one set of images gave, compared by one network.

    Attributes:
        data: The name of the set.
        verifier: The name of the network that compares the faces.
        images: How many images the set has.
        comparison: The curves and draws.
        published: The paper's pAUC of PreFIQs with its network, in mode "crfiqa"; None if there is none.
        groups: What the curves mean for groups of images; None if there are no groups.
    """

    data: str
    verifier: str
    images: int
    comparison: Comparison
    published: float | None = None
    groups: GroupComparison | None = None

    @property
    def title(self) -> str:
        """One line that says what was compared."""
        pairs = next(iter(self.comparison.curves.values()))[0]
        return (
            f"{self.data}: {self.images} images, {pairs.mated} mated and {pairs.non_mated} non-mated pairs, "
            f"compared by {self.verifier}"
        )

    def make_rows(self, protocol: Protocol) -> list[list[Cell]]:
        """Make one row per method and FMR, with the cells of COLUMNS.

        A cell is None if it was not computed or cannot be, and TOO_FEW if it would follow from an FMR that cannot be
        measured.
        """
        return [
            self._make_row(name, curve, protocol)
            for name, of_method in self.comparison.curves.items()
            for curve in of_method
        ]

    def _make_row(self, name: str, curve: Curve, protocol: Protocol) -> list[Cell]:
        row: list[Cell] = [self.data, self.verifier, name, curve.mode, curve.fmr]
        if curve.measurable:
            fnmr, draws = float(curve.fnmr[0]), self.comparison.draws.get(curve.fmr)
            useless, _ = _compute_areas(curve._replace(fnmr=np.full_like(curve.fnmr, fnmr)), protocol)
            row += [
                fnmr,
                *_compute_areas(curve, protocol),
                useless,
                *((None, None) if draws is None else draws.interval(name)),
            ]
        else:
            row += [TOO_FEW] * 4 + [TOO_FEW if protocol.intervals else None] * 2
        return [*row, self.published if name == "prefiqs" and curve.mode == "crfiqa" else None]

    @property
    def hint(self) -> list[str]:
        """What to do if pairs are too few, or if none fails: one line or none."""
        curves = next(iter(self.comparison.curves.values()))
        few = [curve.fmr for curve in curves if not curve.measurable]
        zero = [curve.fmr for curve in curves if curve.measurable and curve.fnmr[0] == 0]
        remedies = []
        if few:
            remedies.append(f"more images, for {curves[0].non_mated} non-mated pairs cannot show FMR {_join_fmrs(few)}")
        if zero:
            remedies.append(f"a harder set (prefiqs degrade), for no mated pair fails at FMR {_join_fmrs(zero)}")
        return [f"Use {'; and '.join(remedies)}."] if remedies else []

    def make_differences(self, protocol: Protocol) -> list[list[Cell]]:
        """Make one row per FMR and pair of methods: the difference of their pAUC, and its interval over the draws."""
        rows: list[list[Cell]] = []
        for fmr, draws in self.comparison.draws.items():
            pauc = {
                name: curve.area(protocol.limit)
                for name, of_method in self.comparison.curves.items()
                for curve in of_method
                if curve.fmr == fmr
            }
            for one, other in combinations(pauc, 2):
                difference = pauc[one] - pauc[other]
                rows.append([self.data, self.verifier, fmr, one, other, difference, *draws.interval(one, other)])
        return rows


def _compute_areas(curve: Curve, protocol: Protocol) -> list[float | None]:
    """PAUC and AUC; None in the normalised mode if no pair fails, for then there is nothing to divide by."""
    if curve.mode == "normalised" and curve.fnmr[0] == 0:
        return [None, None]
    return [curve.area(protocol.limit), curve.area(protocol.max_discard)]


class Table(NamedTuple):
    """Rows below their headings.

    Attributes:
        columns: The headings.
        rows: One cell for each column.
    """

    columns: tuple[str, ...]
    rows: list[list[Cell]]


def make_tables(results: Sequence[Result], protocol: Protocol) -> dict[str, Table]:
    """Make the tables of all results by their names: edc, differences, and groups if there are groups."""
    tables = {
        "edc": Table(COLUMNS, [row for result in results for row in result.make_rows(protocol)]),
        "differences": Table(_DIFFERENCES, [row for result in results for row in result.make_differences(protocol)]),
    }
    of_groups = [
        [result.data, result.verifier, *row]
        for result in results
        if result.groups is not None
        for row in group_results.make_rows(result.groups)
    ]
    return tables | ({"groups": Table(_GROUPS, of_groups)} if of_groups else {})


def write_results(output: Path, results: Sequence[Result], protocol: Protocol, facts: Mapping[str, object]) -> None:
    """Write each table as CSV, edc.json, and each result's curves as edc.png and edc.svg.

    If there are groups, their pictures are groups.png and groups.svg. If there are several results, the pictures are
    called edc-DATA-VERIFIER and groups-DATA-VERIFIER.

    Args:
        output: The folder.
        results: What goes into it.
        protocol: How they were measured.
        facts: Go into edc.json beside the results; what JSON does not know becomes a string.

    Raises:
        MissingPackageError: matplotlib, which draws the curves, is not installed.
        FileAccessError: The folder cannot be written.
    """
    require_packages("analysis", "matplotlib")
    from prefiqs_ext.evaluation.plot import plot_edc, plot_groups

    contents = {f"{name}.csv": format_csv(*table) for name, table in make_tables(results, protocol).items()}
    description = {**facts, "results": [_describe_result(result, protocol) for result in results]}
    contents["edc.json"] = json.dumps(description, indent=1, default=str).encode()
    for result in results:
        of = "" if len(results) == 1 else f"-{result.data}-{result.verifier}"
        for form in _FORMS:
            picture = io.BytesIO()
            plot_edc(result.comparison.curves, result.title, picture, form)
            contents[f"edc{of}.{form}"] = picture.getvalue()
            if result.groups is not None:
                picture = io.BytesIO()
                plot_groups(result.groups, result.title, picture, form)
                contents[f"groups{of}.{form}"] = picture.getvalue()
    write_folder(output, contents)


def _describe_result(result: Result, protocol: Protocol) -> dict[str, JSON]:
    groups = {} if result.groups is None else {"groups": group_results.describe_groups(result.groups)}
    return {
        "data": result.data,
        "verifier": result.verifier,
        "images": result.images,
        "curves": {name: list(map(_describe_curve, curves)) for name, curves in result.comparison.curves.items()},
        "differences": [dict(zip(_DIFFERENCES[2:], row[2:], strict=True)) for row in result.make_differences(protocol)],
        **groups,
    }


def _describe_curve(curve: Curve) -> JSON:
    values = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in curve._asdict().items()}
    return values if curve.measurable else values | {"fnmr": TOO_FEW, "thresholds": TOO_FEW}


def format_rows(result: Result, protocol: Protocol) -> list[str]:
    """Format a result for a terminal: a title, a table without its empty columns, a hint, and the groups."""
    return [
        result.title,
        *_format_used_columns(COLUMNS[2:], [row[2:] for row in result.make_rows(protocol)]),
        *result.hint,
        *([] if result.groups is None else group_results.format_groups(result.groups, protocol.limit)),
    ]


def format_averages(results: Sequence[Result], protocol: Protocol) -> list[str]:
    """Format the mean pAUC over the benchmarks without XQLFW, as in the paper, by verifier, method and FMR.

    The mean is over the benchmarks that have a pAUC. If none has, the cell is TOO_FEW or empty.
    """
    rows: dict[tuple[Cell, ...], list[list[Cell]]] = {}
    for row in (row for result in results if result.data != LEFT_OUT for row in result.make_rows(protocol)):
        rows.setdefault((row[1], row[2], row[4]), []).append(row)
    if not rows:
        return []
    table: list[list[Cell]] = []
    for key, own in rows.items():
        values = [row[6] for row in own if isinstance(row[6], float)]
        as_published = len(values) == len(BENCHMARKS) - 1 and any(row[-1] is not None for row in own)
        mean = float(np.mean(values)) if values else TOO_FEW if any(row[6] == TOO_FEW for row in own) else None
        table.append([*key, len(values), mean, AVERAGE_TARGET if as_published else None])
    return [
        f"mean without {LEFT_OUT}",
        *_format_used_columns(("verifier", "method", "fmr", "sets", "pauc", "published"), table),
    ]


def _format_used_columns(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    used = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    return format_table([columns[i] for i in used], [[row[i] for i in used] for row in rows])


def _join_fmrs(fmrs: Sequence[float]) -> str:
    return ", ".join(f"{fmr:g}" for fmr in fmrs)
