"""`prefiqs select`: the best faces of each person, from tables that `prefiqs score` has written."""

from __future__ import annotations

import math
from pathlib import Path

import click

from prefiqs_ext.cli.messages import tell
from prefiqs_ext.cli.wrong_usage import refuse_usage
from prefiqs_ext.utils.optional_packages import require_packages
from prefiqs_ext.utils.text import format_path


@click.command()
@click.argument("tables", nargs=-1, required=True, type=click.Path(), metavar="TABLE...")
@click.option(
    "--best",
    type=click.IntRange(min=1, max=2**31 - 1),
    required=True,
    metavar="K",
    help="Keep the K rows of highest score of each group. Equal scores are in the order of path and face.",
)
@click.option(
    "--per",
    required=True,
    metavar="person|COLUMN",
    help="What makes a group: the folder that the image lies in (the last one of its path), or equal values of a "
    "column. A column that is called person comes before the folder.",
)
@click.option(
    "--min-score",
    type=float,
    metavar="SCORE",
    help="Leave out rows whose score is below this, in the unit of the score: 0 to 100 if calibrated, 0 to 1 for "
    "quality, a length for norm.",
)
@click.option(
    "--near",
    type=click.FloatRange(-1, 1),
    metavar="COSINE",
    help="Leave out a face that resembles a better one of its group too closely: the cosine of their embeddings is "
    "this or more. For tables that have the column embedding.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The rows to write: .csv, .parquet, or .txt for the paths alone. [default: csv to standard output]",
)
@click.option(
    "--templates",
    type=click.Path(path_type=Path),
    metavar="FILE.parquet",
    help="Also write one embedding for each group: the sum of score times embedding over the rows that are kept, of "
    "length 1. For tables that have the column embedding.",
)
def select(
    tables: tuple[str, ...],
    best: int,
    per: str,
    min_score: float | None,
    near: float | None,
    output: Path | None,
    templates: Path | None,
) -> None:
    """Keep the best faces of each person, of tables that `prefiqs score` has written.

    TABLE is a .csv or .parquet file; several, such as those of all shards, count as one. Rows with a status other than
    ok are left out. Of exact duplicates (by the content_hash of a .parquet table) the first by path is kept, before
    anything is chosen. The rows that are kept stay in the order of the tables.

    \b
    Examples:
      prefiqs select qualities.csv --best 3 --per person --output best.csv
      prefiqs select shards/*.parquet --best 1 --per label --min-score 9 --output best.parquet
      prefiqs select qualities.parquet --best 5 --per person --near 0.9 --output best.txt
      prefiqs select qualities.parquet --best 100 --per person --templates people.parquet --output used.csv
    """
    require_packages("parquet", "pyarrow", "duckdb")
    from prefiqs_ext.selection.select import Selection

    if any(value is not None and math.isnan(value) for value in (min_score, near)):
        raise click.UsageError("expected a number for --min-score and --near, got nan")
    with refuse_usage():
        selection = Selection(tables, output, best=best, per=per, least_score=min_score, near=near, templates=templates)
    counts = selection.run()
    if not selection.finds_duplicates:
        tell("no column content_hash, so images were not compared: `prefiqs score` writes it to .parquet")
    said = f"{counts.rows:,} rows, {counts.faces:,} ok, {counts.duplicates:,} of these duplicates"
    said += f", {counts.ungrouped:,} without a value of {format_path(per)}" if counts.ungrouped else ""
    places = " and ".join(format_path(str(file)) for file in (output, templates) if file)
    tell(f"{said}; kept {counts.kept:,} of {counts.groups:,} groups{f'; written to {places}' if places else ''}")
