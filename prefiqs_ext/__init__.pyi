# What `import prefiqs_ext` offers. __init__.py reads this file and imports each name when it is first used, so that the
# command line starts without torch. Only relative imports of one dot may stand here.
from . import analysis, evaluation, exceptions, faces, files, methods, models, reference
from .analysis.sensitivity import sensitivity
from .calibration.calibrate import calibrate
from .calibration.scale import Calibration
from .default_scorer import score
from .dual import dualize
from .exceptions import PrefiqsError
from .models.preset import Preset
from .onnx_export import export_onnx
from .output import ScoreOutput
from .photo import FaceScore, score_photo
from .pruning import Pruning
from .recalibration import Recalibration
from .scorer import Scorer
from .settings import Settings

__version__: str

__all__ = [
    "Calibration",
    "FaceScore",
    "PrefiqsError",
    "Preset",
    "Pruning",
    "Recalibration",
    "ScoreOutput",
    "Scorer",
    "Settings",
    "analysis",
    "calibrate",
    "dualize",
    "evaluation",
    "exceptions",
    "export_onnx",
    "faces",
    "files",
    "methods",
    "models",
    "reference",
    "score",
    "score_photo",
    "sensitivity",
]
