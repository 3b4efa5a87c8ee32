"""`prefiqs score`: images in, wherever they lie; a table out."""

from __future__ import annotations

from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prefiqs_ext.cli.messages import describe_counts, tell, tell_summary
from prefiqs_ext.cli.options import ScoringOptions, scoring_options
from prefiqs_ext.cli.paths import ImagesPath
from prefiqs_ext.cli.ray_engine import Cluster, engine_options, score_on_cluster
from prefiqs_ext.cli.shared_options import aligned_option, rank_by_option, settings_option
from prefiqs_ext.cli.throughput import Throughput, throughput_options
from prefiqs_ext.cli.wrong_usage import refuse_usage
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.strict_json import JSON
from prefiqs_ext.utils.suffixes import PARQUET, get_suffix, refuse_url
from prefiqs_ext.utils.text import format_path

if TYPE_CHECKING:
    from prefiqs_ext.files.images import Shard

_FILE = click.Path(path_type=Path)


def parse_shard(text: str) -> Shard:
    """Return the part of a run that "0/8" means."""
    from prefiqs_ext.files.images import Shard

    with refuse_usage("--shard"):
        return Shard.parse(text)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=ImagesPath(containers=True), metavar="PATH...")
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
    metavar="FILE",
    help="The table to write: .csv, .jsonl, .txt or .parquet. [default: csv to standard output]",
)
@click.option(
    "--embeddings",
    type=_FILE,
    metavar="FILE.npy",
    help="Also write the embeddings, one row per row of the table, and their paths to FILE.paths.",
)
@click.option("--embedding-column", is_flag=True, help="Give a .parquet table a column with the embeddings.")
@click.option(
    "--image-column",
    metavar="NAME",
    default="image",
    show_default=True,
    help="The column of Parquet files that has the encoded images.",
)
@click.option(
    "--shard",
    metavar="I/N",
    callback=lambda _context, _option, value: None if value is None else parse_shard(value),
    help="Score one of N parts, I from 0: every N-th file, archives and Parquet files whole; with fewer files than "
    "parts every N-th image.",
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
@engine_options
def score(
    paths: tuple[str, ...],
    aligned: bool,
    min_face: float | None,
    output: str | None,
    embeddings: Path | None,
    embedding_column: bool,
    image_column: str,
    shard: Shard | None,
    top: int | None,
    below: float | None,
    resume: bool,
    scoring: ScoringOptions,
    throughput: Throughput,
    cluster: Cluster | None,
) -> None:
    """Score the faces in photos, or ready crops with --aligned.

    PATH is an image, a folder (with all folders below it), a .tar or .zip archive, a .parquet file, an address of any
    of these (s3://bucket/shards/*.tar), or @LIST: a text file with one path per line. An image in an archive or a
    Parquet file is called ARCHIVE/MEMBER or FILE.parquet/ROW.

    score is the number to rank and to act on, HIGHER is better: the calibrated score, the quality or the embedding
    norm, as --rank-by says. quality is between 0 and 1, HIGHER is better; distance = 2 (1 - quality). csv and jsonl
    have one row per face, the largest face of a photo first, and a status: ok, no_face, unreadable or not_assessable.
    txt has one line per photo, `path score` of its largest face; parquet has the columns of csv, the reason, a hash of
    the image's content, and the other columns of Parquet files. What could not be scored is named on standard error.
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
      prefiqs score shards/*.tar --aligned --output qualities.parquet --shard 0/8
    """
    from prefiqs_ext.files import InputImages, Pick, Writer, find_paths

    if resume and output is None:
        raise click.UsageError("--resume needs --output FILE, whose FILE.part it continues")
    if top is not None and below is not None:
        raise click.UsageError("--top and --below are two different choices: give one of them")
    if aligned and min_face is not None:
        raise click.UsageError("--min-face is for photos: leave it out, or --aligned")
    settings: dict[str, JSON] = {
        "aligned": aligned,
        "min_face": min_face,
        "image_column": image_column,
        **scoring.to_dict(),
    }
    files = find_paths(paths, tell, containers=True)
    if cluster is not None:
        unfit = {"--embeddings": embeddings, "--top": top, "--below": below, "--shard": shard}
        if given := [name for name, value in unfit.items() if value is not None]:
            raise click.UsageError(f"--engine ray has no {given[0]}: leave it out")
        if output is None:
            raise click.UsageError("--engine ray needs --output FOLDER, which all nodes share, or an address")
        score_on_cluster(
            files,
            output,
            cluster,
            scoring,
            throughput,
            {**settings, "embedding_column": embedding_column},
            aligned=aligned,
            min_face=min_face,
            image_column=image_column,
            embedding_column=embedding_column,
            resume=resume,
        )
        return
    table = None if output is None else Path(output)
    settings["shard"] = None if shard is None else str(shard)
    carry = output is not None and get_suffix(output) == PARQUET
    with refuse_usage(kind=InputError):
        if output is not None:
            refuse_url(output, "a file to write", "copy it there afterwards, or use --engine ray")
        found = InputImages(files, image_column=image_column, shard=shard, carry=carry)
        images = iter(found)
        results = Writer(
            table,
            embeddings,
            settings=settings,
            paths=(image.path for image in images),
            resume=resume,
            pick=Pick(top, below) if top is not None or below is not None else None,
            embedding_column=embedding_column,
            carried=found.carried,
        )
    with results:
        done = results.progress.paths
        first = next(images, None)
        if first is None and not done:
            raise InputError(f"expected images in part {shard} of this run, found none: make fewer parts")
        if first is not None:
            scorer = scoring.make_scorer()
            rest = chain([first], images)
            scored_files = throughput.score(
                rest, scorer, aligned=aligned, total=found.total, min_face=min_face, done=done
            )
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
    tell_summary(results.progress.paths, counts.items(), table, embeddings)
