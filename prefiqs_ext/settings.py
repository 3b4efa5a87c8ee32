"""What a Scorer's numbers depend on, in a file: model, preset, pruning, calibration. JSON, so that it can be read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from prefiqs_ext.calibration import Calibration
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.models.fingerprint import check_sha256
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.strict_json import build_dataclass, check_names, read_strict_json

_VERSION = 1
_DEVICES = ("cpu", "cuda")
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """model: a built-in name or the file that was loaded, None for a module. model_sha256: of the network's weights,
    see `hash_weights`. device: "cpu" or "cuda", and dtype: "float32", "float16" or "bfloat16", what was computed in.
    output: which of a network's outputs is the embedding. The rest as in Scorer."""

    model: str | None
    model_sha256: str
    preset: Preset | None
    pruning: Pruning
    device: str
    dtype: str
    output: int | str | None = None
    calibration: Calibration | None = None

    def calibrated(self, calibration: Calibration) -> Settings:
        """The same with a scale, fitted on qualities that this model and pruning gave, on this device in this dtype."""
        return replace(self, calibration=calibration)

    def computed_in(self, device: torch.device, dtype: torch.dtype) -> Settings:
        """The same, computed elsewhere. ValueError with a scale, which is for the numbers of one device and dtype."""
        where, name = device.type, dtype_name(dtype)
        if self.calibration is not None and (where, name) != (self.device, self.dtype):
            raise InputError(
                f"expected to compute in {self.dtype} on {self.device}, where the scale of these settings was fitted, "
                f"got {name} on {where}: leave device and dtype out, or calibrate again there"
            )
        return replace(self, device=where, dtype=name)

    def to_json(self) -> str:
        calibration = None if self.calibration is None else self.calibration.to_dict()
        return json.dumps({"version": _VERSION, **asdict(self), "calibration": calibration}, indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file whole or not at all. ValueError where it cannot be written."""
        with atomic_write(os.fspath(path)) as file:
            file.write(self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Settings:
        """FileNotFoundError; ValueError, in one line, for a file that is no such settings."""
        return read_strict_json(path, "a Scorer's settings", cls._from)

    @classmethod
    def _from(cls, values: Any) -> Settings:
        named = check_names(values, ("version", *(field.name for field in fields(cls))), "settings")
        version = named.pop("version")
        if type(version) is not int or version != _VERSION:
            raise InputError(f"version {_VERSION} is what this program reads, got {version!r}")
        for name, known in (("device", _DEVICES), ("dtype", _DTYPES)):
            if named[name] not in known:
                raise InputError(f"{name} is {named[name]!r}, expected {' or '.join(known)}")
        for name, kinds in (("model", (str, type(None))), ("output", (int, str, type(None)))):
            if type(named[name]) not in kinds:
                raise InputError(f"{name} is {named[name]!r}")
        check_sha256(named["model_sha256"])
        pruning, calibration = build_dataclass(Pruning, named["pruning"]), named["calibration"]
        if pruning is None:
            raise InputError("pruning is missing")
        return cls(
            **{
                **named,
                "preset": build_dataclass(Preset, named["preset"]),
                "pruning": pruning,
                "calibration": None if calibration is None else Calibration.from_dict(calibration),
            }
        )


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")
