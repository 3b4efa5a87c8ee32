"""Run a whole analysis: other prunings, the first-order estimate, and pruning late layers only.

This is what `prefiqs analyse` does, for a notebook or a script::

    network, preset = models.load("sface")
    analysis = run_analysis(network, preset, images)
    analysis.write("analysis", "SFace")
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from prefiqs_ext.analysis.late_layers import Cost, measure_late_layers
from prefiqs_ext.analysis.pruning_variation import Variation, count_variations, measure_variations
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.atomic_write import make_output_folder, write_folder
from prefiqs_ext.utils.optional_packages import require_packages
from prefiqs_ext.utils.tables import Cell, format_table
from prefiqs_ext.utils.text import format_csv
from prefiqs_ext.version import __version__

_COST_COLUMNS = ("share", "first", "milliseconds", "of_recognition", "of_full", "agreement", "layers")


@dataclass(frozen=True)
class Analysis:
    """What an analysis has found.

    Attributes:
        images: The number of images.
        variations: One per kind of pruning and sparsity, then the first-order estimates.
        costs: One per share of the network that is pruned, the whole network first.
    """

    images: int
    variations: list[Variation]
    costs: list[Cost]

    def format(self) -> list[str]:
        """Return the costs as lines of text."""
        columns = ("share", "time / recognition", "time / all layers", "Spearman", "from")
        return format_table(columns, list(map(_describe_cost, self.costs)), floats=".3f")

    def write(self, folder: str | PathLike[str], title: str, facts: Mapping[str, object] | None = None) -> None:
        """Write variation.csv, late.csv, analysis.png and analysis.json.

        Args:
            folder: Where to write; made if it is not there.
            title: Of the picture.
            facts: What else analysis.json says, as values that JSON can hold.

        Raises:
            MissingPackageError: matplotlib is not installed.
            FileAccessError: the folder cannot be written.
        """
        require_packages("analysis", "matplotlib")
        from prefiqs_ext.analysis.plot import plot_analysis

        picture = io.BytesIO()
        plot_analysis(self.variations, self.costs, title, picture)
        names = [field.name for field in fields(Variation)]
        everything = {
            "prefiqs_ext": __version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            **(facts or {}),
            "images": self.images,
            "variations": [asdict(variation) for variation in self.variations],
            "late": [asdict(cost) for cost in self.costs],
        }
        contents = {
            "variation.csv": format_csv(names, ([getattr(row, name) for name in names] for row in self.variations)),
            "late.csv": format_csv(_COST_COLUMNS, map(_make_cost_row, self.costs)),
            "analysis.png": picture.getvalue(),
            "analysis.json": json.dumps(everything, indent=1, allow_nan=True).encode(),
        }
        make_output_folder(Path(folder))
        write_folder(Path(folder), contents)


def run_analysis(network: nn.Module, preset: Preset, images: Tensor, *, output: int | str | None = None) -> Analysis:
    """Measure what pruning does to a network's scores on given images, and what it costs.

    Args:
        network: In eval mode, on the CPU.
        preset: The input that it wants.
        images: uint8 [N, 3, H, W], RGB, of the preset's size, N of 10 or more, all of them faces.
        output: Which of the network's several outputs is the embedding, as Scorer takes it.
    """
    variations = tqdm(
        measure_variations(network, preset, images, output=output),
        total=count_variations(network),
        unit="setting",
        disable=None,
        leave=False,
    )
    return Analysis(len(images), list(variations), measure_late_layers(network, preset, images, output=output))


def _make_cost_row(cost: Cost) -> list[object]:
    spreads = (" ".join(f"{value:.3f}" for value in ratios) for ratios in (cost.of_recognition, cost.of_full))
    return [cost.share, cost.first, round(cost.milliseconds, 3), *spreads, round(cost.agreement, 4), *cost.layers]


def _describe_cost(cost: Cost) -> list[Cell]:
    recognition, full = (f"{m:.2f} ({low:.2f}-{high:.2f})" for m, low, high in (cost.of_recognition, cost.of_full))
    what = cost.first or "nothing pruned: recognition alone"
    return [f"{cost.share:.0%}", recognition, full, cost.agreement, what]
