"""The settings that a Scorer's numbers depend on (model, preset, pruning, scales), and their JSON file."""

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
from prefiqs_ext.recalibration import Recalibration
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.dtype_names import DTYPE_NAMES
from prefiqs_ext.utils.strict_json import build_dataclass, check_names, read_strict_json
from prefiqs_ext.utils.text import name_dtype

if TYPE_CHECKING:
    import torch

_VERSION = 2
_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Settings:
    """Everything that a Scorer's numbers depend on. Save it beside the numbers to make the same scorer again.

    >>> settings = prefiqs_ext.Scorer("sface").settings
    >>> settings.save("settings.json")
    >>> prefiqs_ext.Settings.load("settings.json") == settings
    True

    ``Scorer.from_settings("settings.json")`` then makes the scorer. It refuses a model with other weights. The file is
    JSON, so that people can read it too, all but the thousands of numbers of a recalibration.

    Attributes:
        model: The name of a built-in network, or the path of the file that was loaded. None if it was a module.
        model_sha256: The SHA-256 of the network's weights, 64 hexadecimal digits, whatever file they came from.
        preset: The input that the network was trained on. None if tensors go into the network as they are.
        pruning: What the pruned copy of the network loses.
        device: "cpu" or "cuda".
        dtype: "float32", "float16" or "bfloat16".
        output: The index or key of the output that is the embedding. None means the first that can be one.
        calibration: The scale of 0 to 100 for the qualities, fitted on this device in this dtype; or None.
        recalibration: The gains and shifts of the pruned layers, for these weights and this pruning; or None.
    """

    model: str | None
    model_sha256: str
    preset: Preset | None
    pruning: Pruning
    device: str
    dtype: str
    output: int | str | None = None
    calibration: Calibration | None = None
    recalibration: Recalibration | None = None

    def with_calibration(self, calibration: Calibration) -> Settings:
        """Return the same settings with another scale.

        Args:
            calibration: A scale that was fitted on the qualities of a scorer with these settings.
        """
        return replace(self, calibration=calibration)

    def with_device(self, device: torch.device, dtype: torch.dtype) -> Settings:
        """Return the same settings for another device and dtype.

        Raises:
            InputError: The settings have a scale, which is valid for its own device and dtype only.
        """
        where, name = device.type, name_dtype(dtype)
        if self.calibration is not None and (where, name) != (self.device, self.dtype):
            raise InputError(
                f"expected to compute in {self.dtype} on {self.device}, where the scale of these settings was fitted, "
                f"got {name} on {where}: leave device and dtype out, or calibrate again there"
            )
        return replace(self, device=where, dtype=name)

    def to_json(self) -> str:
        """Return the settings as JSON, as :meth:`save` writes them."""
        scales = {
            name: None if scale is None else scale.to_dict()
            for name, scale in (("calibration", self.calibration), ("recalibration", self.recalibration))
        }
        return json.dumps({"version": _VERSION, **asdict(self), **scales}, indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the settings to a JSON file. If this fails, no file appears, and an older one stays as it is.

        Raises:
            FileAccessError: The file cannot be written.
        """
        with atomic_write(os.fspath(path)) as file:
            file.write(self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Settings:
        """Read a file that :meth:`save` wrote.

        Raises:
            MissingFileError: There is no such file.
            FileAccessError: The file cannot be read.
            FileFormatError: The file does not have the settings of a scorer.
        """
        return read_strict_json(path, "a Scorer's settings", cls._from_json)

    @classmethod
    def _from_json(cls, values: Any) -> Settings:
        """Build settings from the JSON value of a file.

        Raises:
            InputError: A value is missing, unknown or wrong.
        """
        named = check_names(values, ("version", *(field.name for field in fields(cls))), "settings")
        version = named.pop("version")
        if type(version) is not int or version != _VERSION:
            raise InputError(f"version {_VERSION} is what this program reads, got {version!r}")
        for name, known in (("device", _DEVICES), ("dtype", DTYPE_NAMES)):
            if named[name] not in known:
                raise InputError(f"{name} is {named[name]!r}, expected {' or '.join(known)}")
        for name, kinds in (("model", (str, type(None))), ("output", (int, str, type(None)))):
            if type(named[name]) not in kinds:
                raise InputError(f"{name} is {named[name]!r}")
        check_sha256(named["model_sha256"])
        pruning = build_dataclass(Pruning, named["pruning"])
        calibration, recalibration = named["calibration"], named["recalibration"]
        if pruning is None:
            raise InputError("pruning is missing")
        return cls(
            **{
                **named,
                "preset": build_dataclass(Preset, named["preset"]),
                "pruning": pruning,
                "calibration": None if calibration is None else Calibration.from_dict(calibration),
                "recalibration": None if recalibration is None else Recalibration.from_dict(recalibration),
            }
        )
