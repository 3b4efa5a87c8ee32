from .baselines import Brightness, Random, Sharpness
from .calibrated import Calibrated
from .combined import Combined
from .froq import FROQ
from .grafiqs import GraFIQs
from .method import Method
from .prefiqs import EmbeddingNorm, PreFIQs, RecalibratedPreFIQs
from .quality_labels import optimise_labels
from .registry import create, list_methods
from .serfiq import SERFIQ

__all__ = [
    "FROQ",
    "SERFIQ",
    "Brightness",
    "Calibrated",
    "Combined",
    "EmbeddingNorm",
    "GraFIQs",
    "Method",
    "PreFIQs",
    "Random",
    "RecalibratedPreFIQs",
    "Sharpness",
    "create",
    "list_methods",
    "optimise_labels",
]
