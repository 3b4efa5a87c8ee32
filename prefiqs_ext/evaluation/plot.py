"""Plots error-versus-discard curves. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import IO

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prefiqs_ext.evaluation.edc import TOO_FEW, Curve

_DASHES = ("-", "--", ":", "-.")  # so that equal curves are both visible, also without colours


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
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 9), fontsize=9, frameon=False)
    figure.savefig(file, dpi=200, format=form)
