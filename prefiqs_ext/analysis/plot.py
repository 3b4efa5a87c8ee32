"""An analysis as one picture with four panels; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prefiqs_ext.analysis.late_layers import Cost
from prefiqs_ext.analysis.pruning_variation import Variation

_DPI = 130


def plot_analysis(variations: Sequence[Variation], costs: Sequence[Cost], title: str, file: IO[bytes]) -> None:
    """Write a PNG with D, its agreement, the first-order estimate, and the cost of pruning late layers only.

    Args:
        variations: What `measure_variations` gives.
        costs: What `measure_late_layers` gives.
        title: Of the picture.
        file: Open for writing.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    (distance, agreement), (estimate, cost) = figure.subplots(2, 2)
    kinds = list(dict.fromkeys(variation.kind for variation in variations if variation.ratio is None))
    for index, kind in enumerate(kinds):
        rows = [variation for variation in variations if variation.kind == kind]
        sparsity = [row.sparsity for row in rows]
        style = ":" if index == 2 else "-"  # it often lies on the first
        line = {"marker": "o", "markersize": 3, "color": f"C{index}", "linestyle": style}
        distance.plot(sparsity, [row.median for row in rows], label=kind, **line)
        if index == 0:
            low, high = [row.low for row in rows], [row.high for row in rows]
            distance.fill_between(sparsity, low, high, color="C0", alpha=0.15, linewidth=0)
        agreement.plot(sparsity, [row.agreement for row in rows], **line)
    _label_axes(distance, "D (median; band: 5 to 95 % of the images)", "sparsity", "D")
    distance.legend(fontsize=8, frameon=False)
    _label_axes(agreement, "Agreement with magnitude at sparsity .4", "sparsity", "Spearman")
    _draw_estimate(estimate, [variation for variation in variations if variation.ratio is not None])
    _draw_costs(cost, costs)
    figure.savefig(file, dpi=_DPI, format="png")


def _draw_estimate(axes: Axes, rows: Sequence[Variation]) -> None:
    sparsity = [row.sparsity for row in rows]
    axes.plot(sparsity, [row.with_d or np.nan for row in rows], marker="o", markersize=3, label="Spearman with D")
    axes.plot(sparsity, [row.ratio or np.nan for row in rows], marker="s", markersize=3, label="estimate / D, median")
    axes.axhline(1, color="grey", linewidth=0.6)
    _label_axes(axes, "The first-order estimate of D", "sparsity", "")
    axes.legend(fontsize=8, frameon=False)


def _draw_costs(axes: Axes, costs: Sequence[Cost]) -> None:
    pruned = [cost for cost in costs if cost.share]
    x = [cost.of_recognition[0] for cost in pruned]
    low = [cost.of_recognition[0] - cost.of_recognition[1] for cost in pruned]
    high = [cost.of_recognition[2] - cost.of_recognition[0] for cost in pruned]
    axes.errorbar(x, [cost.agreement for cost in pruned], xerr=[low, high], fmt="o", markersize=4, elinewidth=0.8)
    for cost in pruned:
        place = (cost.of_recognition[0], cost.agreement)
        axes.annotate(f"last {cost.share:.0%}", place, textcoords="offset points", xytext=(5, -11), fontsize=8)
    axes.axvline(1, color="grey", linewidth=0.6)
    _label_axes(axes, "Pruning late layers only", "time over recognition alone", "Spearman with all layers")


def _label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
