"""The demo: one public-domain face, made worse in ways that recognition suffers from, scored in one batch.

Needs scikit-image for the photo (`pip install prefiqs_ext[demo]`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from skimage import data

from prefiqs_ext.demo.degradations import DEGRADATIONS
from prefiqs_ext.faces import RGB, Detector, find_faces
from prefiqs_ext.scorer import score


class DemoFace(NamedTuple):
    """One face of the demo: kind and dose of its degradation ("untouched" and "" for the face itself), and its scores.

    quality in [0, 1], higher is better. similarity: cosine of its embedding and the untouched face's, in [-1, 1]; what
    a degradation costs recognition.
    """

    kind: str
    dose: str
    label: str
    image: RGB
    quality: float
    distance: float
    embedding_norm: float
    similarity: float


def find_astronaut() -> RGB:
    """Eileen Collins' face as the detector finds it, aligned: uint8 [112, 112, 3] RGB."""
    return find_faces(data.astronaut(), Detector())[0].crop


def rank_faces(face: RGB) -> list[DemoFace]:
    """The face (uint8 [112, 112, 3] RGB) and its degradations, scored with the built-in network, best first."""
    variants = [("untouched", "", "untouched", face)]
    variants += [(way.kind, way.dose, way.label, way.apply(face)) for way in DEGRADATIONS]
    out = score(torch.from_numpy(np.stack([image for *_, image in variants])).permute(0, 3, 1, 2))
    similarity = out.embedding @ out.embedding[0]
    scores = torch.stack([out.quality, out.distance, out.embedding_norm, similarity], dim=1).tolist()
    faces = [DemoFace(*variant, *row) for variant, row in zip(variants, scores, strict=True)]
    return sorted(faces, key=lambda scored: scored.quality, reverse=True)


def format_table(faces: list[DemoFace]) -> str:
    """One line a face under a line of headings."""
    lines = [f"{'face':<22}{'quality':>9}{'distance':>10}{'norm':>8}{'similarity to untouched':>25}"]
    for face in faces:
        scores = f"{face.quality:>9.3f}{face.distance:>10.3f}{face.embedding_norm:>8.2f}{face.similarity:>25.3f}"
        lines.append(f"{face.label:<22}{scores}")
    return "\n".join(lines)
