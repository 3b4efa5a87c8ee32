"""Plots error-versus-discard curves, of all images and of groups. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from textwrap import wrap
from typing import IO

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prefiqs_ext.evaluation.edc import TOO_FEW, Curve
from prefiqs_ext.evaluation.groups import GroupComparison

_DASHES = ("-", "--", ":", "-.")  # so that equal curves are both visible, also without colours
_TITLE_LETTERS = 45  # of a line above one panel
_LETTERS = 14  # of a legend, per inch


@rc_context({"text.parse_math": False})  # names are the user's, and a $ in them is no formula
def plot_edc(curves: Mapping[str, list[Curve]], title: str, file: IO[bytes], form: str) -> None:
    """Plot one panel per FMR and one line per method.

    Args:
        curves: Of each method, for the same FMRs in the same order.
        title: Stands above the panels.
        file: Where the picture goes.
        form: "png" or "svg".
    """
    fmrs = [curve.fmr for curve in next(iter(curves.values()))]
    figure = Figure(figsize=(4 * len(fmrs), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for column, (fmr, axes) in enumerate(zip(fmrs, figure.subplots(1, len(fmrs), squeeze=False)[0], strict=True)):
        for (name, of_method), dashes in zip(curves.items(), cycle(_DASHES)):
            curve = of_method[column]
            style = "steps-post" if curve.mode == "fixed-threshold" else "default"
            line = (curve.ratios, curve.fnmr) if curve.measurable else ([], [])
            axes.plot(*line, label=name, drawstyle=style, linestyle=dashes)
        if not curve.measurable:
            axes.text(0.5, 0.5, TOO_FEW, transform=axes.transAxes, ha="center")
            axes.set(xticks=[], yticks=[])
        axes.set_title(f"FMR {fmr:g}", fontsize=10)
        axes.set_xlabel("discarded share of pairs")
        axes.set_ylabel("FNMR")
        _finish(axes)
    _save(figure, file, form)


@rc_context({"text.parse_math": False})
def plot_groups(groups: GroupComparison, title: str, file: IO[bytes], form: str) -> None:
    """Plot one column of panels per method and one line per group.

    The first row shows the share of each group's images that is discarded. Each other row shows the FNMR at an FMR that
    can be measured, in bands of its 95 % interval, where there are enough persons and pairs.

    Args:
        groups: What was measured.
        title: Stands above the panels.
        file: Where the picture goes.
        form: "png" or "svg".
    """
    methods = list(dict.fromkeys(curve.method for curve in groups.curves))
    fmrs = list(dict.fromkeys(curve.fmr for curve in groups.curves if curve.known.any()))
    figure = Figure(figsize=(4 * len(methods), 3 * (1 + len(fmrs)) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    lines = [*wrap(title, _TITLE_LETTERS * len(methods)), f"by {groups.column}"]
    figure.suptitle("\n".join(lines), fontsize=11)
    panels = figure.subplots(1 + len(fmrs), len(methods), squeeze=False, sharey="row")
    for column, method in enumerate(methods):
        curves = [curve for curve in groups.curves if curve.method == method]
        shown = [curve for curve in curves if curve.fmr == curves[0].fmr]
        for (place, curve), dashes in zip(enumerate(shown), cycle(_DASHES)):
            colour = f"C{place - 1}" if place else "black"
            panels[0, column].plot(curve.ratios, curve.discarded, label=curve.group, linestyle=dashes, color=colour)
            for row, fmr in enumerate(fmrs, 1):
                (own,) = (each for each in curves if (each.fmr, each.group) == (fmr, curve.group))
                fnmr = np.where(own.known, own.fnmr, np.nan)  # a gap where it is not known
                panels[row, column].plot(own.ratios, fnmr, linestyle=dashes, color=colour)
                if own.interval is not None:
                    panels[row, column].fill_between(
                        own.ratios, *own.interval.T, where=own.known, color=colour, alpha=0.15, linewidth=0
                    )
        panels[0, column].set_title(method, fontsize=10)
        panels[0, column].set_ylabel("discarded share of images")
        for row, fmr in enumerate(fmrs, 1):
            panels[row, column].set_ylabel(f"FNMR at FMR {fmr:g}")
        panels[-1, column].set_xlabel("discarded share of pairs")
    for axes in panels.flat:
        _finish(axes)
    _save(figure, file, form)


def _finish(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, file: IO[bytes], form: str) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = int(_LETTERS * figure.get_figwidth() / (5 + max(map(len, labels))))
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(max(columns, 1), len(labels), 9),
        fontsize=9,
        frameon=False,
    )
    figure.savefig(file, dpi=200, format=form)
