"""`prefiqs score`: files and folders in, a table out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from prefiqs_ext.cli.messages import tell
from prefiqs_ext.cli.options import ScoringOptions, scoring_options
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.faces.detect import MIN_FACE
from prefiqs_ext.files import Pick, Writer, find_paths, score_files
from prefiqs_ext.utils.text import format_path

_BATCH_SIZES = {"cpu": 32, "cuda": 256}
_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--aligned", is_flag=True, help="PATHs are ready crops of exactly the preset's size.")
@click.option(
    "--min-face",
    type=click.FloatRange(min=1),
    metavar="PIXELS",
    help=f"Width from which faces in photos are found; large photos take longer with less. [default: {MIN_FACE}]",
)
@click.option("--output", "-o", type=_FILE, metavar="FILE", help="A .csv, .jsonl or .txt. [default: csv to stdout]")
@click.option(
    "--embeddings",
    type=_FILE,
    metavar="FILE.npy",
    help="Also the embeddings, row by row, and FILE.paths with the paths.",
)
@click.option("--top", type=click.IntRange(min=1), metavar="K", help="Keep the K rows of highest quality, best first.")
@click.option("--below", type=float, metavar="Q", help="Keep the rows of quality below Q.")
@click.option("--resume", is_flag=True, help="Go on with the output's FILE.part of an interrupted run.")
@scoring_options
@click.option(
    "--settings",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="What `prefiqs calibrate` wrote: model, preset and pruning, and the scale of a column `score`.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Crops scored together. [default: 32; on a GPU 256]")
@click.option("--threads", type=click.IntRange(min=1), help="Threads that score. [default: all cores]")
@click.option("--workers", type=click.IntRange(min=0), help="Processes that read files. [default: by cores]")
def score(paths: tuple[str, ...], scoring: ScoringOptions, **options: Any) -> None:
    """Score the faces in photos, or ready crops with --aligned.

    PATH is a file, a folder (read recursively, sorted), or @LIST: a file with one path a line.

    quality is in [0, 1], HIGHER is better; distance = 2 (1 - quality). csv and jsonl have one row a face, the largest
    first, with status ok, no_face, unreadable or not_assessable. txt has one line a path, `path quality` of the largest
    face. What could not be assessed goes to stderr. Exit code 1 if nothing could be scored.

    Rows are in FILE.part until all are there; after Ctrl-C or a crash the same command with --resume goes on.

    \b
    Examples:
      prefiqs score photos/ --output qualities.csv
      prefiqs score @list.txt --output qualities.txt --resume
      prefiqs score crops/ --aligned --output qualities.jsonl --embeddings embeddings.npy
      prefiqs score photos/ --top 10
      prefiqs score crops/ --aligned --model backbone.pth --preset arcface
    """
    output, embeddings = options["output"], options["embeddings"]
    if options["resume"] and output is None:
        raise click.UsageError("--resume needs --output FILE, whose FILE.part it goes on with")
    if options["top"] is not None and options["below"] is not None:
        raise click.UsageError("--top and --below are two different picks: give one")
    if options["aligned"] and options["min_face"] is not None:
        raise click.UsageError("--min-face is for photos: leave it out, or --aligned")
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    files = find_paths(paths, tell)
    calibration = None if scoring.settings is None else scoring.settings.calibration
    pick = Pick(options["top"], options["below"])
    results = Writer(
        output,
        embeddings,
        settings={"aligned": options["aligned"], "min_face": options["min_face"], **scoring.to_json()},
        paths=files,
        resume=options["resume"],
        pick=pick if any(value is not None for value in pick) else None,
        calibration=calibration,
    )
    with results:
        _score_rest(files, results, scoring, options)
        results.finish()
    counts = results.done.counts
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    if not counts.get("ok"):
        raise InputError(f"nothing could be scored: {summary}")
    if len(counts) > 1:
        tell(f"{results.done.paths} files: {summary}")


def _score_rest(files: list[str], results: Writer, scoring: ScoringOptions, options: dict[str, Any]) -> None:
    done = results.done.paths
    if done == len(files):
        return
    scorer = scoring.make_scorer()
    workers = options["workers"] if options["workers"] is not None else _default_workers()
    rest: Iterator[str] = (files[index] for index in range(done, len(files)))
    batch_size = options["batch_size"] or _BATCH_SIZES[scorer.device.type]
    scored = score_files(
        rest,
        scorer,
        aligned=options["aligned"],
        batch_size=batch_size,
        workers=workers,
        min_face=options["min_face"] or MIN_FACE,
    )
    # disable=None: only on a terminal
    with closing(scored), tqdm(total=len(files), initial=done, unit="file", disable=None, leave=False) as bar:
        for one in scored:
            results.add(one)
            for row in one.rows:
                if row.status != "ok":
                    tell(f"{format_path(row.path)}: {row.status}: {row.reason}")
            bar.update()


def _default_workers() -> int:
    """Half the cores this process may use: finding faces costs about as much as scoring them."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 2))
