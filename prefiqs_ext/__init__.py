"""Face image quality from pruning: one shared pass gives the embedding and how far pruning moves it.

>>> import prefiqs_ext
>>> out = prefiqs_ext.score(crops)  # uint8 [N, 3, 112, 112], RGB
>>> out.quality, out.embedding
"""

from prefiqs_ext import methods, models, reference
from prefiqs_ext.analysis.sensitivity import sensitivity
from prefiqs_ext.calibration import Calibration
from prefiqs_ext.dual import dualize
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.output import ScoreOutput
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer, score
from prefiqs_ext.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "Preset",
    "Pruning",
    "ScoreOutput",
    "Scorer",
    "Settings",
    "dualize",
    "methods",
    "models",
    "reference",
    "score",
    "sensitivity",
]
