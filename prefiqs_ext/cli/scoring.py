"""The options that say what scores, the same for all subcommands that let one choose."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import click
import torch
from torch import nn

from prefiqs_ext.cli.device import device_option
from prefiqs_ext.models import BUILT_IN, weights
from prefiqs_ext.models.loading import load
from prefiqs_ext.models.preset import PRESETS, Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.settings import Settings
from prefiqs_ext.utils.text import format_path

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FIXED_BY_SETTINGS = ("preset", "size", "output_name", "method", "sparsity", "scope", "layers")
_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")


def _parse_size(text: str) -> tuple[int, int]:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"expected HEIGHTxWIDTH or one number of pixels, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


_MODEL_OPTIONS = (
    click.option("--model", default="sface", show_default=True, metavar="NAME|FILE", help="The recognition network."),
    click.option(
        "--preset", type=click.Choice(sorted(PRESETS)), help="The input it wants. [default: a built-in's own]"
    ),
    click.option(
        "--size",
        metavar="N|HxW",
        callback=lambda _context, _option, value: None if value is None else _parse_size(value),
        help="Height and width of its input in pixels. [default: the preset's]",
    ),
    click.option(
        "--output-name",
        metavar="NAME|INDEX",
        help="Which of its outputs is the embedding. [default: the first of two columns or more]",
    ),
)
_OPTIONS = (
    click.option(
        "--method",
        default="magnitude",
        show_default=True,
        metavar="magnitude|random|structured|N:M",
        help="How weights to prune are chosen.",
    ),
    click.option(
        "--sparsity", type=float, help="Fraction of weights to prune, in [0, 1). [default: 0.4; for N:M 1 - N/M]"
    ),
    click.option(
        "--scope",
        type=click.Choice(["layer", "global"]),
        default="layer",
        show_default=True,
        help="Rank weights by layer or all together.",
    ),
    click.option(
        "--layers",
        multiple=True,
        default=["conv"],
        show_default=True,
        metavar="conv|conv+linear|PATTERN",
        help="What to prune; PATTERN is of layers' names and can be repeated.",
    ),
    device_option,
    click.option(
        "--dtype", type=click.Choice(list(_DTYPES)), help="What to compute in. [default: float32; on a GPU float16]"
    ),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives the command `model`, `preset`, `size` and `output_name`, checked before any work."""

    @functools.wraps(command)
    def checked(*args: Any, **options: Any) -> Any:
        _check(options)
        return command(*args, **options)

    for option in reversed(_MODEL_OPTIONS):
        checked = option(checked)
    return checked


def scoring_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives the command those of `model_options`, `method`, `sparsity`, `scope`, `layers`, `device` and `dtype`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return model_options(command)


def _check(options: dict[str, Any]) -> None:
    """The model is there; a file needs a preset; settings fix what they hold."""
    model = options["model"]
    if model not in BUILT_IN and not os.path.exists(model):
        raise click.UsageError(f"--model: no such model or file: {format_path(model)}; known: {', '.join(BUILT_IN)}")
    if options.get("settings") is None:
        if model not in BUILT_IN and options["preset"] is None:
            raise click.UsageError("--model FILE needs --preset: the file cannot tell the input its network wants")
        return
    context = click.get_current_context()
    given = [name for name in _FIXED_BY_SETTINGS if _was_given(context, name)]
    if given:
        raise click.UsageError(f"--settings says {', '.join(given)} already: leave --{given[0].replace('_', '-')} out")


def load_subject(options: dict[str, Any]) -> tuple[nn.Module, Preset]:
    """The network of --model, and the input it wants."""
    said = said_preset(options)
    network, own = load(options["model"], said)
    preset = said or own
    assert preset is not None  # what model_options checks
    return network, preset


def said_preset(options: dict[str, Any]) -> Preset | None:
    """By --preset and --size; None: a built-in's own."""
    name, size = options["preset"], options["size"]
    if name is None and size is not None:
        name = weights.KNOWN[options["model"]].preset
    if name is None:
        return None
    preset = Preset.resolve(name)
    return preset if size is None else preset.with_size(size)


def parse_preset(text: str) -> Preset | None:
    """PRESET or PRESET@SIZE; None for what is neither."""
    name, at, size = text.partition("@")
    if name not in PRESETS or (at and not _SIZE.fullmatch(size)):
        return None
    return PRESETS[name].with_size(_parse_size(size)) if at else PRESETS[name]


def make_scorer(options: dict[str, Any]) -> Scorer:
    """A scorer by these options, or by --settings, that gives NaN for a face it cannot assess."""
    common: dict[str, Any] = computing(options) | {"on_bad": "nan"}
    if options.get("settings") is not None:
        context = click.get_current_context()
        model = options["model"] if _was_given(context, "model") else None
        if not _was_given(context, "device"):
            common["device"] = None  # what the settings say
        return Scorer.from_settings(options["settings"], model, **common)
    return Scorer(
        options["model"], pruning(options), preset=said_preset(options), output=options["output_name"], **common
    )


def computing(options: dict[str, Any]) -> dict[str, Any]:
    """Where and in what a Scorer computes."""
    return {"device": options["device"], "dtype": _DTYPES.get(options["dtype"])}


def pruning(options: dict[str, Any]) -> Pruning:
    layers, sparsity = options["layers"], options["sparsity"]
    return Pruning(
        method=options["method"],
        **({} if sparsity is None else {"sparsity": sparsity}),
        scope=options["scope"],
        layers=layers if len(layers) > 1 else layers[0],
    )


def record(options: dict[str, Any]) -> dict[str, Any]:
    """What a row's numbers depend on, as JSON values."""
    names = ("model", "preset", "size", "output_name", "method", "sparsity", "scope", "layers", "device", "dtype")
    values = {name: options[name] for name in names} | {"layers": list(options["layers"])}
    values["size"] = None if options["size"] is None else list(options["size"])
    if options.get("settings") is not None:
        values["settings"] = Settings.load(options["settings"]).to_json()
    if options["model"] not in BUILT_IN:
        status = os.stat(options["model"])
        values["model file"] = [status.st_size, status.st_mtime_ns]
    return values


def _was_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
