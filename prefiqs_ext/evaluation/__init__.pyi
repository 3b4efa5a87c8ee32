from .all_pairs import compute_all_pairs_curves, compute_curves_of_qualities
from .bootstrap import BootstrapDraws, resample_persons
from .bootstrap_pairs import resample_pairs
from .comparison import Comparison, Protocol, compare
from .dataframe import make_dataframe
from .datasets import read_data
from .datasets.ijbc import Templates
from .datasets.readers import Images, PairList, read_embeddings, read_scores
from .edc import Curve, Mode, error_versus_discard
from .face_network import FaceNetwork
from .image_set import ImageSet
from .inference import Scoring, embed_images
from .latex import format_latex
from .runner import Evaluation, EvaluationOptions, run_evaluation
from .score_files import ScoreFile

__all__ = [
    "BootstrapDraws",
    "Comparison",
    "Curve",
    "Evaluation",
    "EvaluationOptions",
    "FaceNetwork",
    "ImageSet",
    "Images",
    "Mode",
    "PairList",
    "Protocol",
    "ScoreFile",
    "Scoring",
    "Templates",
    "compare",
    "compute_all_pairs_curves",
    "compute_curves_of_qualities",
    "embed_images",
    "error_versus_discard",
    "format_latex",
    "make_dataframe",
    "read_data",
    "read_embeddings",
    "read_scores",
    "resample_pairs",
    "resample_persons",
    "run_evaluation",
]
