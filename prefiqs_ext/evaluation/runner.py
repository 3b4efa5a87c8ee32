"""Run a whole evaluation: read the images, compute qualities and embeddings, compare faces, measure the errors.

This is what `prefiqs evaluate` does, for a notebook or a script::

    options = EvaluationOptions("people/", methods=("prefiqs", "norm"))
    evaluation = run_evaluation(options, "evaluation")  # the second argument is the folder to write to
    for line in evaluation.format():
        print(line)
    evaluation.results[0].comparison.curves["prefiqs"][0].area(0.3)
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from prefiqs_ext import methods
from prefiqs_ext.evaluation import results
from prefiqs_ext.evaluation.cache import Cache, FileCache, MemoryCache
from prefiqs_ext.evaluation.comparison import Protocol, check_data, compare
from prefiqs_ext.evaluation.datasets import Data, read_data
from prefiqs_ext.evaluation.datasets import paper_benchmarks as benchmarks
from prefiqs_ext.evaluation.datasets.duplicates import refuse_shared
from prefiqs_ext.evaluation.datasets.group_table import Groups, read_groups
from prefiqs_ext.evaluation.datasets.readers import read_embeddings, read_folders
from prefiqs_ext.evaluation.datasets.sources import Source, read_every_crop
from prefiqs_ext.evaluation.edc import FMRS, Mode
from prefiqs_ext.evaluation.face_network import FaceNetwork
from prefiqs_ext.evaluation.groups import check_groups, measure_groups
from prefiqs_ext.evaluation.image_set import VERSIONS, ImageSet
from prefiqs_ext.evaluation.inference import MethodTask, Scoring, embed_images
from prefiqs_ext.evaluation.score_files import ScoreFile
from prefiqs_ext.exceptions import FileAccessError, FileFormatError, InputError
from prefiqs_ext.models.fingerprint import hash_weights
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.utils.atomic_write import make_output_folder
from prefiqs_ext.utils.optional_packages import require_packages
from prefiqs_ext.utils.tell import Tell, tell_nobody
from prefiqs_ext.utils.text import describe_error, format_path

PAPER_FMRS = (1e-3, 1e-4)
_FAULTS_OF_DATA = (InputError, FileFormatError, FileAccessError)
"""What other data may not have. Too little memory, or weights or packages that are missing, would stop any data."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate, and how.

    Attributes:
        data: The images, in one of the layouts that :func:`~prefiqs_ext.evaluation.datasets.read_data` reads; with
            `paper`, a folder that holds any of the paper's eight benchmarks.
        network: The network that scores the faces, and compares them where no verifier is given.
        pruning: What is pruned for `prefiqs`, `prefiqs-recalibrated`, `calibrated` and `prefiqs+norm`.
        output: Which of several outputs of `network` is the embedding, as Scorer takes it.
        device: Where the Scorer computes: "cpu" or "cuda".
        dtype: What it computes in. None: float32 on the CPU, float16 on a GPU.
        methods: The qualities to compare, by the names of :mod:`prefiqs_ext.methods`.
        scores: Qualities that other tools have written.
        pairs: A list of the pairs to compare. None: each image with every other, or what the layout says.
        paper: Evaluate the paper's benchmarks, at the paper's FMRs.
        verifiers: Other networks that compare the faces, instead of `network`.
        embeddings: Saved embeddings that compare the faces: a .npy of [N, d], or a folder of .npy.
        fit_on: A folder of crops, with one folder per person, to fit methods on. None: the images themselves. In
            either case as many as each method makes use of are sampled.
        mode: The rule of the curves and areas, see :mod:`prefiqs_ext.evaluation.edc`. None: "crfiqa" with `paper`,
            "rethresholded" otherwise.
        max_discard: Where the curves end, as a share of the pairs.
        resamples: Draws for the intervals, which only the mode "rethresholded" has. 0: no intervals.
        seed: Of these draws, of the sample that methods are fitted on, and of methods that draw at random.
        groups: A table of the group of each image or person, see
            :func:`~prefiqs_ext.evaluation.datasets.group_table.read_groups`. None: no groups.
        group_by: The column of this table that has the groups. None: the only one that may.
        allow_duplicates: Take a file that two people have; otherwise it is refused.
        use_cache: Read from the cache folder what an earlier run computed, and keep there what this one computes.
    """

    data: str | PathLike[str]
    network: FaceNetwork = FaceNetwork()  # noqa: RUF009, frozen
    pruning: Pruning = Pruning()  # noqa: RUF009, frozen
    output: int | str | None = None
    device: str = "cpu"
    dtype: torch.dtype | None = None
    methods: Sequence[str] = ("prefiqs", "norm", "random")
    scores: Sequence[ScoreFile] = ()
    pairs: str | PathLike[str] | None = None
    paper: bool = False
    verifiers: Sequence[FaceNetwork] = ()
    embeddings: str | PathLike[str] | None = None
    fit_on: str | PathLike[str] | None = None
    mode: Mode | None = None
    max_discard: float = 0.95
    resamples: int = 500
    seed: int = 0
    groups: str | PathLike[str] | None = None
    group_by: str | None = None
    allow_duplicates: bool = False
    use_cache: bool = True

    def __post_init__(self) -> None:
        if not 0.3 <= self.max_discard <= 0.95:
            raise InputError(f"expected max_discard of 0.3 to 0.95, got {self.max_discard}")
        if self.resamples < 0 or self.seed < 0:
            raise InputError(f"expected resamples and seed of 0 or more, got {self.resamples} and {self.seed}")
        if self.mode not in (None, *get_args(Mode)):
            raise InputError(f"mode: expected one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        unknown = [name for name in self.methods if name not in methods.list_methods()]
        if unknown:
            raise InputError(f"methods: expected some of {', '.join(methods.list_methods())}, got {unknown[0]!r}")
        if not (self.methods or self.scores):
            raise InputError("expected at least one of methods or scores")
        _refuse_twins("methods", [*dict.fromkeys(self.methods), *(each.name for each in self.scores)])
        _refuse_twins("verifiers", [each.name for each in self.verifiers])
        if self.embeddings is not None and self.verifiers:
            raise InputError("embeddings and verifiers both say what compares the faces: leave one out")
        if self.paper and (self.pairs is not None or self.embeddings is not None):
            raise InputError("the paper's benchmarks have their own pairs: leave pairs and embeddings out")
        if self.group_by is not None and self.groups is None:
            raise InputError("group_by names a column of a table: expected groups too")
        if self.groups is not None and (self.paper or self.mode == "crfiqa"):
            raise InputError("groups are measured of one set, and not in mode crfiqa: leave groups or these out")

    @property
    def protocol(self) -> Protocol:
        """How errors are measured."""
        mode = self.mode or ("crfiqa" if self.paper else "rethresholded")
        return Protocol(mode, PAPER_FMRS if self.paper else FMRS, self.max_discard, self.resamples, self.seed)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation has found.

    Attributes:
        options: What was evaluated.
        results: One per set of images and network that compared them.
        failed: Why a benchmark could not be evaluated, by its name; empty without `paper`.
        networks: Of each network that was used, by name: "weights", the SHA-256 of its weights, and "preset".
    """

    options: EvaluationOptions
    results: list[results.Result]
    failed: dict[str, str]
    networks: dict[str, dict[str, object]]

    def format(self) -> list[str]:
        """Return the tables as lines of text; with `paper`, also the mean over the benchmarks."""
        protocol = self.options.protocol
        lines = [line for result in self.results for line in results.format_rows(result, protocol)]
        return lines + (results.format_averages(self.results, protocol) if self.options.paper else [])

    def write(self, folder: str | PathLike[str]) -> None:
        """Write edc.csv, differences.csv, edc.json, and each result as pictures, edc.png and edc.svg.

        If there are groups, also write groups.csv, groups.png and groups.svg.

        Raises:
            FileAccessError: the folder cannot be written.
        """
        facts = {
            "options": _record(self.options),
            "networks": self.networks,
            "versions": VERSIONS,
            "failed": self.failed,
        }
        make_output_folder(Path(folder))
        results.write_results(Path(folder), self.results, self.options.protocol, facts)


def run_evaluation(
    options: EvaluationOptions, folder: str | PathLike[str] | None = None, tell: Tell = tell_nobody
) -> Evaluation:
    """Run an evaluation. What is wrong with the options, lists or images is found before networks run, if it can be.

    Args:
        options: What to evaluate, and how.
        folder: Where to write the tables, curves and pictures; made before the work begins. None: nothing is written.
        tell: Gets lines about what is ignored: files that are no images, benchmarks that are absent or fail.

    Raises:
        InputError: the options, or a set of images, cannot be evaluated.
        FileFormatError: a file is not what was expected.
        FileAccessError: a file cannot be read, or the folder cannot be written.
        PrefiqsError: the machine lacks something: memory, weights or packages.

    With `paper`, a benchmark whose images are at fault while they are computed is named in `failed` instead, and the
    others are evaluated.
    """
    if folder is not None:
        require_packages("analysis", "matplotlib")
    sets = _find_benchmarks(options, tell) if options.paper else [_read_set(options, tell)]
    networks = _Networks(options, tell)
    for each in sets:
        try:
            check_data(each.data)
            networks.check(each.data.images)
        except _FAULTS_OF_DATA as error:
            raise InputError(f"{each.name}: {error}") from error
    if folder is not None:
        make_output_folder(Path(folder))
    found: list[results.Result] = []
    failed: dict[str, str] = {}
    for each in sets:
        try:
            found += _evaluate(each, networks, options)
        except _FAULTS_OF_DATA as error:
            if not options.paper:
                raise
            failed[each.name] = describe_error(error)
            tell(f"{each.name}: {failed[each.name]}")
    evaluation = Evaluation(options, found, failed, networks.describe())
    if found and folder is not None:
        evaluation.write(folder)
    return evaluation


class _Set(NamedTuple):
    """Images that are evaluated together, with the scores of other tools."""

    name: str
    data: Data
    scores: dict[str, NDArray[np.float64]]
    published: float | None = None
    """pAUC of the paper."""
    groups: Groups | None = None


def _read_set(options: EvaluationOptions, tell: Tell) -> _Set:
    data = read_data(options.data, options.pairs, tell)
    scores = {each.name: each.read(data.images) for each in options.scores}
    groups = None
    if options.groups is not None:
        check_groups(data)
        groups = read_groups(options.groups, data.images, options.data, options.group_by, tell)
    return _Set(format_path(Path(options.data).resolve().name), data, scores, groups=groups)


def _find_benchmarks(options: EvaluationOptions, tell: Tell) -> list[_Set]:
    """Find those of the paper's benchmarks that are there, and name the others."""
    root = format_path(str(options.data))
    found, absent = benchmarks.find_benchmarks(options.data)
    for missing, looked in absent:
        tell(f"{missing.name} is not there: looked for {', '.join(looked)}")
    if not found:
        raise InputError(f"{root}: expected one of the paper's benchmarks or more, found none")
    file = next((each.path for each in options.scores if os.path.isfile(each.path)), None)
    if file is not None and len(found) > 1:  # the images of two .bin have the same names
        raise InputError(
            f"scores: expected a folder with one file per benchmark, got the file {format_path(str(file))}"
        )
    sets, used = [], set()
    for each in found:
        benchmark, data = each.benchmark, each.load()
        scores = {}
        for tool in options.scores:
            own = tool.find(benchmark.dataset)
            if own is None:
                places = ", ".join(format_path(str(place)) for place in tool.list_places(benchmark.dataset))
                tell(f"{benchmark.name}: no scores of {tool.name}: looked for {places}")
            else:
                scores[tool.name] = replace(tool, path=own).read(data.images)
        if scores or options.methods:
            sets.append(_Set(benchmark.name, data, scores, benchmark.target))
        used |= set(scores)
    for tool in options.scores:
        if tool.name not in used:
            path = format_path(str(tool.path))
            raise InputError(f"scores of {tool.name}: no file for any of the benchmarks in {path}")
    return sets


def _evaluate(each: _Set, networks: _Networks, options: EvaluationOptions) -> list[results.Result]:
    sources = each.data.images
    images = networks.collect(sources)
    if not (options.paper or options.allow_duplicates):  # a benchmark is taken as it was published
        refuse_shared(each.data, images.contents)
    embeddings, qualities = networks.compute(images, sources)
    qualities |= each.scores
    found = []
    for verifier, own in embeddings.items():
        comparison = compare(each.data, own, qualities, options.protocol)
        # The paper's figures are those of one network that both scores and compares.
        published = each.published if verifier == options.network.name else None
        groups = each.groups and measure_groups(
            each.groups, each.data, own, qualities, comparison.curves, options.protocol
        )
        found.append(results.Result(each.name, verifier, len(sources), comparison, published, groups))
    return found


class _Networks:
    """The networks of an evaluation: what gives qualities, and what compares faces."""

    def __init__(self, options: EvaluationOptions, tell: Tell) -> None:
        self._options = options
        self._cache: Cache = FileCache() if options.use_cache else MemoryCache()
        self._verifiers = {each.name: each.load() for each in options.verifiers}
        self._samples: dict[int, ImageSet] = {}
        self._fit_sources = None if options.fit_on is None else read_folders(options.fit_on, tell).images

    @cached_property
    def _scoring(self) -> Scoring:
        """Loaded when it is first needed: with saved embeddings and scores no network is."""
        options = self._options
        network, preset = options.network.load()
        return Scoring(network, preset, options.pruning, options.device, options.dtype, options.output)

    def collect(self, sources: Sequence[Source]) -> ImageSet:
        """Make a set of images out of their sources."""
        return ImageSet(sources, self._cache)

    def check(self, sources: Sequence[Source]) -> None:
        """Read the first image at the size of each network. Raise an error that names it where it does not fit."""
        presets = [preset for _, preset in self._verifiers.values()]
        if self._options.methods or not (self._verifiers or self._options.embeddings):
            presets.append(self._scoring.preset)
        for preset in presets:
            next(read_every_crop(sources, preset.template))

    def compute(
        self, images: ImageSet, sources: Sequence[Source]
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32 | np.float64]]]:
        """Return embeddings [N, d] by the name of what compares, and the quality [N] by each method, HIGHER is better.

        What compares is saved embeddings, verifiers, or the scoring network.
        """
        options = self._options
        embeddings = {}  # first what saved embeddings or other networks may not fit, then what takes long
        if options.embeddings is not None:
            embeddings = {Path(options.embeddings).stem: read_embeddings(options.embeddings, sources)}
        elif self._verifiers:
            embeddings = {name: embed_images(images, *loaded) for name, loaded in self._verifiers.items()}
        if embeddings and not options.methods:
            return embeddings, {}
        scoring = self._scoring
        tasks = [self._make_task(name, sources) for name in dict.fromkeys(options.methods)]
        qualities, scored = scoring.compute_qualities(tasks, images, options.seed, embed=not embeddings)
        if not embeddings:
            assert scored is not None  # as `embed` says
            embeddings = {options.network.name: scored.embeddings}
        return embeddings, {**qualities}

    def _make_task(self, name: str, sources: Sequence[Source]) -> MethodTask:
        scoring, options = self._scoring, self._options
        method = methods.create(
            name,
            scoring.network,
            scoring.preset,
            pruning=scoring.pruning,
            seed=options.seed,
            output=options.output,
        )
        return MethodTask(method, self._sample(sources, method.fit_images))

    def _sample(self, sources: Sequence[Source], count: int) -> ImageSet:
        """Up to `count` images to fit a method on; the same ones for the same count."""
        if count not in self._samples:
            pool = list(sources if self._fit_sources is None else self._fit_sources)
            sampled = random.Random(self._options.seed).sample(pool, min(count, len(pool)))
            self._samples[count] = self.collect(sampled)
        return self._samples[count]

    def describe(self) -> dict[str, dict[str, object]]:
        """Return the weights' hash and the preset of each network that was loaded, by name."""
        loaded = dict(self._verifiers)
        if "_scoring" in vars(self):
            loaded[self._options.network.name] = self._scoring.network, self._scoring.preset
        return {
            name: {"weights": hash_weights(network), "preset": asdict(preset)}
            for name, (network, preset) in loaded.items()
        }


def _refuse_twins(what: str, names: Sequence[str]) -> None:
    twin = next((name for name in names if names.count(name) > 1), None)
    if twin is not None:
        raise InputError(f"two {what} are called {twin!r}")


def _record(options: EvaluationOptions) -> dict[str, object]:
    """The options as values that JSON, or str, can write."""
    values: dict[str, object] = {field.name: getattr(options, field.name) for field in fields(options)}
    return values | {
        "network": options.network.describe(),
        "pruning": asdict(options.pruning),
        "scores": [asdict(each) for each in options.scores],
        "verifiers": [each.describe() for each in options.verifiers],
        "mode": options.protocol.mode,
    }
