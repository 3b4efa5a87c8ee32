"""`prefiqs export`: the pair of networks as one ONNX file, for runtimes that know nothing of this package."""

from __future__ import annotations

import os
from pathlib import Path

import click

from prefiqs_ext.cli.messages import tell
from prefiqs_ext.cli.options import ScoringOptions, scoring_options
from prefiqs_ext.cli.shared_options import rank_by_option, settings_option
from prefiqs_ext.ranking import NAMES
from prefiqs_ext.utils.text import format_path

_MEGABYTE = 1e6


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.onnx")
@click.option(
    "--input",
    "input_dtype",
    type=click.Choice(["uint8", "float32"]),
    default="uint8",
    show_default=True,
    help="The images that the file takes: levels of 0-255 in uint8, or of 0 to 1 in float32.",
)
@scoring_options
@settings_option
@rank_by_option
def export(file: Path, input_dtype: str, scoring: ScoringOptions) -> None:
    """Write the pair of networks as one ONNX file for other runtimes.

    ONNX Runtime, OpenVINO and others run FILE.onnx without this package. It takes a batch of aligned RGB crops, NCHW,
    of any number, and gives score, distance, quality, embedding and embedding_norm for each. The normalisation of the
    preset, the pruning, the distance and, with --settings, the calibrated score are part of it.

    The file stores each weight once, and one byte more for each weight that pruning touches. A runtime applies these
    masks when it loads the file, and then holds two sets of weights.

    \b
    Examples:
      prefiqs export pair.onnx
      prefiqs export pair.onnx --settings settings.json
      prefiqs export pair.onnx --model backbone.pth --preset arcface --input float32
    """
    if file.suffix.lower() != ".onnx":
        raise click.BadParameter(f"expected a name that ends in .onnx, got {format_path(str(file))}")
    model = scoring.model.name
    if os.path.exists(model) and os.path.exists(file) and os.path.samefile(model, file):
        raise click.BadParameter(f"{format_path(str(file))} is the model itself: name another file")
    import torch

    from prefiqs_ext.onnx_export import export_onnx

    scorer = scoring.make_scorer()
    size = export_onnx(scorer, file, input_dtype=getattr(torch, input_dtype))
    tell(
        f"written to {format_path(str(file))}, {size.file / _MEGABYTE:.1f} MB; its score is the "
        f"{NAMES[scorer.rank_by]}; a runtime holds {size.weights / _MEGABYTE:.1f} MB of weights where the Scorer holds "
        f"{scorer.resident_bytes / _MEGABYTE:.1f} MB"
    )
