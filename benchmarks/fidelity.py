"""How near distances and embeddings come to those of two models in float64, and the images that tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from prefiqs_ext import reference
from prefiqs_ext.evaluation.datasets.readers import read_folders
from prefiqs_ext.evaluation.datasets.sources import get_name
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.faces import read_rgb
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.utils.pick_evenly import pick_evenly
from tests.networks import pictures


@dataclass(frozen=True)
class Fidelity:
    """How near results come to the float64 reference.

    Attributes:
        max_error: Largest difference of a distance.
        spearman: Rank correlation of the distances.
        mean_cosine: Of the embeddings, the pruned ones left out.
        least_cosine: Of the embeddings.
    """

    max_error: float
    spearman: float
    mean_cosine: float
    least_cosine: float


Results = tuple[np.ndarray, np.ndarray]
"""Distances [N] and normalised embeddings [N, d]."""


def measure_fidelity(found: Results, exact: Results) -> Fidelity:
    """Compare results of a few images with those of the reference."""
    (distance, embedding), (exact_distance, exact_embedding) = found, exact
    cosine = (embedding * exact_embedding).sum(1) / np.linalg.norm(embedding.astype(np.float64), axis=1)
    return Fidelity(
        max_error=float(np.abs(distance - exact_distance).max()),
        spearman=float(spearmanr(distance, exact_distance).statistic),
        mean_cosine=float(cosine.mean()),
        least_cosine=float(cosine.min()),
    )


def score_batches(score: Callable[[np.ndarray], Results], batches: Sequence[np.ndarray]) -> Results:
    """Join the results of several batches."""
    distances, embeddings = zip(*map(score, batches), strict=True)
    return np.concatenate(distances), np.concatenate(embeddings)


def compute_reference(model: nn.Module, preset: Preset, images: np.ndarray) -> Results:
    """Compute the results of two models in float64; `model` must be in the precision it was trained in."""
    output = reference.score(model, torch.from_numpy(images), Pruning(), preset=preset, dtype=torch.float64)
    return output.distance.numpy(), output.embedding.numpy()


def make_batches(preset: Preset, *, batch: int, images: int, faces: Path | None) -> list[np.ndarray]:
    """Make whole batches uint8 [batch, 3, H, W], of faces drawn evenly from a folder or of pictures by chance.

    There are enough of them for `images` images. A folder with fewer faces gives as many batches as it fills.

    Raises:
        FileFormatError, FileAccessError: What is read is no folder of folders of images.
        InputError: The faces are too few, or of another size than the network takes.
    """
    count = -(-images // batch)
    if faces is None:
        return [pictures(batch, preset.size, seed=seed).numpy() for seed in range(count)]
    pixels = read_faces(faces, count * batch).numpy()
    if len(pixels) < batch or pixels.shape[2:] != tuple(preset.size):
        height, width = preset.size
        raise InputError(
            f"expected {batch} faces or more of {height} x {width} pixels in {faces}, got an array of {pixels.shape}: "
            "name another folder"
        )
    return list(pixels[: len(pixels) // batch * batch].reshape(-1, batch, *pixels.shape[1:]))


def read_faces(folder: Path, most: int | None = None) -> Tensor:
    """Read crops of one size, uint8 [N, 3, H, W]: all of a folder of folders of persons, or `most`, drawn evenly.

    Raises:
        FileFormatError, FileAccessError: What is read is no such folder.
        InputError: The crops differ in size.
    """
    found = read_folders(folder).images
    chosen = found if most is None else [found[index] for index in pick_evenly(len(found), most)]
    crops = [read_rgb(get_name(image)) for image in chosen]
    sizes = {crop.shape[:2] for crop in crops}
    if len(sizes) > 1:
        raise InputError(f"expected crops of one size in {folder}, got {sorted(sizes)}: align them first")
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
