"""The options that say what scores, the same for all subcommands that let one choose."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click
import torch
from torch import nn

from ..models import BUILT_IN
from ..models.preset import PRESETS, Preset
from ..network import load_network
from ..pruning import Pruning
from ..scorer import Scorer
from ..settings import Settings
from .device import device_option

_Command = TypeVar("_Command", bound=Callable[..., Any])
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FIXED_BY_SETTINGS = ("preset", "method", "sparsity", "scope", "layers")

_OPTIONS = (
    click.option("--model", default="sface", show_default=True, metavar="NAME|FILE", help="The recognition network."),
    click.option(
        "--preset", type=click.Choice(sorted(PRESETS)), help="The input it wants. [default: a built-in's own]"
    ),
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


def scoring_options(command: _Command) -> _Command:
    """Gives the command `model`, `preset`, `method`, `sparsity`, `scope`, `layers`, `device` and `dtype`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_scoring(options: dict[str, Any]) -> None:
    """Before any work: a file needs a preset; settings fix what they hold."""
    if options.get("settings") is None:
        if options["model"] not in BUILT_IN and options["preset"] is None:
            raise click.UsageError("--model FILE needs --preset: the file cannot tell the input its network wants")
        return
    context = click.get_current_context()
    given = [name for name in _FIXED_BY_SETTINGS if _was_given(context, name)]
    if given:
        raise click.UsageError(f"--settings says {', '.join(given)} already: leave --{given[0]} out")


def load_subject(options: dict[str, Any]) -> tuple[nn.Module, Preset]:
    """The network of --model, and the input it wants. UsageError where nothing tells that."""
    network, own = load_network(options["model"], options["preset"])
    preset = Preset.named(options["preset"]) if options["preset"] else own
    if preset is None:
        raise click.UsageError("--model FILE.onnx needs --preset: the file cannot tell the input its network wants")
    return network, preset


def make_scorer(options: dict[str, Any]) -> Scorer:
    """A scorer by these options, or by --settings, that gives NaN for a face it cannot assess."""
    common: dict[str, Any] = computing(options) | {"on_bad": "nan"}
    if options.get("settings") is not None:
        context = click.get_current_context()
        model = options["model"] if _was_given(context, "model") else None
        if not _was_given(context, "device"):
            common["device"] = None  # what the settings say
        return Scorer.from_settings(options["settings"], model, **common)
    return Scorer(options["model"], pruning(options), preset=options["preset"], **common)


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
    names = ("model", "preset", "method", "sparsity", "scope", "layers", "device", "dtype")
    values = {name: options[name] for name in names} | {"layers": list(options["layers"])}
    if options.get("settings") is not None:
        values["settings"] = Settings.load(options["settings"]).to_json()
    if options["model"] not in BUILT_IN:
        status = os.stat(options["model"])
        values["model file"] = [status.st_size, status.st_mtime_ns]
    return values


def _was_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
