"""A recognition network by its name, file or module, together with the input it wants."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from torch import nn

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.models.loading import resolve_network
from prefiqs_ext.models.model_file import check_model_file
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.text import format_path


@dataclass(frozen=True)
class FaceNetwork:
    """A recognition network to load.

    Attributes:
        model: A built-in name, a file, or a module in eval mode.
        preset: The input it wants. None for a built-in network, which has its own; a file or a module needs one.
    """

    model: str | PathLike[str] | nn.Module = "sface"
    preset: Preset | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.preset, str):
            object.__setattr__(self, "preset", Preset.resolve(self.preset))
        if isinstance(self.model, nn.Module):
            if self.preset is None:
                raise InputError(f"expected a preset: the module {self.name} cannot tell the input it wants")
        else:
            check_model_file(self.model, has_preset=self.preset is not None)

    @property
    def name(self) -> str:
        """What tables call it: the built-in name, the file's name without suffix, or the module's class."""
        if isinstance(self.model, nn.Module):
            return type(self.model).__name__
        return format_path(Path(self.model).stem)

    def load(self) -> tuple[nn.Module, Preset]:
        """Load the network, and the preset of its input."""
        network, preset = resolve_network(self.model, self.preset)
        assert isinstance(preset, Preset)  # a file or module without one was refused above
        return network, preset

    def describe(self) -> dict[str, object]:
        """Return model and preset as values that JSON can hold."""
        model = self.name if isinstance(self.model, nn.Module) else str(self.model)
        return {"model": model, "preset": asdict(self.preset) if isinstance(self.preset, Preset) else None}
