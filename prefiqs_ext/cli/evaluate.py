"""`prefiqs evaluate`: does a quality predict recognition errors on one's own faces?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prefiqs_ext import methods as all_methods
from prefiqs_ext.cli.messages import print_result, tell
from prefiqs_ext.cli.options import ScoringOptions, parse_preset, scoring_options
from prefiqs_ext.cli.paths import INPUT_FILE, INPUT_FOLDER, InputPath
from prefiqs_ext.cli.shared_options import (
    allow_duplicates_option,
    no_cache_option,
    output_folder_option,
    resamples_option,
    seed_option,
)
from prefiqs_ext.cli.wrong_usage import refuse_usage
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.files.paths import refuse_unreadable
from prefiqs_ext.models.model_file import check_model_file
from prefiqs_ext.utils.atomic_write import write_folder
from prefiqs_ext.utils.text import format_path

if TYPE_CHECKING:
    from prefiqs_ext.evaluation.edc import Mode
    from prefiqs_ext.evaluation.face_network import FaceNetwork
    from prefiqs_ext.evaluation.runner import Evaluation
    from prefiqs_ext.evaluation.score_files import ScoreFile

MODES = ("crfiqa", "rethresholded", "fixed-threshold", "normalised")
"""Those of edc.py, whose import would slow down `--help`."""


@click.command()
@click.argument("data", type=InputPath())
@click.option(
    "--pairs",
    type=INPUT_FILE,
    metavar="FILE",
    help="The pairs to compare, in LFW's form or as lines `path path 0|1`. [default: every image with every other]",
)
@click.option(
    "--protocol",
    type=click.Choice(["paper"]),
    help="paper: DATA holds the paper's benchmarks; measure at false match rates of 0.001 and 0.0001.",
)
@click.option(
    "--methods",
    default="prefiqs,norm,random",
    show_default=True,
    metavar="NAME,...",
    help=f"The qualities to compare, separated by commas: {', '.join(all_methods.list_methods())}. "
    "May be empty with --scores.",
)
@click.option(
    "--scores",
    multiple=True,
    metavar="NAME=FILE|FOLDER",
    help="The scores of another tool, as lines `path score`; can be repeated. With --protocol paper, a folder with one "
    "file per benchmark: lfw/NAME.txt, lfw/NAME_lfw.txt or NAME_lfw.txt.",
)
@click.option(
    "--lower-better",
    multiple=True,
    metavar="NAME",
    help="In the --scores of this name, lower means better quality; can be repeated. [default: higher is better]",
)
@click.option(
    "--verifier",
    multiple=True,
    metavar="[PRESET[@SIZE]:]NAME|FILE",
    help="Another network that compares the faces; a file needs its preset; can be repeated. "
    "[default: the network of --model]",
)
@click.option(
    "--embeddings",
    type=InputPath(),
    metavar="FILE|FOLDER",
    help="Saved embeddings that compare the faces instead of a network: a .npy file [images, d], or a folder with one "
    ".npy file per image.",
)
@click.option(
    "--fit-on",
    type=INPUT_FOLDER,
    metavar="FOLDER",
    help="A folder of crops, one folder per person. The methods that need fitting are fitted on these, sampled at "
    "random: up to 1,000 for calibrated, up to 200 for the others. [default: DATA]",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    help="The rule for thresholds and areas. [default: rethresholded; crfiqa with --protocol paper]",
)
@click.option(
    "--max-discard",
    type=click.FloatRange(0.3, 0.95),
    default=0.95,
    show_default=True,
    metavar="FRACTION",
    help="The largest fraction of pairs to discard, where the curves end.",
)
@click.option(
    "--groups",
    type=INPUT_FILE,
    metavar="TABLE",
    help="A CSV table with the group of each image (columns path and, for example, camera) or of each person (columns "
    "person and ...): also show whom each method discards, and the errors of each group.",
)
@click.option(
    "--group-by",
    metavar="COLUMN",
    help="The column of --groups that has the groups. [default: the only one beside path and person]",
)
@click.option("--latex", is_flag=True, help="Also write edc.tex, a LaTeX table of pAUC for a paper.")
@resamples_option(0, "for the 95 % intervals, which --mode rethresholded has; 0 gives no intervals.")
@seed_option("all that is drawn at random.")
@output_folder_option("evaluation")
@allow_duplicates_option
@no_cache_option
@scoring_options
def evaluate(
    *,
    data: Path,
    scoring: ScoringOptions,
    pairs: Path | None,
    protocol: str | None,
    methods: str,
    scores: tuple[str, ...],
    lower_better: tuple[str, ...],
    verifier: tuple[str, ...],
    embeddings: Path | None,
    fit_on: Path | None,
    mode: Mode | None,
    max_discard: float,
    resamples: int,
    groups: Path | None,
    group_by: str | None,
    latex: bool,
    seed: int,
    output: Path,
    allow_duplicates: bool,
    no_cache: bool,
) -> None:
    """Measure how well a quality predicts recognition errors on your own faces.

    Faces are compared in pairs. The pairs of lowest quality are left out step by step: the faster the errors among the
    rest fall, the better the quality.

    DATA is a folder of aligned crops with one folder per person. Every image is compared with every other, or only the
    pairs of --pairs (LFW's pairs.txt). DATA may also be a list of crops with one path per line, together with --pairs;
    a folder quality_data/NAME of CR-FIQA; a .bin file of InsightFace, or its folder IJBC. With --protocol paper, DATA
    is a folder that holds any of LFW, AgeDB-30, CFP-FP, CALFW, CPLFW, Adience, XQLFW and IJB-C as they are published.
    Those that are not found are named. One that fails midway is named and ignored, and the exit code is 1.

    Prints a table. Writes edc.csv (the table), differences.csv (between methods), edc.png and edc.svg (the curves) and
    edc.json (all settings and curves); with --groups also groups.csv, groups.png and groups.svg. pAUC is the area
    under the first part of the curve; lower is better. `low` and `high` bound a 95 % interval of the difference to a
    useless quality, over draws of persons (of pairs if they are listed). If both are below 0, the quality helps. n
    non-mated pairs cannot measure a false match rate below 1/n; such rows say so.

    Needs matplotlib: `pip install prefiqs_ext[analysis]`.

    \b
    Examples:
      prefiqs evaluate people/ --methods prefiqs,grafiqs,norm,random --output evaluation
      prefiqs evaluate people/ --scores theirs=theirs.txt --verifier facexzoo
      prefiqs evaluate lfw/ --pairs pairs.txt
      prefiqs evaluate people/ --groups table.csv --group-by camera --latex
      prefiqs evaluate quality_data/XQLFW --scores CRFIQAL=quality_data/XQLFW/CRFIQAL.txt
      prefiqs evaluate benchmarks/ --protocol paper --model arcface.pth --preset arcface --verifier magface:magface.pth
    """
    from prefiqs_ext.evaluation.face_network import FaceNetwork
    from prefiqs_ext.evaluation.latex import format_latex
    from prefiqs_ext.evaluation.runner import EvaluationOptions, run_evaluation

    with refuse_usage():
        options = EvaluationOptions(
            data,
            FaceNetwork(scoring.model.name, scoring.model.find_preset()),
            scoring.make_pruning(),
            scoring.model.output,
            scoring.device or "cpu",
            scoring.find_dtype(),
            methods=list(dict.fromkeys(filter(None, methods.split(",")))),
            scores=_parse_scores(scores, lower_better),
            pairs=pairs,
            paper=protocol == "paper",
            verifiers=[_parse_verifier(each) for each in verifier],
            embeddings=embeddings,
            fit_on=fit_on,
            mode=mode,
            max_discard=max_discard,
            resamples=resamples,
            seed=seed,
            groups=groups,
            group_by=group_by,
            allow_duplicates=allow_duplicates,
            use_cache=not no_cache,
        )
    evaluation = run_evaluation(options, output, tell)
    for line in evaluation.format():
        print_result(line)
    if evaluation.results:
        if latex:
            write_folder(output, {"edc.tex": format_latex(evaluation.results, options.protocol).encode()})
        tell(_summarise(evaluation, output))
    if evaluation.failed:
        raise InputError(f"not evaluated, for the reasons given above: {', '.join(evaluation.failed)}")


def _parse_scores(given: tuple[str, ...], lower_better: tuple[str, ...]) -> list[ScoreFile]:
    from prefiqs_ext.evaluation.score_files import ScoreFile

    files = []
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise click.UsageError(f"expected --scores NAME=FILE, got {text!r}")
        with refuse_usage("--scores"):
            refuse_unreadable(path)
        files.append(ScoreFile(name, Path(path), name not in lower_better))
    unknown = sorted(set(lower_better) - {file.name for file in files})
    if unknown:
        raise click.UsageError(f"--lower-better {unknown[0]}: no --scores of that name")
    return files


def _parse_verifier(text: str) -> FaceNetwork:
    """Read PRESET:MODEL, PRESET@SIZE:MODEL or MODEL; a colon may be part of the model's path."""
    from prefiqs_ext.evaluation.face_network import FaceNetwork

    name, colon, model = text.partition(":")
    preset = parse_preset(name) if colon else None
    with refuse_usage("--verifier"):
        if preset is None:
            check_model_file(text, has_preset=False, remedy=f"give PRESET:{text}")
            return FaceNetwork(text)
        return FaceNetwork(model, preset)


def _summarise(evaluation: Evaluation, output: Path) -> str:
    results = evaluation.results
    sets = list(dict.fromkeys(result.data for result in results))
    images = sum({result.data: result.images for result in results}.values())
    qualities = {name for result in results for name in result.comparison.curves}
    what = f"{len(qualities)} qualities" if len(qualities) > 1 else "1 quality"
    where = f"{len(sets)} sets" if len(sets) > 1 else sets[0]
    return f"compared {what} on {images} images of {where}; table and curves are in {format_path(str(output))}"
