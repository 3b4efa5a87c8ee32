"""What a Scorer's numbers depend on, in a file: model, preset, pruning, calibration. JSON, so that it can be read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from prefiqs_ext.calibration import Calibration
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning

_T = TypeVar("_T")

_VERSION = 1
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Settings:
    """model: a built-in name or the file that was loaded, None for a module. model_sha256: of the network's weights,
    see `hash_weights`. output: which of a network's outputs is the embedding. The rest as in Scorer."""

    model: str | None
    model_sha256: str
    preset: Preset | None
    pruning: Pruning
    output: int | str | None = None
    calibration: Calibration | None = None

    def calibrated(self, calibration: Calibration) -> Settings:
        """The same with a scale, fitted on qualities that this model and pruning gave."""
        return replace(self, calibration=calibration)

    def to_json(self) -> str:
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file whole or not at all. OSError where it cannot be written."""
        write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Settings:
        """FileNotFoundError; ValueError, in one line, for a file that is no such settings."""
        return read_strictly(path, "a Scorer's settings", cls._from)

    @classmethod
    def _from(cls, values: Any) -> Settings:
        named = exactly(values, ("version", *(field.name for field in fields(cls))), "settings")
        version = named.pop("version")
        if type(version) is not int or version != _VERSION:
            raise ValueError(f"version {_VERSION} is what this program reads, got {version!r}")
        for name, kinds in (("model", (str, type(None))), ("output", (int, str, type(None)))):
            if type(named[name]) not in kinds:
                raise ValueError(f"{name} is {named[name]!r}")
        check_sha256(named["model_sha256"])
        pruning = made(Pruning, named["pruning"])
        if pruning is None:
            raise ValueError("pruning is missing")
        return cls(
            **{
                **named,
                "preset": made(Preset, named["preset"]),
                "pruning": pruning,
                "calibration": made(Calibration, named["calibration"]),
            }
        )


def hash_weights(network: nn.Module) -> str:
    """SHA-256 over the names, shapes, types and bytes of a network's parameters and buffers, in the order of names: the
    same for the same weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*network.named_parameters(), *network.named_buffers()]):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_sha256(value: Any) -> None:
    """ValueError unless it is what `hash_weights` gives."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"model_sha256 is {value!r}")


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Writes the file whole or not at all. OSError where it cannot be written."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_strictly(path: str | os.PathLike[str], what: str, make: Callable[[Any], _T]) -> _T:
    """What `make` makes of the JSON in a file: 1 MiB at most, numbers finite, no name twice in an object.

    FileNotFoundError; ValueError, in one line that says `what` was expected, also for what `make` refuses.
    """
    path = Path(path)
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"expected at most {_MAX_BYTES} bytes")
        return make(json.loads(data, parse_constant=_refuse, object_pairs_hook=_once))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"expected {what} in {path}: {' '.join(str(error).split())[:200]}") from error


def made(kind: type[Any], values: Any) -> Any:
    """A dataclass from exactly its fields, lists as tuples; None from null."""
    if values is None:
        return None
    named = exactly(values, tuple(field.name for field in fields(kind)), kind.__name__.lower())
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in named.items()})


def exactly(values: Any, names: tuple[str, ...], what: str) -> dict[str, Any]:
    """A JSON object that must have these names and no others."""
    if not isinstance(values, Mapping) or set(values) != set(names):
        got = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(f"{what} with {', '.join(names)}, got {got}")
    return dict(values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"got {constant}")
