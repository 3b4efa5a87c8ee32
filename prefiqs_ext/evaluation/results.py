"""Comparisons -> a table, curves as pictures, one JSON with everything."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prefiqs_ext.evaluation.compare import Comparison, Protocol
from prefiqs_ext.evaluation.datasets.benchmarks import AVERAGE_TARGET, BENCHMARKS, LEFT_OUT
from prefiqs_ext.evaluation.edc import TOO_FEW, Curve
from prefiqs_ext.evaluation.plot import plot_edc
from prefiqs_ext.utils.atomic_write import write_folder
from prefiqs_ext.utils.text import format_csv

COLUMNS = ("data", "verifier", "method", "mode", "fmr", "fnmr", "pauc", "auc", "useless", "low", "high", "published")
_DIFFERENCES = ("data", "verifier", "fmr", "method", "other", "difference", "low", "high")
_FORMS = ("png", "svg")


class Result(NamedTuple):
    """What one set of images gave, compared by one network."""

    data: str
    verifier: str
    images: int
    comparison: Comparison
    published: float | None = None
    """The paper's pAUC of PreFIQs, with its network, in the mode crfiqa."""

    @property
    def title(self) -> str:
        pairs = next(iter(self.comparison.curves.values()))[0]
        return (
            f"{self.data}: {self.images} images, {pairs.mated} mated and {pairs.non_mated} non-mated pairs, "
            f"compared by {self.verifier}"
        )

    def rows(self, protocol: Protocol) -> list[list[Any]]:
        """One a method and FMR, by COLUMNS; None for what was not or cannot be computed, TOO_FEW in place of all that
        would follow from an FMR that cannot be measured."""
        return [
            self._row(name, curve, protocol)
            for name, of_method in self.comparison.curves.items()
            for curve in of_method
        ]

    def _row(self, name: str, curve: Curve, protocol: Protocol) -> list[Any]:
        row: list[Any] = [self.data, self.verifier, name, curve.mode, curve.fmr]
        if curve.measurable:
            fnmr, draws = float(curve.fnmr[0]), self.comparison.draws.get(curve.fmr)
            useless, _ = _areas(curve._replace(fnmr=np.full_like(curve.fnmr, fnmr)), protocol)
            row += [fnmr, *_areas(curve, protocol), useless, *((None, None) if draws is None else draws.interval(name))]
        else:
            row += [TOO_FEW] * 4 + [TOO_FEW if protocol.intervals else None] * 2
        return [*row, self.published if name == "prefiqs" and curve.mode == "crfiqa" else None]

    @property
    def hint(self) -> list[str]:
        """What to do where pairs are too few, or none fails: a line or none."""
        curves = next(iter(self.comparison.curves.values()))
        few = [curve.fmr for curve in curves if not curve.measurable]
        zero = [curve.fmr for curve in curves if curve.measurable and curve.fnmr[0] == 0]
        remedies = []
        if few:
            remedies.append(f"more images, for {curves[0].non_mated} non-mated pairs cannot show FMR {_listed(few)}")
        if zero:
            remedies.append(f"a harder set (prefiqs degrade), for no mated pair fails at FMR {_listed(zero)}")
        return [f"Use {'; and '.join(remedies)}."] if remedies else []

    def differences(self, protocol: Protocol) -> list[list[Any]]:
        """One an FMR and pair of methods: pAUC of the one minus that of the other, and its interval over draws."""
        rows: list[list[Any]] = []
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


def _areas(curve: Curve, protocol: Protocol) -> list[float | None]:
    """pAUC and AUC; None in the normalised mode where no pair fails: there is nothing to divide by."""
    if curve.mode == "normalised" and curve.fnmr[0] == 0:
        return [None, None]
    return [curve.area(protocol.limit), curve.area(protocol.max_discard)]


def write(output: Path, results: Sequence[Result], protocol: Protocol, facts: dict[str, Any]) -> None:
    """edc.csv, differences.csv, edc.json, and a picture of each result, edc.png and edc.svg; where there are several,
    their names say which."""
    contents = {
        "edc.csv": format_csv(COLUMNS, (row for result in results for row in result.rows(protocol))),
        "differences.csv": format_csv(
            _DIFFERENCES, (row for result in results for row in result.differences(protocol))
        ),
        "edc.json": json.dumps(
            facts | {"results": [_all(result, protocol) for result in results]}, indent=1, default=str
        ).encode(),
    }
    for result in results:
        name = "edc" if len(results) == 1 else f"edc-{result.data}-{result.verifier}"
        for form in _FORMS:
            picture = io.BytesIO()
            plot_edc(result.comparison.curves, result.title, picture, form)
            contents[f"{name}.{form}"] = picture.getvalue()
    write_folder(output, contents)


def _all(result: Result, protocol: Protocol) -> dict[str, Any]:
    return {
        "data": result.data,
        "verifier": result.verifier,
        "images": result.images,
        "curves": {name: list(map(_values, curves)) for name, curves in result.comparison.curves.items()},
        "differences": [dict(zip(_DIFFERENCES[2:], row[2:], strict=True)) for row in result.differences(protocol)],
    }


def _values(curve: Curve) -> dict[str, Any]:
    values = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in curve._asdict().items()}
    return values if curve.measurable else values | {"fnmr": TOO_FEW, "thresholds": TOO_FEW}


def format_rows(result: Result, protocol: Protocol) -> list[str]:
    """A title, a table for a terminal, and a hint; columns that are empty are left out."""
    return [result.title, *_lines(COLUMNS[2:], [row[2:] for row in result.rows(protocol)]), *result.hint]


def averages(results: Sequence[Result], protocol: Protocol) -> list[str]:
    """Mean pAUC over the benchmarks but XQLFW, as the paper has it, by verifier, method and FMR; over those that have
    one; nothing, or TOO_FEW, where there is none."""
    rows: dict[tuple[Any, ...], list[list[Any]]] = {}
    for row in (row for result in results if result.data != LEFT_OUT for row in result.rows(protocol)):
        rows.setdefault((row[1], row[2], row[4]), []).append(row)
    if not rows:
        return []
    table: list[list[Any]] = []
    for key, own in rows.items():
        values = [row[6] for row in own if row[6] not in (None, TOO_FEW)]
        as_published = len(values) == len(BENCHMARKS) - 1 and any(row[-1] is not None for row in own)
        mean = float(np.mean(values)) if values else TOO_FEW if any(row[6] == TOO_FEW for row in own) else None
        table.append([*key, len(values), mean, AVERAGE_TARGET if as_published else None])
    return [f"mean without {LEFT_OUT}", *_lines(("verifier", "method", "fmr", "sets", "pauc", "published"), table)]


def _lines(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    used = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    cells = [[_short(row[i]) for i in used] for row in (columns, *rows)]
    widths = [max(10, *map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]


def _listed(fmrs: Sequence[float]) -> str:
    return ", ".join(f"{fmr:g}" for fmr in fmrs)


def _short(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"
