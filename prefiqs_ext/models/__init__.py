"""Face-recognition networks: built-in architectures, the ONNX importer, the known weights, and presets.

>>> network, preset = load("sface")  # fetched on first use; float32 [N, 3, 112, 112] -> embeddings [N, 128]
>>> network, preset = load_model("backbone.pth", preset="arcface")  # or .safetensors, .onnx, .dat
>>> network = iresnet50()  # random weights, the usual state-dict names
"""

from __future__ import annotations

from torch import nn

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.models import weights
from prefiqs_ext.models.checkpoint import load_model
from prefiqs_ext.models.iresnet import iresnet18, iresnet34, iresnet50, iresnet100, iresnet200
from prefiqs_ext.models.onnx_import import import_onnx
from prefiqs_ext.models.preset import PRESETS, Normalize, Preset

__all__ = [
    "BUILT_IN",
    "PRESETS",
    "Normalize",
    "Preset",
    "import_onnx",
    "iresnet18",
    "iresnet34",
    "iresnet50",
    "iresnet100",
    "iresnet200",
    "load",
    "load_model",
    "weights",
]


BUILT_IN: tuple[str, ...] = tuple(entry.name for entry in weights.KNOWN.values() if entry.kind == "recogniser")
"""The names that load() takes."""


def load(name: str) -> tuple[nn.Module, Preset]:
    """A built-in network with its real weights, in eval mode on the CPU, and the preset of its input.

    name: one of BUILT_IN. The file is fetched on first use, which is announced on stderr. The network maps the preset's
    output, float32 [N, 3, H, W], to embeddings float32 [N, d], not normalised.
    ValueError for an unknown name; MissingWeightsError, an OSError, where the file can neither be found nor fetched.
    """
    if name not in BUILT_IN:
        raise InputError(f"unknown network {name!r}: expected one of {', '.join(BUILT_IN)}")
    preset = weights.KNOWN[name].preset
    assert preset is not None
    network, _ = load_model(weights.fetch(name), preset)
    return network, Preset.named(preset)
