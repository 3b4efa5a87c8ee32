"""`prefiqs evaluate`: does a quality predict recognition errors, on one's own faces?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .. import __version__, methods
from ..evaluation.compare import Protocol, compare
from ..evaluation.crops import Source, name_of
from ..evaluation.data import read_data
from ..evaluation.passes import ImageSet, embedded, quality, scored
from ..evaluation.readers import read_folders, read_scores
from ..models.preset import PRESETS, Preset
from ..network import load_network
from ..scorer import Scorer
from ..settings import hash_weights
from .scoring import check_scoring, make_scorer, pruning, scoring_options

_FIT = 200  # images that a fitted method is given, sampled
_FMRS = (1e-2, 1e-3, 1e-4)
_FILE = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("data", type=_FILE)
@click.option("--pairs", type=_FILE, help="What to compare, instead of every image with every other.")
@click.option("--methods", default="prefiqs,norm,random", show_default=True, help="Comma-separated; may be empty.")
@click.option("--scores", multiple=True, metavar="NAME=FILE", help="Another tool's, lines `path score`; repeatable.")
@click.option("--lower-better", multiple=True, metavar="NAME", help="Of these --scores, lower means better.")
@click.option(
    "--verifier",
    multiple=True,
    metavar="[PRESET:]NAME|FILE",
    help="Another network that compares the faces; repeatable. [default: --model itself]",
)
@click.option(
    "--fit-on",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help=f"A folder a person, of crops to fit methods on that need it. [default: DATA; {_FIT} images either way]",
)
@click.option(
    "--mode", type=click.Choice(["fraunhofer", "dasec", "normalised"]), default="fraunhofer", show_default=True
)
@click.option("--max-discard", type=click.FloatRange(0.3, 0.95), default=0.95, show_default=True)
@click.option(
    "--resamples", type=click.IntRange(0), default=500, show_default=True, help="Draws for intervals; 0: none."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, file_okay=False), default="evaluation", show_default=True
)
@scoring_options
def evaluate(data: Path, pairs: Path | None, output: Path, **options: Any) -> None:
    """Compare qualities by the errors that discarding the worst pairs of faces removes.

    DATA is a folder of aligned crops, a folder a person: every image is compared with every other, or those of --pairs
    (LFW's pairs.txt). Or a list of crops, a path a line, with --pairs (lines `path path 0|1`). Or InsightFace's .bin.

    Prints a table, and writes edc.csv, differences.csv (between methods), edc.png, edc.svg and edc.json (all settings
    and curves) to the output folder. `low` and `high` bound, at 95 %, pAUC minus that of a useless quality, over draws
    of persons, or of pairs where they are listed: both below 0, and the method helps. Intervals are by the fraunhofer
    mode, whatever the mode. Needs matplotlib: `pip install prefiqs_ext[analysis]`.

    \b
    Examples:
      prefiqs evaluate people/ --methods prefiqs,grafiqs,norm,random --output evaluation
      prefiqs evaluate people/ --scores theirs=theirs.txt --verifier facexzoo
      prefiqs evaluate lfw/ --pairs pairs.txt
    """
    try:
        from ..evaluation import results
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is missing: pip install 'prefiqs_ext[analysis]'") from error
    check_scoring(options)
    names = _method_names(options)
    protocol = Protocol(options["mode"], _FMRS, options["max_discard"], options["resamples"], options["seed"])
    faces = read_data(data, pairs)
    files = _score_files(options, names, faces.images)
    verifiers = _verifiers(options["verifier"])
    output.mkdir(parents=True, exist_ok=True)
    network, own = load_network(options["model"], options["preset"])
    scorer = make_scorer(options | {"model": network, "preset": options["preset"] or own})
    images, fit_on = ImageSet(faces.images), ImageSet(_fit_on(options, faces.images))
    qualities: dict[str, NDArray[np.floating]] = {}
    for name in names:
        method = methods.create(name, network, _preset(scorer), pruning=pruning(options), seed=options["seed"])
        qualities[name] = quality(method, images, fit_on, scorer, options["seed"])
    qualities |= files
    embeddings = {name: embedded(images, *of) for name, of in verifiers.items()}
    if not verifiers:
        embeddings = {_label(options["model"]): scored(images, scorer).embeddings}
    found = [
        results.Result(data.name, verifier, len(faces.images), compare(faces, theirs, qualities, protocol))
        for verifier, theirs in embeddings.items()
    ]
    facts = {
        "versions": {"prefiqs_ext": __version__, "torch": torch.__version__, "numpy": np.__version__},
        "weights": {_label(options["model"]): scorer.settings.model_sha256}
        | {name: hash_weights(of) for name, (of, _) in verifiers.items()},
        "preset": asdict(_preset(scorer)),
        "images": images.hash,
        "fitted on": str(options["fit_on"] or data),
        "options": options,
    }
    results.write(output, found, protocol, facts)
    for result in found:
        click.echo(result.title)
        click.echo("  ".join(f"{column:>10}" for column in results.COLUMNS[2:]))
        for row in result.rows(protocol):
            click.echo("  ".join(f"{_short(value):>10}" for value in row[2:]))


def _method_names(options: dict[str, Any]) -> list[str]:
    names = list(filter(None, options["methods"].split(",")))
    unknown = [name for name in names if name not in methods.NAMES]
    if unknown:
        raise click.UsageError(f"--methods: expected some of {', '.join(methods.NAMES)}, got {unknown[0]!r}")
    if not names and not options["scores"]:
        raise click.UsageError("expected at least one of --methods or --scores")
    return list(dict.fromkeys(names))


def _score_files(options: dict[str, Any], names: list[str], images: Sequence[Source]) -> dict[str, NDArray[np.float64]]:
    qualities = {}
    for given in options["scores"]:
        name, equals, file = given.partition("=")
        if not (name and equals and file):
            raise click.UsageError(f"expected --scores NAME=FILE, got {given!r}")
        if name in qualities or name in names:
            raise click.UsageError(f"two methods are called {name!r}")
        scores = read_scores(file, list(map(name_of, images)))
        qualities[name] = -scores if name in options["lower_better"] else scores
    unknown = set(options["lower_better"]) - set(qualities)
    if unknown:
        raise click.UsageError(f"--lower-better {sorted(unknown)[0]}: no --scores of that name")
    return qualities


def _verifiers(given: tuple[str, ...]) -> dict[str, tuple[nn.Module, Preset]]:
    """By the name that tables give them."""
    found: dict[str, tuple[nn.Module, Preset]] = {}
    for text in given:
        name, colon, model = text.partition(":")
        said = name if colon and name in PRESETS else None
        model = text if said is None else model
        network, own = load_network(model, said)
        preset = own if said is None else Preset.name_of(said)
        if preset is None:
            raise click.UsageError(
                f"--verifier {text}: the file cannot tell the input its network wants: PRESET:{text}"
            )
        if _label(model) in found:
            raise click.UsageError(f"two verifiers are called {_label(model)!r}")
        found[_label(model)] = network, preset
    return found


def _fit_on(options: dict[str, Any], images: Sequence[Source]) -> Sequence[Source]:
    pool = images if options["fit_on"] is None else read_folders(options["fit_on"]).images
    return random.Random(options["seed"]).sample(list(pool), min(_FIT, len(pool)))


def _preset(scorer: Scorer) -> Preset:
    assert scorer.preset is not None  # check_scoring
    return scorer.preset


def _label(model: str) -> str:
    return Path(model).stem


def _short(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"
