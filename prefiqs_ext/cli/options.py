"""The options that say which network scores, how it is pruned and where it computes.

They are the same for every command that has them. A command gets one frozen object, made and checked before it runs:

    @click.command()
    @scoring_options
    def score(scoring: ScoringOptions) -> None: ...
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

import click

from prefiqs_ext.cli.place import choose_device, choose_dtype
from prefiqs_ext.cli.wrong_usage import refuse_usage
from prefiqs_ext.models.model_file import check_model_file
from prefiqs_ext.models.preset import PRESETS, Preset
from prefiqs_ext.models.weights import BUILT_IN, KNOWN
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.ranking import Ranking, check_ranking
from prefiqs_ext.utils.dtype_names import DTYPE_NAMES
from prefiqs_ext.utils.strict_json import JSON
from prefiqs_ext.utils.text import format_path

if TYPE_CHECKING:
    import torch
    from torch import nn

    from prefiqs_ext.scorer import Scorer
    from prefiqs_ext.settings import Settings

Scope = Literal["layer", "global"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_FIXED_BY_SETTINGS = ("preset", "size", "output_name", "pruning", "sparsity", "scope", "layers")
_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")


@dataclass(frozen=True)
class ModelOptions:
    """Which recognition network to use, and what input it wants.

    Attributes:
        name: the name of a built-in network, or the path of a file.
        preset: the name of a preset. None: the one that belongs to the built-in network.
        size: height and width of the network's input in pixels. None: those of the preset.
        output: which of several outputs is the embedding, by name or index. None: the first that can be one.
    """

    name: str
    preset: str | None = None
    size: tuple[int, int] | None = None
    output: str | None = None

    def find_preset(self) -> Preset | None:
        """Return the preset that --preset and --size name; None if they leave it to the built-in network."""
        name = self.preset
        if name is None and self.size is not None:
            name = KNOWN[self.name].preset
        if name is None:
            return None
        preset = Preset.resolve(name)
        return preset if self.size is None else preset.with_size(self.size)

    def get_preset(self) -> Preset:
        """Return the preset that counts: of --preset and --size, else that of the built-in network."""
        return self.find_preset() or Preset.resolve(KNOWN[self.name].preset or "")  # a file without one was refused

    def load(self) -> tuple[nn.Module, Preset]:
        """Return the network, in eval mode on the CPU, and the preset of its input."""
        from prefiqs_ext.models.loading import load

        network, preset = load(self.name, self.find_preset())
        assert preset is not None  # a file without one was refused when the options were made
        return network, preset

    def to_dict(self) -> dict[str, JSON]:
        """Return what numbers depend on, so that a later run can tell whether it would give the same ones."""
        values: dict[str, JSON] = {
            "model": self.name,
            "preset": self.preset,
            "size": None if self.size is None else list(self.size),
            "output_name": self.output,
        }
        if self.name not in BUILT_IN:
            status = os.stat(self.name)
            values["model file"] = [status.st_size, status.st_mtime_ns]
        return values


@dataclass(frozen=True)
class ScoringOptions:
    """Which network scores, how its pruned branch is made, and where both are computed.

    Attributes:
        model: the network.
        pruning: how the weights to prune are chosen: "magnitude", "random", "structured" or "N:M".
        sparsity: the fraction of weights to prune, in [0, 1). None: the default of the kind of pruning.
        scope: whether weights are ranked layer by layer or all together.
        layers: "conv", "conv+linear", or patterns of layer names.
        device: "cpu" or "cuda". None: the device of the settings.
        dtype: the name of the type to compute in. None: that of the settings or, without settings, of the device.
        settings: what `prefiqs calibrate` or `prefiqs tune` wrote. They take the place of preset, output and pruning.
        rank_by: the number that ranks. None: that of the settings, or what the rule of a Scorer gives.
    """

    model: ModelOptions
    pruning: str = "magnitude"
    sparsity: float | None = None
    scope: Scope = "layer"
    layers: tuple[str, ...] = ("conv",)
    device: str | None = "cpu"
    dtype: str | None = None
    settings: Settings | None = None
    rank_by: Ranking | None = None

    def make_pruning(self) -> Pruning:
        """Return the pruning that the options describe."""
        layers = self.layers if len(self.layers) > 1 else self.layers[0]
        if self.sparsity is None:
            return Pruning(self.pruning, scope=self.scope, layers=layers)
        return Pruning(self.pruning, self.sparsity, self.scope, layers)

    def find_dtype(self) -> torch.dtype | None:
        """Return the type to compute in; None leaves it to the settings or the device."""
        import torch

        if self.dtype is None:
            return None
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def make_scorer(self) -> Scorer:
        """Return a scorer that gives NaN for a face that it cannot assess."""
        from prefiqs_ext.scorer import Scorer

        dtype = self.find_dtype()
        if self.settings is not None:
            options = {"device": self.device, "dtype": dtype, "on_bad": "nan", "rank_by": self.rank_by}
            return Scorer.from_settings(self.settings, self.model.name, **options)
        return Scorer(
            self.model.name,
            self.make_pruning(),
            preset=self.model.find_preset(),
            output=self.model.output,
            device=self.device,
            dtype=dtype,
            on_bad="nan",
            rank_by=self.rank_by,
        )

    def to_dict(self) -> dict[str, JSON]:
        """Return what numbers depend on, so that a later run can tell whether it would give the same ones."""
        return {
            **self.model.to_dict(),
            "pruning": self.pruning,
            "sparsity": self.sparsity,
            "scope": self.scope,
            "layers": list(self.layers),
            "device": self.device,
            "dtype": self.dtype,
            "settings": None if self.settings is None else self.settings.to_json(),
            "rank_by": self.rank_by,
        }


def parse_size(text: str) -> tuple[int, int]:
    """Return height and width from "112x96", or from "112" for both.

    Raises:
        click.BadParameter: for any other text.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"expected HEIGHTxWIDTH or one number of pixels, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def parse_preset(text: str) -> Preset | None:
    """Return the preset of "arcface" or "arcface@112x96"; None for a text that names none."""
    name, at, size = text.partition("@")
    if name not in PRESETS or (at and not _SIZE.fullmatch(size)):
        return None
    return PRESETS[name].with_size(parse_size(size)) if at else PRESETS[name]


_MODEL_OPTIONS = (
    click.option(
        "--model",
        default="sface",
        show_default=True,
        metavar="NAME|FILE",
        help=f"The recognition network: {', '.join(BUILT_IN)}, or a file (.pth, .safetensors, .onnx, .dat), which "
        "needs --preset.",
    ),
    click.option(
        "--preset",
        type=click.Choice(sorted(PRESETS)),
        help="The input that the network was trained on. [default: the preset of the built-in network]",
    ),
    click.option(
        "--size",
        metavar="N|HxW",
        callback=lambda _context, _option, value: None if value is None else parse_size(value),
        help="Height and width of the network's input, in pixels. [default: the preset's]",
    ),
    click.option(
        "--output-name",
        metavar="NAME|INDEX",
        help="Which of the network's outputs is the embedding. [default: the first with two columns or more]",
    ),
)
_SCORING_OPTIONS = (
    click.option(
        "--pruning",
        default="magnitude",
        show_default=True,
        metavar="magnitude|random|structured|N:M",
        help="How the weights to prune are chosen; 2:4 keeps the two largest of every four.",
    ),
    click.option(
        "--sparsity",
        type=float,
        metavar="FRACTION",
        help="The fraction of weights to prune, from 0 to below 1. [default: 0.4; for N:M 1 - N/M]",
    ),
    click.option(
        "--scope",
        type=click.Choice(["layer", "global"]),
        default="layer",
        show_default=True,
        help="Rank the weights of each layer by themselves, or those of all layers together.",
    ),
    click.option(
        "--layers",
        multiple=True,
        default=["conv"],
        show_default=True,
        metavar="conv|conv+linear|PATTERN",
        help="Which layers to prune. A PATTERN such as 'layer4.*' matches layer names; the option can be repeated.",
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="cpu",
        show_default=True,
        help="Where to compute; auto takes the GPU if there is one that can be used.",
    ),
    click.option(
        "--dtype",
        type=click.Choice([*DTYPE_NAMES, "auto"]),
        help="The type to compute in; auto takes bfloat16 on a CPU that multiplies it. [default: float32 on the CPU, "
        "float16 on a GPU]",
    ),
)


def model_options(command: Callable[_P, None]) -> Callable[_P, None]:
    """Add --model, --preset, --size and --output-name; the command gets them as `model`, a :class:`ModelOptions`."""

    @functools.wraps(command)
    def checked(*_: _P.args, **given: _P.kwargs) -> None:
        context = click.get_current_context()
        own = pick(context.params, _MODEL_NAMES)
        with refuse_usage():
            model = _make_model(**own)
        context.invoke(command, **omit(given, own), model=model)

    for option in reversed(_MODEL_OPTIONS):
        checked = option(checked)
    return checked


def scoring_options(command: Callable[_P, None]) -> Callable[_P, None]:
    """Add the options of `model_options`, of pruning, --device and --dtype.

    The command gets them as `scoring`, a :class:`ScoringOptions`. If it has options --settings and --rank-by
    (shared_options.py), they go into the same object.
    """

    @functools.wraps(command)
    def checked(*_: _P.args, **given: _P.kwargs) -> None:
        context = click.get_current_context()
        own = pick(context.params, (*_MODEL_NAMES, *_SCORING_NAMES))
        with refuse_usage():
            scoring = _make_scoring(**own)
        context.invoke(command, **omit(given, own), scoring=scoring)

    for option in reversed((*_MODEL_OPTIONS, *_SCORING_OPTIONS)):
        checked = option(checked)
    return checked


_MODEL_NAMES = ("model", "preset", "size", "output_name")
_SCORING_NAMES = ("pruning", "sparsity", "scope", "layers", "device", "dtype", "settings", "rank_by")


def pick(values: dict[str, _T], names: Container[str]) -> dict[str, _T]:
    """Return the values of these names."""
    return {name: value for name, value in values.items() if name in names}


def omit(values: dict[str, _T], names: Container[str]) -> dict[str, _T]:
    """Return the values of all other names."""
    return {name: value for name, value in values.items() if name not in names}


def _make_model(model: str, preset: str | None, size: tuple[int, int] | None, output_name: str | None) -> ModelOptions:
    options = ModelOptions(model, preset, size, output_name)
    _check(options, "--model")
    return options


def _make_scoring(
    *,
    model: str,
    preset: str | None,
    size: tuple[int, int] | None,
    output_name: str | None,
    pruning: str,
    sparsity: float | None,
    scope: Scope,
    layers: tuple[str, ...],
    device: str,
    dtype: str | None,
    settings: Path | None = None,
    rank_by: Ranking | None = None,
) -> ScoringOptions:
    options = ModelOptions(model, preset, size, output_name)
    read = None
    if settings is not None:
        _refuse_fixed_options()
        read = _read_settings(settings)
        if not _was_given("model"):
            options = ModelOptions(_name_model(read, settings))
    _check(options, "--model" if options.name == model else "--settings", needs_preset=read is None)
    place = choose_device(device) if read is None or _was_given("device") else None
    dtype = choose_dtype(dtype, place or (device if read is None else read.device))
    scoring = ScoringOptions(options, pruning, sparsity, scope, layers, place, dtype, read, rank_by)
    _refuse_impossible(scoring)
    return scoring


def _refuse_impossible(scoring: ScoringOptions) -> None:
    """Refuse a pruning, a device, a dtype or a ranking that cannot be, before any work."""
    from prefiqs_ext.device import resolve_device

    scoring.make_pruning()
    if scoring.device is not None:
        resolve_device(scoring.device, scoring.find_dtype(), None)
    settings = scoring.settings
    check_ranking(scoring.rank_by, calibrated=settings is not None and settings.calibration is not None)


def _check(model: ModelOptions, option: str, *, needs_preset: bool = True) -> None:
    """Refuse a model that is not there, a file without a preset, and a size that no preset has.

    `option` is the one that named the model.
    """
    has_preset = model.preset is not None or not needs_preset
    with refuse_usage(option):
        check_model_file(model.name, has_preset=has_preset, remedy="give --preset")
    model.find_preset()


def _refuse_fixed_options() -> None:
    given = [name.replace("_", "-") for name in _FIXED_BY_SETTINGS if _was_given(name)]
    if given:
        raise click.UsageError(f"--settings says {', '.join(given)} already: leave --{given[0]} out")


def _read_settings(file: Path) -> Settings:
    from prefiqs_ext.settings import Settings

    return Settings.load(file)


def _name_model(settings: Settings, file: Path) -> str:
    if settings.model is None:
        raise click.UsageError(f"{format_path(str(file))} names no model, it was made from Python: give --model FILE")
    return settings.model


def _was_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE
