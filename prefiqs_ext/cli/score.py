"""`prefiqs score`: files and folders in, a table out."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from prefiqs_ext.cli.messages import describe_counts, tell, tell_summary
from prefiqs_ext.cli.options import ScoringOptions, scoring_options
from prefiqs_ext.cli.paths import ImagesPath
from prefiqs_ext.cli.shared_options import aligned_option, rank_by_option, settings_option
from prefiqs_ext.cli.throughput import Throughput, throughput_options
from prefiqs_ext.cli.wrong_usage import refuse_usage
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.text import format_path

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=ImagesPath(), metavar="PATH...")
@aligned_option
@click.option(
    "--min-face",
    type=click.FloatRange(min=1),
    metavar="PIXELS",
    help="Width in pixels from which faces in photos are found; smaller values take longer on large photos. "
    "[default: 60]",
)
@click.option(
    "--output",
    "-o",
    type=_FILE,
    metavar="FILE",
    help="The table to write: .csv, .jsonl or .txt. [default: csv to standard output]",
)
@click.option(
    "--embeddings",
    type=_FILE,
    metavar="FILE.npy",
    help="Also write the embeddings, one row per row of the table, and their paths to FILE.paths.",
)
@click.option("--top", type=click.IntRange(min=1), metavar="K", help="Keep the K rows of highest score, best first.")
@click.option(
    "--below",
    type=float,
    metavar="SCORE",
    help="Keep the rows whose score is below this, in the unit of the score: 0 to 100 if calibrated, 0 to 1 for "
    "quality, a length for norm.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run from the output's FILE.part.")
@scoring_options
@settings_option
@rank_by_option
@throughput_options
def score(
    paths: tuple[str, ...],
    aligned: bool,
    min_face: float | None,
    output: Path | None,
    embeddings: Path | None,
    top: int | None,
    below: float | None,
    resume: bool,
    scoring: ScoringOptions,
    throughput: Throughput,
) -> None:
    """Score the faces in photos, or ready crops with --aligned.

    PATH is an image, a folder (with all folders below it), or @LIST: a text file with one path per line.

    score is the number to rank and to act on, HIGHER is better: the calibrated score, the quality or the embedding
    norm, as --rank-by says. quality is between 0 and 1, HIGHER is better; distance = 2 (1 - quality). csv and jsonl
    have one row per face, the largest face of a photo first, and a status: ok, no_face, unreadable or not_assessable.
    txt has one line per photo, `path score` of its largest face. What could not be scored is named on standard error.
    The exit code is 1 if nothing could be scored.

    The rows are in FILE.part until all of them are there. After Ctrl-C or a crash, give the same command with --resume.

    \b
    Examples:
      prefiqs score photo.jpg
      prefiqs score photos/ --output qualities.csv
      prefiqs score @list.txt --output qualities.txt --resume
      prefiqs score crops/ --aligned --output qualities.jsonl --embeddings embeddings.npy
      prefiqs score photos/ --top 10
      prefiqs score crops/ --aligned --model backbone.pth --preset arcface
    """
    from prefiqs_ext.files import Pick, Writer, find_paths

    if resume and output is None:
        raise click.UsageError("--resume needs --output FILE, whose FILE.part it continues")
    if top is not None and below is not None:
        raise click.UsageError("--top and --below are two different choices: give one of them")
    if aligned and min_face is not None:
        raise click.UsageError("--min-face is for photos: leave it out, or --aligned")
    files = find_paths(paths, tell)
    with refuse_usage(kind=InputError):
        results = Writer(
            output,
            embeddings,
            settings={"aligned": aligned, "min_face": min_face, **scoring.to_dict()},
            paths=files,
            resume=resume,
            pick=Pick(top, below) if top is not None or below is not None else None,
        )
    with results:
        done = results.progress.paths
        if done < len(files):
            scorer = scoring.make_scorer()
            scored_files = throughput.score(files, scorer, aligned=aligned, min_face=min_face, done=done)
            with closing(scored_files):
                for scored in scored_files:
                    results.add(scored)
                    for record in scored.records:
                        if record.status != "ok":
                            tell(f"{format_path(record.path)}: {record.status}: {record.reason}")
        rows = results.finish()
    counts = results.progress.counts
    if not counts.get("ok"):
        raise InputError(f"nothing could be scored: {describe_counts(counts.items())}")
    if below is not None and not rows:
        tell(f"no score is below {below:g}, in the unit of the number that --rank-by names")
    tell_summary(results.progress.paths, counts.items(), output, embeddings)
