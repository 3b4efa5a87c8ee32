"""Try prunings of a network on degraded copies of one's own faces, and recommend one by the rule of tuning.py.

This is what `prefiqs tune` does, for a notebook or a script::

    tuning = run_tuning(crops, "sface")
    tuning.write("tune")
    scorer = Scorer.from_settings(tuning.recommended)
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from itertools import product
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from prefiqs_ext.analysis.tuning import Choice, choose_setting
from prefiqs_ext.calibration.copies import check_face_count, degrade_faces, draw_faces, measure
from prefiqs_ext.calibration.fit import measure_area
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.inputs import Colour, ImageInput
from prefiqs_ext.models.loading import resolve_network
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.output import ScoreOutput
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.settings import Settings
from prefiqs_ext.utils.atomic_write import make_output_folder, write_folder
from prefiqs_ext.utils.check_arguments import check_count
from prefiqs_ext.utils.tables import Cell, format_table
from prefiqs_ext.utils.text import format_csv
from prefiqs_ext.version import __version__

MOST_FACES = 500
LEAST_FACES = 40  # twenty in each half, from which faces are drawn
TRIED_SPARSITIES = (0.02, 0.05, 0.1, 0.2, 0.4)
COLUMNS = ("recalibrated", "sparsity", "scope", "layers", "area", "chosen", "held_out")


class Setting(NamedTuple):
    """One way to prune that is tried."""

    recalibrated: bool
    pruning: Pruning

    def __str__(self) -> str:
        """Its name, such as "recalibrated 0.02 layer conv"."""
        kind = "recalibrated" if self.recalibrated else "plain"
        return f"{kind} {self.pruning.sparsity:g} {self.pruning.scope} {self.pruning.layers}"


@dataclass(frozen=True)
class Tuning:
    """What tuning has found. Areas are in degrees, LOWER is better.

    Attributes:
        tried: The settings of each pruning that was tried, by name, with its recalibration; the default first.
        choice: The area of each, and what the rule makes of them.
        norm: The area where copies are discarded by the norm of the embedding instead of D.
        unranked: The area where they are discarded at random: the mean angle of all copies.
        faces: The number of faces.
        copies: The number of their degraded copies.
        resamples: The number of draws for the interval.
        seed: Of the degradations and of these draws.
    """

    tried: dict[str, Settings]
    choice: Choice
    norm: float
    unranked: float
    faces: int
    copies: int
    resamples: int
    seed: int

    @property
    def recommended(self) -> Settings:
        """Those to score with: of the default, plain D, unless another setting is shown to be better."""
        return self.tried[self.choice.recommended]

    def make_rows(self) -> list[list[Cell]]:
        """Return one row per setting, by COLUMNS. `chosen` counts halves; `held_out` is empty if there is none."""
        rows: list[list[Cell]] = []
        for name, settings in self.tried.items():
            pruning, area = settings.pruning, self.choice.areas[name]
            held_out = [a for own, a in zip(self.choice.chosen, self.choice.held_out, strict=True) if own == name]
            recalibrated = "no" if settings.recalibration is None else "yes"
            mean = float(np.mean(held_out)) if held_out else ""
            rows.append([recalibrated, pruning.sparsity, pruning.scope, str(pruning.layers), area, len(held_out), mean])
        return rows

    def format(self) -> list[str]:
        """Return the table, the choices and the interval as lines of text."""
        choice = self.choice
        lines = format_table(COLUMNS, self.make_rows(), floats=".2f")
        lines.append(f"area by the embedding norm {self.norm:.2f}, at random {self.unranked:.2f}")
        for half, name in enumerate(choice.chosen):
            own, of_default = choice.held_out[half], choice.held_out_default[half]
            lines.append(f"half {half + 1}: {name} chosen; on the other half {own:.2f}, the default {of_default:.2f}")
        mean, low, high = choice.difference
        is_default = choice.recommended == next(iter(self.tried))
        verdict = "the default is kept" if is_default else f"{choice.recommended} is recommended"
        lines.append(f"Held out, chosen - default is {mean:.2f} degrees (95 % {low:.2f} to {high:.2f}): {verdict}.")
        return lines

    def write(self, folder: str | PathLike[str]) -> None:
        """Write tune.csv, tune.json, and settings.json for `prefiqs score --settings`.

        Raises:
            FileAccessError: The folder cannot be written.
        """
        settings = self.recommended
        everything = {
            "prefiqs_ext": __version__,
            "torch": torch.__version__,
            "model": settings.model,
            "weights": settings.model_sha256,
            "preset": settings.preset and asdict(settings.preset),
            "output": settings.output,
            "faces": self.faces,
            "copies": self.copies,
            "resamples": self.resamples,
            "seed": self.seed,
            "norm": self.norm,
            "unranked": self.unranked,
            **self.choice._asdict(),
        }
        contents = {
            "tune.csv": format_csv(COLUMNS, self.make_rows()),
            "tune.json": json.dumps(everything, indent=1).encode(),
            "settings.json": settings.to_json().encode(),
        }
        make_output_folder(Path(folder))
        write_folder(Path(folder), contents)


def run_tuning(
    faces: ImageInput,
    model: str | PathLike[str] | nn.Module = "sface",
    *,
    preset: Preset | str | None = None,
    output: int | str | None = None,
    colour: Colour = "rgb",
    resamples: int = 500,
    seed: int = 0,
) -> Tuning:
    """Score degraded copies of faces by every pruning, and choose by the rule.

    It computes on the CPU in float32: at small sparsities D is about as small as what half precision rounds away.

    Args:
        faces: 40 or more different crops, mostly good ones, as :meth:`Scorer.forward` takes images. Of more than 500,
            as many are drawn evenly.
        model: As for :class:`Scorer`, like preset and output.
        preset: The input that the network was trained on.
        output: Which of several outputs is the embedding.
        colour: "bgr" for tensors and arrays whose first channel is blue.
        resamples: Draws of faces for the interval, 2 or more.
        seed: Of the degradations and of these draws.

    Raises:
        InputError: Too few different faces, or a network without a preset; also what :class:`Scorer` refuses.
    """
    check_count(seed, "seed", least=0)
    check_count(resamples, "resamples", least=2)
    network, preset = resolve_network(model, preset)
    if preset is None:
        raise InputError("tune: expected a network with a preset, whose images can be degraded; got none")
    crops = draw_faces(faces, preset, MOST_FACES, colour=colour)
    check_face_count(crops, LEAST_FACES, "tune")

    def make_scorer(setting: Setting) -> Scorer:
        recalibrate = crops if setting.recalibrated else None
        pruning = setting.pruning
        return Scorer(
            network, pruning, recalibrate=recalibrate, preset=preset, device="cpu", output=output, on_bad="nan"
        )

    (default, setting), *others = list_settings(network).items()
    scorer = make_scorer(setting)
    found = measure(scorer, crops, "faces")
    good = _has_direction(found)
    crops, embedding = crops[good], found.embedding[good]
    check_face_count(crops, LEAST_FACES, "tune")
    copies, _, face = degrade_faces(crops, seed)
    dense = measure(scorer, copies, "degraded copies")  # recognition is the same by all settings
    tried, distances = {default: scorer.settings}, {default: dense.distance}
    for name, setting in tqdm(others, unit="setting", disable=None, leave=False):
        scorer = make_scorer(setting)
        tried[name] = scorer.settings
        distances[name] = measure(scorer, copies, "degraded copies").distance
    known = _has_direction(dense)
    face = face[known]
    if len(set((face % 2).tolist())) < 2:
        raise InputError(
            f"tune: expected copies of both halves of the faces with an embedding of norm above 0, got {len(face)}: "
            "check the weights and the preset"
        )
    cosine = (dense.embedding[known] * embedding[face]).sum(1).double()
    angle = cosine.clamp(-1, 1).arccos().rad2deg().numpy()
    choice = choose_setting(
        angle,
        face.numpy(),
        # A copy of which the pruned network gives no direction is the worst.
        {name: distance.double()[known].nan_to_num(torch.inf).numpy() for name, distance in distances.items()},
        resamples=resamples,
        seed=seed,
    )
    return Tuning(
        tried={name: replace(each, model=_name_model(model)) for name, each in tried.items()},
        choice=choice,
        norm=measure_area(angle, dense.embedding_norm.double()[known].numpy()),
        unranked=float(angle.mean()),
        faces=len(crops),
        copies=len(angle),
        resamples=resamples,
        seed=seed,
    )


def list_settings(network: nn.Module) -> dict[str, Setting]:
    """List what is tried with this network, by name; the default first."""
    has_linear = any(isinstance(module, nn.Linear) for module in network.modules())
    kinds = [(False, "conv"), (True, "conv"), (True, "conv+linear")]
    settings = [
        Setting(recalibrated, Pruning(sparsity=sparsity, scope=scope, layers=layers))  # type: ignore[arg-type]
        for (recalibrated, layers), scope, sparsity in product(
            kinds if has_linear else kinds[:2], ("layer", "global"), TRIED_SPARSITIES
        )
    ]
    settings.sort(key=lambda setting: setting != Setting(False, Pruning()))
    return {str(setting): setting for setting in settings}


def _name_model(model: object) -> str | None:
    return None if isinstance(model, nn.Module) else str(model)


def _has_direction(output: ScoreOutput) -> Tensor:
    """Tell [N] which images have an embedding by the whole network."""
    return output.embedding_norm.isfinite() & (output.embedding_norm > 0)
