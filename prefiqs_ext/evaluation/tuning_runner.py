"""Try prunings of a network on one's own faces, and recommend one by the rule of tuning.py.

This is what `prefiqs tune` does, for a notebook or a script::

    tuning = run_tuning(TuningOptions("people/"), "tune")  # the second argument is the folder to write to
    tuning.recommended  # a Pruning
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import product
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from prefiqs_ext.evaluation.cache import load_or_compute, make_memory_cache
from prefiqs_ext.evaluation.datasets.duplicates import refuse_shared
from prefiqs_ext.evaluation.datasets.readers import read_folders
from prefiqs_ext.evaluation.edc import FMRS, LIMIT, TOO_FEW
from prefiqs_ext.evaluation.face_network import FaceNetwork
from prefiqs_ext.evaluation.inference import VERSIONS, ImageSet, Scoring
from prefiqs_ext.evaluation.tuning import (
    FMR,
    HeldOutAreas,
    Rule,
    TuningResult,
    assign_folds,
    measure_held_out,
    tune_settings,
)
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.methods.combined import ZScores, log_distance
from prefiqs_ext.models.fingerprint import hash_weights
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.settings import Settings
from prefiqs_ext.utils.atomic_write import make_output_folder, write_folder
from prefiqs_ext.utils.tell import Tell, tell_nobody
from prefiqs_ext.utils.text import format_csv

TRIED_SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
COLUMNS = ("sparsity", "scope", "layers", *(f"pauc_{fmr:g}" for fmr in FMRS), "held_out", "chosen")
_D, _NORM = "D", "norm"


@dataclass(frozen=True)
class TuningOptions:
    """What to tune, and on which faces.

    Attributes:
        data: A folder of aligned crops, with one folder per person.
        network: The network whose pruning is chosen.
        output: Which of several outputs of the network is the embedding, as Scorer takes it.
        folds: The number of parts that the people are divided into.
        resamples: Draws of persons for the intervals.
        seed: Of the folds and of these draws.
        allow_duplicates: Take a file that two people have; otherwise it is refused.
        use_cache: Read from the cache folder what an earlier run computed, and keep there what this one computes.
    """

    data: str | PathLike[str]
    network: FaceNetwork = FaceNetwork()  # noqa: RUF009, frozen
    output: int | str | None = None
    folds: int = 5
    resamples: int = 500
    seed: int = 0
    allow_duplicates: bool = False
    use_cache: bool = True

    def __post_init__(self) -> None:
        if self.resamples < 2 or self.seed < 0:
            raise InputError(f"expected resamples >= 2 and seed >= 0, got {self.resamples} and {self.seed}")


@dataclass(frozen=True)
class Tuning:
    """What tuning has found.

    Attributes:
        options: What was tuned.
        prunings: Those that were tried, by name; the default first.
        tuned: The areas of each, and what the rule makes of them.
        mixed: The areas of D, the embedding norm, and both together, on people that the mixture was not fitted on.
        settings: Those of the network with the recommended pruning.
        images: SHA-256 of the images' contents.
    """

    options: TuningOptions
    prunings: dict[str, Pruning]
    tuned: TuningResult
    mixed: HeldOutAreas
    settings: Settings
    images: str

    @property
    def recommended(self) -> Pruning:
        """The pruning to use: the default, unless another is shown to be better."""
        return self.settings.pruning

    def make_rows(self) -> list[list[object]]:
        """Return one row per pruning, by COLUMNS."""
        return [
            [
                pruning.sparsity,
                pruning.scope,
                pruning.layers,
                *_compute_areas(name, self.tuned).values(),
                float(self.tuned.testing[name].mean()),
                self.tuned.chosen.count(name),
            ]
            for name, pruning in self.prunings.items()
        ]

    def format(self) -> list[str]:
        """Return the table, the choices and the intervals as lines of text."""
        tuned, mixed = self.tuned, self.mixed
        lines = ["  ".join(f"{column:>13}" for column in COLUMNS)]
        for row in self.make_rows():
            cells = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in row)
            lines.append("  ".join(f"{cell:>13}" for cell in cells))
        default = next(iter(self.prunings))
        for index, name in enumerate(tuned.chosen):
            own, of_default = tuned.testing[name][index], tuned.testing[default][index]
            lines.append(f"fold {index + 1}: {name} chosen; held out {own:.3f}, the default {of_default:.3f}")
        verdict = "the default is kept" if tuned.recommended == default else f"{tuned.recommended} is recommended"
        lines.append(f"Held out at FMR {FMR:g}, chosen - default is {_format_interval(tuned.difference)}: {verdict}.")
        lines += [f"{name}: held out {values.mean():.3f}" for name, values in mixed.pauc.items()]
        for mixture, single in _list_contrasts(mixed.pauc):
            lines.append(f"{mixture}, minus {single}: {_format_interval(mixed.difference(mixture, single))}")
        return lines

    def write(self, folder: str | PathLike[str]) -> None:
        """Write tune.csv, tune.json, and settings.json for `prefiqs score --settings`.

        Raises:
            FileAccessError: the folder cannot be written.
        """
        make_output_folder(Path(folder))
        contents = {
            "tune.csv": format_csv(COLUMNS, self.make_rows()),
            "tune.json": json.dumps(self._to_dict(), indent=1, default=str).encode(),
        }
        write_folder(Path(folder), contents)
        self.settings.save(Path(folder) / "settings.json")

    def _to_dict(self) -> dict[str, object]:
        tuned, mixed, options, preset = self.tuned, self.mixed, self.options, self.settings.preset
        return {
            "versions": VERSIONS,
            "weights": self.settings.model_sha256,
            "preset": None if preset is None else asdict(preset),
            "images": self.images,
            "options": {
                "data": str(options.data),
                "model": self.settings.model,
                "output": options.output,
                "folds": options.folds,
                "resamples": options.resamples,
                "seed": options.seed,
            },
            "fmr": FMR,
            "settings": {
                name: {
                    "overall": _compute_areas(name, tuned),
                    "training": tuned.training[name].tolist(),
                    "held_out": tuned.testing[name].tolist(),
                }
                for name in tuned.overall
            },
            "chosen": tuned.chosen,
            "difference": tuned.difference,
            "recommended": tuned.recommended,
            "together": {
                "held_out": {name: values.tolist() for name, values in mixed.pauc.items()},
                "differences": {f"{a} - {b}": mixed.difference(a, b) for a, b in _list_contrasts(mixed.pauc)},
            },
        }


def run_tuning(options: TuningOptions, folder: str | PathLike[str] | None = None, tell: Tell = tell_nobody) -> Tuning:
    """Score the images by every pruning, and choose by the rule.

    Args:
        options: What to tune, and on which faces.
        folder: Where to write the tables and settings; made before the work begins. None: nothing is written.
        tell: Gets a line that counts the files that are no images.

    Raises:
        PrefiqsError: the images are too few or cannot be used, or the network does not take them.
    """
    data = read_folders(options.data, tell)
    fold = assign_folds(data.identities, options.folds, options.seed)
    network, preset = options.network.load()
    images = ImageSet(data.images, load_or_compute if options.use_cache else make_memory_cache())
    if not options.allow_duplicates:
        refuse_shared(data, images.contents)
    if folder is not None:
        make_output_folder(Path(folder))
    prunings = list_prunings(network)
    bar = tqdm(prunings.items(), unit="setting", disable=None, leave=False)
    scored = {
        name: Scoring(network, preset, pruning, output=options.output).score_images(images) for name, pruning in bar
    }
    default = scored[next(iter(prunings))]
    faces = default.embeddings, data.identities, fold
    resamples, seed = options.resamples, options.seed
    qualities = {name: -each.distance.numpy() for name, each in scored.items()}
    tuned = tune_settings(*faces, qualities, resamples=resamples, seed=seed)
    rules = _make_rules(default.distance.numpy(), default.norm.numpy())
    mixed = measure_held_out(*faces, rules, resamples=resamples, seed=seed)
    settings = Settings(
        None if isinstance(options.network.model, nn.Module) else str(options.network.model),
        hash_weights(network),
        preset,
        prunings[tuned.recommended],
        "cpu",
        "float32",
        options.output,
    )
    tuning = Tuning(options, prunings, tuned, mixed, settings, images.hash)
    if folder is not None:
        tuning.write(folder)
    return tuning


def list_prunings(network: nn.Module) -> dict[str, Pruning]:
    """List the prunings that differ for this network, by name; the default first."""
    has_linear = any(isinstance(module, nn.Linear) for module in network.modules())
    layers = ("conv", "conv+linear") if has_linear else ("conv",)
    prunings = [
        Pruning(sparsity=sparsity, scope=scope, layers=kind)  # type: ignore[arg-type]
        for sparsity, scope, kind in product(TRIED_SPARSITIES, ("layer", "global"), layers)
    ]
    prunings.sort(key=lambda pruning: pruning != Pruning())
    return {f"{pruning.sparsity:g} {pruning.scope} {pruning.layers}": pruning for pruning in prunings}


def _make_rules(distance: NDArray[np.float32], norm: NDArray[np.float32]) -> dict[str, Rule]:
    """Make the qualities that are compared: D by the default pruning, the norm, and both together.

    D goes into the mixture as it is and as its logarithm. A network that normalises its embeddings itself has no norm
    to speak of, so D is alone there.
    """
    rules: dict[str, Rule] = {_D: lambda _: -distance}
    try:
        ZScores.fit(distance, norm)
    except ValueError:
        return rules

    def mix(distances: NDArray[np.float32 | np.float64]) -> Rule:
        return lambda seen: ZScores.fit(distances[seen], norm[seen]).quality(distances, norm)

    return rules | {_NORM: lambda _: norm, "log D + norm": mix(log_distance(distance)), "D + norm": mix(distance)}


def _compute_areas(name: str, tuned: TuningResult) -> dict[str, float | str]:
    """Return the pAUC over all people by FMR, or that there are too few pairs for it."""
    return {
        f"{fmr:g}": curve.area(LIMIT) if curve.measurable else TOO_FEW for fmr, curve in tuned.overall[name].items()
    }


def _list_contrasts(names: Iterable[str]) -> list[tuple[str, str]]:
    """List each mixture with each of what it is mixed of."""
    mixtures = [name for name in names if name not in (_D, _NORM)]
    return [(mixture, single) for mixture in mixtures for single in (_D, _NORM)]


def _format_interval(difference: tuple[float, float, float]) -> str:
    mean, low, high = difference
    return f"{mean:.3f} (95 % {low:.3f} to {high:.3f})"
