"""What pruning only late layers costs and keeps, on IResNets with calibrated random weights.

Example: `python -m benchmarks.late_layers --model iresnet50`
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
import torch

from benchmarks.timing import describe_machine
from prefiqs_ext.analysis.late_layers import measure_late_layers
from prefiqs_ext.models import PRESETS
from tests.networks import calibrated, pictures


@click.command()
@click.option("--model", default="iresnet50", show_default=True)
@click.option("--images", default=64, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path))
def main(model: str, images: int, batch: int, rounds: int, file: Path | None) -> None:
    """Measure and print one line for each share of pruned layers."""
    costs = measure_late_layers(
        calibrated(model), PRESETS["arcface"], pictures(images, seed=3), rounds=rounds, batch=batch
    )
    for cost in costs:
        recognition, full = ("{:.2f} ({:.2f}-{:.2f})".format(*ratios) for ratios in (cost.of_recognition, cost.of_full))
        print(f"{cost.share:5.0%} {recognition} {full} {cost.agreement:.3f} {cost.first}")
    if file is not None:
        file.write_text(
            json.dumps({"machine": describe_machine(), "model": model, "late": [asdict(c) for c in costs]}, indent=1)
        )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
