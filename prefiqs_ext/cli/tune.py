"""`prefiqs tune`: which sparsity, scope and layers serve a network best, by a rule stated before looking."""

from __future__ import annotations

from pathlib import Path

import click

from prefiqs_ext.cli.messages import print_result, tell
from prefiqs_ext.cli.options import ModelOptions, model_options
from prefiqs_ext.cli.paths import INPUT_FOLDER
from prefiqs_ext.cli.shared_options import (
    allow_duplicates_option,
    no_cache_option,
    output_folder_option,
    resamples_option,
    seed_option,
)
from prefiqs_ext.cli.wrong_usage import refuse_usage
from prefiqs_ext.utils.text import format_path


@click.command()
@click.argument("data", type=INPUT_FOLDER)
@model_options
@click.option(
    "--folds",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    metavar="N",
    help="Number of parts that the people are divided into.",
)
@resamples_option(2, "of persons for the 95 % intervals.")
@seed_option("the folds and of the draws.")
@output_folder_option("tune")
@allow_duplicates_option
@no_cache_option
def tune(
    *,
    data: Path,
    model: ModelOptions,
    folds: int,
    resamples: int,
    seed: int,
    output: Path,
    allow_duplicates: bool,
    no_cache: bool,
) -> None:
    """Find the sparsity, scope and layers that serve your network best.

    DATA is a folder of aligned crops with one folder per person. The people are divided into folds. For each fold, the
    setting that does best on all other people is measured on the fold's own people, against the default. The default
    stays unless it is shown to be worse.

    Prints a table of all settings; lower pAUC is better. Writes tune.csv (the table), tune.json (folds, choices and
    intervals) and settings.json (the recommended setting, for `prefiqs score --settings`). Also compares D, the
    embedding norm, and both together.

    \b
    Example:
      prefiqs tune people/ --model sface --output tune
    """
    from prefiqs_ext.evaluation.face_network import FaceNetwork
    from prefiqs_ext.evaluation.tuning_runner import TuningOptions, run_tuning

    with refuse_usage():
        options = TuningOptions(
            data,
            FaceNetwork(model.name, model.find_preset()),
            model.output,
            folds,
            resamples,
            seed,
            allow_duplicates,
            use_cache=not no_cache,
        )
    tuning = run_tuning(options, output, tell)
    for line in tuning.format():
        print_result(line)
    tell(
        f"tried {len(tuning.prunings)} settings; table and recommended settings.json are in {format_path(str(output))}"
    )
