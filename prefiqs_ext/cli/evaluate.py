"""`prefiqs evaluate`: does a quality predict recognition errors, on one's own faces?"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from .. import __version__, methods
from ..evaluation.all_pairs import all_pairs
from ..evaluation.bootstrap import Resampled, bootstrap
from ..evaluation.cache import cached, hash_files
from ..evaluation.edc import RATIOS, Curve
from ..evaluation.readers import read_folders, read_scores
from ..files.pipeline import read_crops, score_files
from ..files.whole import whole_file
from ..network import load_network
from ..scorer import Scorer
from .scoring import check_scoring, make_scorer, pruning, record, scoring_options

_FMRS = (1e-2, 1e-3, 1e-4)
_LIMIT = 0.3  # pAUC's
_DASEC_LIMIT = 0.2
_COLUMNS = ("method", "mode", "fmr", "fnmr", "pauc", "auc", "useless", "low", "high")


@click.command()
@click.argument("data", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--methods", default="prefiqs,norm,random", show_default=True, help="Comma-separated; may be empty.")
@click.option("--scores", multiple=True, metavar="NAME=FILE", help="Another tool's, lines `path score`; repeatable.")
@click.option("--lower-better", multiple=True, metavar="NAME", help="Of these --scores, lower means better.")
@click.option(
    "--mode", type=click.Choice(["fraunhofer", "dasec", "normalised"]), default="fraunhofer", show_default=True
)
@click.option("--max-discard", type=click.FloatRange(0.3, 0.95), default=0.95, show_default=True)
@click.option("--resamples", type=click.IntRange(2), default=500, show_default=True, help="Of persons, for intervals.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, file_okay=False), default="evaluation", show_default=True
)
@scoring_options
def evaluate(data: Path, output: Path, **options: Any) -> None:
    """Compare qualities by the errors that discarding the worst pairs of faces removes.

    DATA has a folder a person, of aligned crops. Compares every image with every other. Prints a table, and writes
    edc.csv, edc.png, edc.svg and edc.json (settings and curves) to the output folder. `low` and `high` bound, at 95 %,
    pAUC minus that of a useless quality, over draws of persons: both below 0, and the method helps. Intervals are by
    the fraunhofer mode, whatever the mode. Needs matplotlib: `pip install prefiqs_ext[analysis]`.

    \b
    Example:
      prefiqs evaluate crops/ --scores sharpness=sharpness.txt --output evaluation
    """
    try:
        from ..evaluation.plot import draw
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is missing: pip install 'prefiqs_ext[analysis]'") from error
    check_scoring(options)
    images = read_folders(data)
    files = _score_files(options, images.paths)
    output.mkdir(parents=True, exist_ok=True)
    scorer = make_scorer(options)
    network, _ = load_network(options["model"], options["preset"])
    assert scorer.preset is not None
    facts = {
        "version": [__version__, torch.__version__, np.__version__],
        "weights": scorer.settings.model_sha256,
        "preset": asdict(scorer.preset),
        "images": hash_files(images.paths),
        "scoring": record(options),
    }
    n = len(images.paths)
    embeddings = cached(facts, (n, None), lambda: _embeddings(images.paths, scorer))
    qualities: dict[str, NDArray[Any]] = {**_by_methods(options, images.paths, network, scorer, facts), **files}
    if not qualities:
        raise click.UsageError("expected at least one of --methods or --scores")
    ratios = RATIOS[options["max_discard"] + 1e-9 >= RATIOS]
    settings: dict[str, Any] = {"fmrs": _FMRS, "modes": (options["mode"],), "ratios": ratios}
    curves = {name: all_pairs(embeddings, images.identities, q, **settings) for name, q in qualities.items()}
    draws = {
        fmr: bootstrap(
            embeddings, images.identities, qualities, fmr=fmr, resamples=options["resamples"], seed=options["seed"]
        )
        for fmr in _FMRS
    }
    rows = [
        [name, *_numbers(curve, float(ratios[-1])), *_against_useless(draws[curve.fmr], name)]
        for name, of_method in curves.items()
        for curve in of_method
    ]
    pairs = next(iter(curves.values()))[0]
    title = f"{options['model']}, {n} images, {pairs.mated} mated and {pairs.non_mated} non-mated pairs"
    _write(output, rows, curves, facts | {"options": options, "title": title}, title, draw)
    click.echo(title)
    click.echo("  ".join(f"{column:>10}" for column in _COLUMNS))
    for row in rows:
        click.echo("  ".join(f"{_short(value):>10}" for value in row))


def _score_files(options: dict[str, Any], paths: list[str]) -> dict[str, NDArray[np.float64]]:
    qualities = {}
    for given in options["scores"]:
        name, equals, file = given.partition("=")
        if not (name and equals and file):
            raise click.UsageError(f"expected --scores NAME=FILE, got {given!r}")
        if name in qualities or name in options["methods"].split(","):
            raise click.UsageError(f"two methods are called {name!r}")
        scores = read_scores(file, paths)
        qualities[name] = -scores if name in options["lower_better"] else scores
    unknown = set(options["lower_better"]) - set(qualities)
    if unknown:
        raise click.UsageError(f"--lower-better {sorted(unknown)[0]}: no --scores of that name")
    return qualities


def _embeddings(paths: list[str], scorer: Scorer) -> NDArray[np.float32]:
    found = []
    for scored in score_files(paths, scorer, aligned=True):
        if scored.rows[0].status != "ok":
            raise ValueError(f"{scored.path}: {scored.rows[0].reason}; take it out of the folder")
        found.append(scored.embeddings[0].numpy())
    return np.stack(found)


def _by_methods(
    options: dict[str, Any], paths: list[str], network: torch.nn.Module, scorer: Scorer, facts: dict[str, Any]
) -> dict[str, NDArray[np.float32]]:
    """Qualities, higher = better; a method that is fitted is fitted on the same images."""
    names = list(filter(None, options["methods"].split(",")))
    if not names:
        return {}
    unknown = [name for name in names if name not in methods.NAMES]
    if unknown:
        raise click.UsageError(f"--methods: expected some of {', '.join(methods.NAMES)}, got {unknown[0]!r}")
    preset = scorer.preset
    assert preset is not None
    crops: list[torch.Tensor] = []
    qualities = {}
    for name in names:
        method = methods.create(name, network, preset, pruning=pruning(options), seed=options["seed"])

        def compute(method: Any = method) -> Any:
            if not crops:
                crops.append(torch.stack(list(read_crops(paths, preset.size, aligned=True))))
            if method.needs_fit:
                method.fit(crops[0])
            return method.score(crops[0])

        scores = cached(facts | {"method": name, "seed": options["seed"]}, (len(paths),), compute)
        qualities[name] = scores if method.higher_is_better else -scores
    return qualities


def _numbers(curve: Curve, end: float) -> list[Any]:
    """mode to auc. Areas are None in the normalised mode where no pair fails: there is nothing to divide by."""
    areas: list[float | None] = [None, None]
    if curve.mode != "normalised" or curve.fnmr[0] > 0:
        areas = [curve.area(_DASEC_LIMIT if curve.mode == "dasec" else _LIMIT), curve.area(end)]
    return [curve.mode, curve.fmr, float(curve.fnmr[0]), *areas]


def _against_useless(draws: Resampled, name: str) -> list[float]:
    return [float(draws.useless.mean()), *draws.interval(name)]


def _write(
    output: Path,
    rows: list[list[Any]],
    curves: dict[str, list[Curve]],
    facts: dict[str, Any],
    title: str,
    draw: Any,
) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([_COLUMNS, *rows])
    drawn = {
        name: [
            {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in curve._asdict().items()}
            for curve in of_method
        ]
        for name, of_method in curves.items()
    }
    text = json.dumps(facts | {"curves": drawn}, indent=1, default=str)
    contents = {"edc.csv": table.getvalue().encode(), "edc.json": text.encode()}
    for form in ("png", "svg"):
        picture = io.BytesIO()
        draw(curves, title, picture, form)
        contents[f"edc.{form}"] = picture.getvalue()
    for name, content in contents.items():
        with whole_file(str(output / name)) as file:
            file.write(content)


def _short(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"
