"""`prefiqs tune`: which pruning serves a network best on your own faces, without anyone's identity."""

from __future__ import annotations

from pathlib import Path

import click

from prefiqs_ext.cli.messages import print_result, tell
from prefiqs_ext.cli.options import ModelOptions, model_options
from prefiqs_ext.cli.paths import ImagesPath
from prefiqs_ext.cli.shared_options import output_folder_option, resamples_option, seed_option
from prefiqs_ext.utils.pick_evenly import pick_evenly
from prefiqs_ext.utils.text import format_path


@click.command()
@click.argument("data", nargs=-1, required=True, type=ImagesPath(), metavar="DATA...")
@model_options
@resamples_option(2, "of faces for the 95 % interval.")
@seed_option("the degradations and of the draws.")
@output_folder_option("tune")
def tune(*, data: tuple[str, ...], model: ModelOptions, resamples: int, seed: int, output: Path) -> None:
    """Find the pruning that serves your network best.

    DATA is a folder of aligned crops, with or without folders per person, or @LIST, a file with one path per line. Give
    40 faces or more, mostly good ones; of more than 500, as many are drawn evenly. Nobody has to say who they are.

    Each face is degraded in many ways. A pruning is good if the copies that D discards first are those that the network
    recognises least. The default, plain D at sparsity 0.4, stays unless another setting is shown to be better on faces
    that had no say in its choice.

    Prints a table of all settings; lower areas are better. Writes tune.csv (the table), tune.json (the choices, the
    interval and what else decided the numbers) and settings.json (the recommended setting, for `prefiqs score
    --settings`).

    \b
    Example:
      prefiqs tune crops/ --model sface --output tune
      prefiqs score photos/ --settings tune/settings.json --output qualities.csv
    """
    import torch

    from prefiqs_ext.analysis.tuning_runner import MOST_FACES, run_tuning
    from prefiqs_ext.evaluation.datasets.sources import read_every_crop
    from prefiqs_ext.files.paths import find_paths
    from prefiqs_ext.utils.atomic_write import make_output_folder

    found = list(find_paths(data, tell))
    files = [found[index] for index in pick_evenly(len(found), MOST_FACES)]
    crops = torch.stack(list(read_every_crop(files, model.get_preset().template)))
    make_output_folder(output)
    tuning = run_tuning(
        crops, model.name, preset=model.find_preset(), output=model.output, resamples=resamples, seed=seed
    )
    tuning.write(output)
    for line in tuning.format():
        print_result(line)
    tell(
        f"tried {len(tuning.tried)} settings on {tuning.copies:,} degraded copies of {tuning.faces} faces; table and "
        f"recommended settings.json are in {format_path(str(output))}"
    )
