"""The demo: one face in the public domain, made worse in twelve ways that recognition suffers from, and scored.

Needs scikit-image for the photo (`pip install prefiqs_ext[demo]`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from skimage import data

from prefiqs_ext.default_scorer import get_default_scorer
from prefiqs_ext.demo.degradations import DEGRADATIONS
from prefiqs_ext.faces import RGB, Detector, find_faces
from prefiqs_ext.utils.tables import format_table


class DemoFace(NamedTuple):
    """One face of the demo and its scores.

    Attributes:
        kind: the kind of degradation, such as "blur"; "untouched" for the face itself.
        dose: "mild" or "strong"; "" for the face itself.
        label: kind and strength for people to read.
        image: uint8 [112, 112, 3] RGB.
        score: HIGHER is better; the number that ranks with the built-in network.
        quality: in [0, 1], HIGHER is better.
        distance: in [0, 2], LOWER is better.
        embedding_norm: above 0, usually HIGHER is better.
        similarity: cosine of its embedding with that of the untouched face, in [-1, 1]. It shows what the degradation
            costs recognition.
    """

    kind: str
    dose: str
    label: str
    image: RGB
    score: float
    quality: float
    distance: float
    embedding_norm: float
    similarity: float


def find_astronaut() -> RGB:
    """Return the face of Eileen Collins as the detector finds it, aligned: uint8 [112, 112, 3] RGB."""
    return find_faces(data.astronaut(), Detector())[0].crop


def rank_faces(face: RGB) -> list[DemoFace]:
    """Score a face, uint8 [112, 112, 3] RGB, and its degradations with the built-in network; return them best first."""
    variants = [("untouched", "", "untouched", face)]
    variants += [(way.kind, way.dose, way.label, way.apply(face)) for way in DEGRADATIONS]
    out = get_default_scorer()(torch.from_numpy(np.stack([image for *_, image in variants])).permute(0, 3, 1, 2))
    similarity = out.embedding @ out.embedding[0]
    scores = torch.stack([out.score, out.quality, out.distance, out.embedding_norm, similarity], dim=1).tolist()
    faces = [DemoFace(*variant, *row) for variant, row in zip(variants, scores, strict=True)]
    return sorted(faces, key=lambda scored: scored.score, reverse=True)


def format_faces(faces: list[DemoFace]) -> list[str]:
    """Return the table that the command prints: a line of headings, and one line per face."""
    columns = ("face", "quality", "distance", "norm", "similarity to untouched")
    rows = [(face.label, face.quality, face.distance, face.embedding_norm, face.similarity) for face in faces]
    return format_table(columns, rows, floats=".3f")
