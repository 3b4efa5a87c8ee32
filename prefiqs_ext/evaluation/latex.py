"""The areas under the curves as a LaTeX table for a paper. It needs the package booktabs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from prefiqs_ext.evaluation.comparison import Protocol
from prefiqs_ext.evaluation.results import COLUMNS, Result
from prefiqs_ext.utils.tables import Cell
from prefiqs_ext.utils.text import escape_unprintable

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{c: rf"\{c}" for c in "&%$#_{}"},
}
_DIGITS = 3  # of the smallest number of a column
_MOST_DECIMALS = 4


def format_latex(results: Sequence[Result], protocol: Protocol) -> str:
    """Format the pAUC of each method as a table, with one column per network that compares the faces and FMR.

    The sets follow one another. The lowest pAUC of a set and column, as it is printed, is bold. The row "no discard" is
    a quality without any use. Brackets hold the 95 % interval of the difference to it, if there are intervals. The same
    results give the same bytes.

    Args:
        results: At least one.
        protocol: How they were measured.

    Returns:
        A whole `table` with its caption, which ends with a line end.
    """
    columns = [
        (verifier, fmr) for verifier in dict.fromkeys(result.verifier for result in results) for fmr in protocol.fmrs
    ]
    width = 2 if protocol.intervals else 1  # a number and its interval, each in a column of its own
    lines = [
        r"% Needs \usepackage{booktabs}.",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_describe(protocol)}}}",
        rf"\begin{{tabular}}{{l{('r@{~}l' if protocol.intervals else 'r') * len(columns)}}}",
        r"\toprule",
        *_format_heading(columns, width),
    ]
    for data in dict.fromkeys(result.data for result in results):
        lines += [r"\midrule", rf"\multicolumn{{{1 + width * len(columns)}}}{{l}}{{{escape_latex(data)}}} \\"]
        lines += _format_set([result for result in results if result.data == data], columns, protocol)
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Escape a name, so that LaTeX prints it as it is and nothing in it is a command.

    What is not printable is written as Python writes it. Letters beyond ASCII stay: LaTeX reads UTF-8 since 2018.
    """
    line = "".join(_SPECIAL.get(c, c) for c in escape_unprintable(text))
    line = re.sub(r"([-`',!?])(?=[-`',])", r"\1{}", line)  # -- would be a dash, `` a quotation mark
    return f"{{}}{line}" if line.startswith(("[", "*")) else line  # after \\, these would belong to it


def _describe(protocol: Protocol) -> str:
    scale = "relative to no discard" if protocol.mode == "normalised" else r"$\times$ 1000"
    sentences = [
        f"Area under the error-versus-discard curve up to {protocol.limit:g} discarded, {scale}, lower is better "
        f"(mode {protocol.mode}).",
        "Bold: the lowest of each column.",
    ]
    if protocol.intervals:
        sentences.append(
            rf"In brackets: 95\,\% interval of the difference to no discard ({protocol.resamples} draws, "
            f"seed {protocol.seed})."
        )
    return " ".join(sentences)


def _format_heading(columns: Sequence[tuple[str, float]], width: int) -> list[str]:
    """One line with the networks, each above its columns, and one with the FMRs."""
    fmrs = len({fmr for _, fmr in columns})
    span = width * fmrs
    verifiers = [escape_latex(verifier) for verifier, _ in columns[::fmrs]]
    rules = "".join(rf"\cmidrule(lr){{{2 + i * span}-{1 + (i + 1) * span}}}" for i in range(len(verifiers)))
    return [
        _join(["", *(rf"\multicolumn{{{span}}}{{c}}{{{verifier}}}" for verifier in verifiers)]),
        rules,
        _join(["FMR", *(rf"\multicolumn{{{width}}}{{c}}{{{fmr:g}}}" for _, fmr in columns)]),
    ]


def _format_set(results: Sequence[Result], columns: Sequence[tuple[str, float]], protocol: Protocol) -> list[str]:
    """The lines of one set: no discard, then the methods."""
    areas = {}
    for result in results:
        for row in result.make_rows(protocol):
            cells = dict(zip(COLUMNS, row, strict=True))
            areas[cells["method"], result.verifier, cells["fmr"]] = _Area(*(cells[name] for name in _Area._fields))
    methods = list(dict.fromkeys(method for method, _, _ in areas))
    lines = [["no discard"], *([escape_latex(str(method))] for method in methods)]
    for column in columns:
        found = [areas.get((method, *column), _Area()) for method in methods]
        reference = found[0]._replace(pauc=found[0].useless, low=None, high=None)
        for line, cell in zip(lines, _format_column(reference, found, protocol), strict=True):
            line.append(cell)
    return [_join(line) for line in lines]


class _Area(NamedTuple):
    """What the table of all results says of one method at one FMR. A text says why there is no number."""

    pauc: Cell = None
    useless: Cell = None
    low: Cell = None
    high: Cell = None


def _format_column(reference: _Area, methods: Sequence[_Area], protocol: Protocol) -> list[str]:
    """The cells of one column, as many digits after the point in each."""
    numbers = [area.pauc for area in methods if isinstance(area.pauc, float)]
    smallest = min((number for number in numbers if number > 0), default=1.0)
    digits = min(max(_DIGITS - 1 - math.floor(math.log10(smallest)), 0), _MOST_DECIMALS)
    printed = [f"{number:.{digits}f}" for number in numbers]
    best = min(printed, key=float) if len(printed) > 1 else None
    cells = []
    for place, area in enumerate((reference, *methods)):
        if not isinstance(area.pauc, float):
            text = "--" if area.pauc is None else rf"\textit{{{area.pauc}}}"
            cells.append(rf"\multicolumn{{2}}{{c}}{{{text}}}" if protocol.intervals else text)
            continue
        number = f"{area.pauc:.{digits}f}"
        cell = rf"\textbf{{{number}}}" if place and number == best else number
        if protocol.intervals:
            ends = isinstance(area.low, float) and f"$[{area.low:.{digits}f}, {area.high:.{digits}f}]$"
            cell += f" & {ends or ''}".rstrip()
        cells.append(cell)
    return cells


def _join(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
