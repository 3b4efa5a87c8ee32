"""`prefiqs evaluate`: does a quality predict recognition errors, on one's own faces?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import click
import numpy as np
from numpy.typing import NDArray
from torch import nn

from prefiqs_ext import methods
from prefiqs_ext.cli.messages import tell
from prefiqs_ext.cli.people import allow_duplicates_option, no_cache_option
from prefiqs_ext.cli.score_files import given_scores, of_benchmark, qualities
from prefiqs_ext.cli.scoring import computing, load_subject, parse_preset, pruning, scoring_options
from prefiqs_ext.evaluation.cache import cached, in_memory
from prefiqs_ext.evaluation.compare import Comparison, Protocol, check, compare
from prefiqs_ext.evaluation.datasets import Data, benchmarks, read_data
from prefiqs_ext.evaluation.datasets.crops import Source, read_crops
from prefiqs_ext.evaluation.datasets.duplicates import refuse_shared
from prefiqs_ext.evaluation.datasets.readers import read_embeddings, read_folders
from prefiqs_ext.evaluation.edc import FMRS, Mode
from prefiqs_ext.evaluation.inference import VERSIONS, ImageSet, Scoring, embedded
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.models.fingerprint import hash_weights
from prefiqs_ext.models.loading import load
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.atomic_write import make_output_folder
from prefiqs_ext.utils.text import format_path

_PAPER_FMRS = (1e-3, 1e-4)
_FIT = 200  # images that a fitted method is given, sampled
_FILE = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("data", type=_FILE)
@click.option("--pairs", type=_FILE, help="What to compare, instead of every image with every other.")
@click.option("--protocol", type=click.Choice(["paper"]), help="paper: DATA holds the paper's eight benchmarks.")
@click.option(
    "--methods",
    default="prefiqs,norm,random",
    show_default=True,
    help=f"Qualities to compare, comma-separated: {', '.join(methods.NAMES)}. May be empty.",
)
@click.option(
    "--scores",
    multiple=True,
    metavar="NAME=FILE|DIR",
    help="Another tool's, lines `path score`; repeatable. With --protocol paper a folder with a file a benchmark: "
    "lfw/NAME.txt, lfw/NAME_lfw.txt or NAME_lfw.txt.",
)
@click.option("--lower-better", multiple=True, metavar="NAME", help="Of these --scores, lower means better.")
@click.option(
    "--verifier",
    multiple=True,
    metavar="[PRESET[@SIZE]:]NAME|FILE",
    help="Another network that compares the faces, a file with its preset; repeatable. [default: --model itself]",
)
@click.option("--embeddings", type=_FILE, help="Saved ones that compare the faces: .npy [N, d], or a folder of .npy.")
@click.option(
    "--fit-on",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help=f"A folder a person, of crops to fit methods on that need it. [default: DATA; {_FIT} images either way]",
)
@click.option(
    "--mode",
    type=click.Choice(get_args(Mode)),
    help="The rule of the curves and areas. [default: crfiqa with --protocol paper, else rethresholded]",
)
@click.option("--max-discard", type=click.FloatRange(0.3, 0.95), default=0.95, show_default=True)
@click.option(
    "--resamples",
    type=click.IntRange(0),
    default=500,
    show_default=True,
    help="Draws for intervals, with --mode rethresholded; 0: none.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, file_okay=False), default="evaluation", show_default=True
)
@allow_duplicates_option
@no_cache_option
@scoring_options
def evaluate(data: Path, output: Path, **options: Any) -> None:
    """Compare qualities by the errors that discarding the worst pairs of faces removes.

    DATA is a folder of aligned crops, a folder a person: every image is compared with every other, or those of --pairs
    (LFW's pairs.txt). Or a list of crops, a path a line, with --pairs (lines `path path 0|1`). Or CR-FIQA's folder
    quality_data/NAME. Or InsightFace's .bin, or its folder IJBC. With --protocol paper, a folder with any of LFW,
    AgeDB-30, CFP-FP, CALFW, CPLFW, Adience, XQLFW and IJB-C in the layouts in which they are published, at FMR 1e-3 and
    1e-4; those not found are named. One that fails midway is named and left out, and the exit code is 1.

    Prints a table, and writes edc.csv, differences.csv (between methods), edc.png, edc.svg and edc.json (all settings
    and curves) to the output folder. `low` and `high`, with --mode rethresholded only, bound, at 95 %, pAUC minus that
    of a useless quality, over draws of persons, or of pairs where they are listed: both below 0, and the method helps.
    An FMR below 1/n is not measured by n non-mated pairs: its rows say so. Needs matplotlib:
    `pip install prefiqs_ext[analysis]`.

    \b
    Examples:
      prefiqs evaluate people/ --methods prefiqs,grafiqs,norm,random --output evaluation
      prefiqs evaluate people/ --scores theirs=theirs.txt --verifier facexzoo
      prefiqs evaluate lfw/ --pairs pairs.txt
      prefiqs evaluate quality_data/XQLFW --scores CRFIQAL=quality_data/XQLFW/CRFIQAL.txt
      prefiqs evaluate benchmarks/ --protocol paper --model arcface.pth --preset arcface --verifier magface:magface.pth
    """
    try:
        from prefiqs_ext.evaluation import results
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is missing: pip install 'prefiqs_ext[analysis]'") from error
    names = _method_names(options)
    paper = options["protocol"] == "paper"
    settings = (options[name] for name in ("max_discard", "resamples", "seed"))
    options["mode"] = options["mode"] or ("crfiqa" if paper else "rethresholded")
    protocol = Protocol(options["mode"], _PAPER_FMRS if paper else FMRS, *settings)
    given = given_scores(options, names)
    if paper:
        sets = _benchmarks(data, options, given)
    else:
        faces = read_data(data, options["pairs"], tell)
        files = qualities(given, faces.images, options["lower_better"])
        sets = [_Set(format_path(data.resolve().name), faces, files)]
    networks = _Networks(options, names)
    for name, faces, _, _ in sets:
        try:
            check(faces)
            networks.check(faces.images)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error
    make_output_folder(output)
    found, failed = [], {}
    for name, faces, files, published in sets:
        try:
            comparisons = _compare(faces, networks, files, protocol, published_set=paper)
        except (ValueError, OSError) as error:
            if not paper:
                raise
            failed[name] = " ".join(str(error).split())
            tell(f"{name}: {failed[name]}")
            continue
        for verifier, comparison in comparisons.items():
            # The paper's figures are those of one network that both scores and compares.
            own = published if verifier == _label(options["model"]) else None
            found.append(results.Result(name, verifier, len(faces.images), comparison, own))
    if found:
        facts = {"options": options | {"data": data}, "networks": networks.facts(), "versions": VERSIONS}
        results.write(output, found, protocol, facts | {"failed": failed})
    for result in found:
        click.echo("\n".join(results.format_rows(result, protocol)))
    if paper:
        for line in results.averages(found, protocol):
            click.echo(line)
    if failed:
        raise InputError(f"not evaluated, for what is said above: {', '.join(failed)}")


def _compare(
    faces: Data,
    networks: _Networks,
    files: dict[str, NDArray[np.float64]],
    protocol: Protocol,
    *,
    published_set: bool,
) -> dict[str, Comparison]:
    """By verifier. published_set: taken as it was published, whatever is twice in it."""
    images = networks.image_set(faces.images)
    if not (published_set or networks.options["allow_duplicates"]):
        refuse_shared(faces, images.contents)
    # First what other networks or saved embeddings may not fit, then what takes long.
    embeddings = networks.embeddings(images, faces.images)
    found = networks.qualities(images, faces.images) | files
    return {verifier: compare(faces, each, found, protocol) for verifier, each in embeddings.items()}


class _Set(NamedTuple):
    name: str
    data: Data
    files: dict[str, NDArray[np.float64]]
    """Of --scores."""
    published: float | None = None
    """pAUC of the paper."""


def _benchmarks(data: Path, options: dict[str, Any], given: dict[str, Path]) -> list[_Set]:
    """Those of the paper's that are there; which are not is said."""
    if options["pairs"] or options["embeddings"]:
        raise click.UsageError("--protocol paper has sets of its own: leave --pairs and --embeddings out")
    found, absent = benchmarks.find(data)
    for missing, looked in absent:
        click.echo(f"{missing.name} is not there: looked for {', '.join(looked)}")
    if not found:
        raise InputError(f"{data}: expected one of the paper's benchmarks or more, found none")
    file = next((path for path in given.values() if path.is_file()), None)
    if file is not None and len(found) > 1:  # the images of two .bin have the same names
        raise click.UsageError(
            f"--scores: expected a folder with a file a benchmark, got the file {format_path(str(file))}"
        )
    sets, used = [], set()
    for each in found:
        benchmark, faces = each.benchmark, each.load()
        paths, missing_scores = of_benchmark(given, benchmark.dataset)
        for line in missing_scores:
            click.echo(f"{benchmark.name}: {line}")
        files = qualities(paths, faces.images, options["lower_better"])
        if files or options["methods"]:
            sets.append(_Set(benchmark.name, faces, files, benchmark.target))
        used |= set(files)
    unused = next((name for name in given if name not in used), None)
    if unused is not None:
        raise InputError(f"--scores {unused}: no file for any of the benchmarks in {format_path(str(given[unused]))}")
    return sets


class _Networks:
    """What gives qualities, and what compares faces."""

    def __init__(self, options: dict[str, Any], names: list[str]) -> None:
        if options["embeddings"] and options["verifier"]:
            raise click.UsageError("--embeddings and --verifier both say what compares the faces: leave one out")
        self.options = options
        self._names = names
        self._keep = in_memory() if options["no_cache"] else cached
        self._verifiers = _verifiers(options["verifier"])
        self._pool = None if options["fit_on"] is None else read_folders(options["fit_on"], tell).images

    def image_set(self, sources: Sequence[Source]) -> ImageSet:
        return ImageSet(sources, self._keep)

    @cached_property
    def _scoring(self) -> Scoring:
        scorer = computing(self.options) | {"output": self.options["output_name"]}
        return Scoring(*load_subject(self.options), pruning(self.options), scorer)

    def check(self, sources: Sequence[Source]) -> None:
        """That the first image fits all networks. ValueError naming it."""
        presets = [preset for _, preset in self._verifiers.values()]
        if self._names or not (self._verifiers or self.options["embeddings"]):
            presets.append(self._scoring.preset)
        for preset in presets:
            next(read_crops(sources, preset.size))

    def qualities(self, images: ImageSet, sources: Sequence[Source]) -> dict[str, NDArray[np.floating]]:
        """[N] of each method, higher = better."""
        found: dict[str, NDArray[np.floating]] = {}
        fit_on, seed = self._fit_on(sources), self.options["seed"]
        for name in self._names:
            scoring = self._scoring
            method = methods.create(
                name,
                scoring.network,
                scoring.preset,
                pruning=scoring.pruning,
                seed=seed,
                output=self.options["output_name"],
            )
            found[name] = scoring.quality(method, images, fit_on, seed)
        return found

    def embeddings(self, images: ImageSet, sources: Sequence[Source]) -> dict[str, NDArray[np.float32]]:
        """[N, d] by verifier: saved ones, those of other networks, or the scoring network's own."""
        saved = self.options["embeddings"]
        if saved is not None:
            return {saved.stem: read_embeddings(saved, sources)}
        if self._verifiers:
            return {name: embedded(images, *of) for name, of in self._verifiers.items()}
        return {_label(self.options["model"]): self._scoring.of(images).embeddings}

    def _fit_on(self, sources: Sequence[Source]) -> ImageSet:
        pool = list(sources if self._pool is None else self._pool)
        return self.image_set(random.Random(self.options["seed"]).sample(pool, min(_FIT, len(pool))))

    def facts(self) -> dict[str, Any]:
        """For the record."""
        weights = {name: hash_weights(network) for name, (network, _) in self._verifiers.items()}
        presets = {name: asdict(preset) for name, (_, preset) in self._verifiers.items()}
        if "_scoring" in vars(self):  # it was needed
            name = _label(self.options["model"])
            weights[name], presets[name] = self._scoring.weights, asdict(self._scoring.preset)
        return {"weights": weights, "presets": presets}


def _method_names(options: dict[str, Any]) -> list[str]:
    names = list(filter(None, options["methods"].split(",")))
    unknown = [name for name in names if name not in methods.NAMES]
    if unknown:
        raise click.UsageError(f"--methods: expected some of {', '.join(methods.NAMES)}, got {unknown[0]!r}")
    if not names and not options["scores"]:
        raise click.UsageError("expected at least one of --methods or --scores")
    return list(dict.fromkeys(names))


def _verifiers(given: tuple[str, ...]) -> dict[str, tuple[nn.Module, Preset]]:
    """By the name that tables give them."""
    found: dict[str, tuple[nn.Module, Preset]] = {}
    for text in given:
        name, colon, model = text.partition(":")
        said = parse_preset(name) if colon else None
        model = text if said is None else model
        if said is None and Path(model).exists():
            raise click.UsageError(
                f"--verifier {text}: the file cannot tell the input its network wants: PRESET:{text}"
            )
        network, own = load(model, said)
        preset = said or own
        assert preset is not None  # a built-in's own
        if _label(model) in found:
            raise click.UsageError(f"two verifiers are called {_label(model)!r}")
        found[_label(model)] = network, preset
    return found


def _label(model: str) -> str:
    return format_path(Path(model).stem)
