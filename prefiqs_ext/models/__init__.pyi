# What `prefiqs_ext.models` offers; __init__.py imports each name when it is first used.
from . import weights
from .iresnet import iresnet18, iresnet34, iresnet50, iresnet100, iresnet200
from .loading import load
from .normalize import Normalize
from .onnx_import import import_onnx
from .preset import PRESETS, Preset
from .weights import BUILT_IN

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
    "weights",
]
