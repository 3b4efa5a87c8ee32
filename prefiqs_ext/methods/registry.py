"""The names of the methods, and how one is made from its name. Importing this file does not import torch."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING

from prefiqs_ext.exceptions import InputError

if TYPE_CHECKING:
    from torch import nn

    from prefiqs_ext.methods.method import Method
    from prefiqs_ext.models.preset import Preset
    from prefiqs_ext.pruning import Pruning

# name -> (module in this package, class in it)
_CLASSES = {
    "prefiqs": ("prefiqs", "PreFIQs"),
    "prefiqs-recalibrated": ("prefiqs", "RecalibratedPreFIQs"),
    "calibrated": ("calibrated", "Calibrated"),
    "grafiqs": ("grafiqs", "GraFIQs"),
    "froq": ("froq", "FROQ"),
    "serfiq": ("serfiq", "SERFIQ"),
    "norm": ("prefiqs", "EmbeddingNorm"),
    "prefiqs+norm": ("combined", "Combined"),
    "random": ("baselines", "Random"),
    "sharpness": ("baselines", "Sharpness"),
    "brightness": ("baselines", "Brightness"),
}


def list_methods() -> tuple[str, ...]:
    """List the names that :func:`create` takes."""
    return tuple(_CLASSES)


def load_class(name: str) -> type[Method]:
    """Import the class of a method.

    Raises:
        InputError: no method has this name.
    """
    if name not in _CLASSES:
        raise InputError(f"expected a method of {', '.join(_CLASSES)}, got {name!r}")
    module, kind = _CLASSES[name]
    found: type[Method] = getattr(import_module(f"prefiqs_ext.methods.{module}"), kind)
    return found


def create(
    name: str,
    network: nn.Module,
    preset: Preset,
    *,
    pruning: Pruning | None = None,
    seed: int = 0,
    output: int | str | None = None,
) -> Method:
    """Make a method from its name. Arguments that a method has no use for are ignored.

    Args:
        name: One of :func:`list_methods`.
        network: Maps images to embeddings; in eval mode, in float32 and on the CPU.
        preset: What the network wants done to an image.
        pruning: What "prefiqs", "prefiqs-recalibrated", "calibrated" and "prefiqs+norm" prune. None: ``Pruning()``.
        seed: Of everything that a method draws at random.
        output: Which of the network's several outputs is the embedding, as in :class:`Scorer`.

    Raises:
        InputError: No method has this name, or the network does not suit it.
    """
    kind = load_class(name)
    given: dict[str, object] = {
        "network": network,
        "preset": preset,
        "pruning": pruning,
        "seed": seed,
        "output": output,
    }
    taken = inspect.signature(kind).parameters
    return kind(**{argument: value for argument, value in given.items() if argument in taken})
