"""What a Scorer's numbers depend on, in a file: model, preset, pruning, calibration. JSON, so that it can be read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from prefiqs_ext.calibration import Calibration
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.models.fingerprint import check_sha256
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.strict_json import build_dataclass, check_names, read_strict_json
from prefiqs_ext.utils.text import name_dtype

if TYPE_CHECKING:
    import torch

_VERSION = 1
_DEVICES = ("cpu", "cuda")
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """What a Scorer's numbers depend on. Saved beside them, it makes the same scorer again.

    >>> settings = prefiqs_ext.Scorer("sface").settings
    >>> settings.save("settings.json")
    >>> prefiqs_ext.Settings.load("settings.json") == settings
    True

    ``Scorer.from_settings("settings.json")`` then makes the scorer, or refuses a model with other weights. The file is
    JSON, to be read by people too.

    Attributes:
        model: a built-in name, or the file that was loaded; None for a module.
        model_sha256: the hash of the network's weights, whatever file they came from.
        preset: the input of the network; None where tensors go in as they are.
        pruning: what the pruned copy loses.
        device: "cpu" or "cuda".
        dtype: "float32", "float16" or "bfloat16".
        output: which of the network's outputs is the embedding.
        calibration: a scale of 0 to 100 for the qualities, fitted on this device in this dtype; or None.
    """

    model: str | None
    model_sha256: str
    preset: Preset | None
    pruning: Pruning
    device: str
    dtype: str
    output: int | str | None = None
    calibration: Calibration | None = None

    def with_calibration(self, calibration: Calibration) -> Settings:
        """Returns the same with a scale, which was fitted on qualities that a scorer with these settings gave."""
        return replace(self, calibration=calibration)

    def with_device(self, device: torch.device, dtype: torch.dtype) -> Settings:
        """Returns the same for another device and dtype.

        Raises:
            InputError: there is a scale, which is for the numbers of one device and dtype.
        """
        where, name = device.type, name_dtype(dtype)
        if self.calibration is not None and (where, name) != (self.device, self.dtype):
            raise InputError(
                f"expected to compute in {self.dtype} on {self.device}, where the scale of these settings was fitted, "
                f"got {name} on {where}: leave device and dtype out, or calibrate again there"
            )
        return replace(self, device=where, dtype=name)

    def to_json(self) -> str:
        """Returns the text of the file."""
        calibration = None if self.calibration is None else self.calibration.to_dict()
        return json.dumps({"version": _VERSION, **asdict(self), "calibration": calibration}, indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, whole or not at all.

        Raises:
            FileAccessError: it cannot be written.
        """
        with atomic_write(os.fspath(path)) as file:
            file.write(self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Settings:
        """Reads a file that :meth:`save` wrote.

        Raises:
            MissingFileError: there is no such file.
            FileFormatError: it holds something else.
        """
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
