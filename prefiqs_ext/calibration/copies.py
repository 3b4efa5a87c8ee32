"""Degraded copies of faces, and one pass of a network over them. They take the place of pairs with known identities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.faces.degrade import KINDS, degrade, draw_steps
from prefiqs_ext.inputs import Colour, ImageInput, check_images, make_batch, scale_to_levels
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.output import ScoreOutput
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.utils.pick_evenly import pick_evenly

_COPIES = 3  # of each face, fewer where the draw leaves one as it is
_BATCH = 64
_CPU = torch.device("cpu")


class DegradedFaces(NamedTuple):
    """M degraded copies of faces."""

    crops: list[Tensor]
    """[M] each uint8 [3, H, W] RGB."""
    kinds: list[frozenset[str]]
    """[M] the names of the degradations of each."""
    face: Tensor
    """int64 [M] which face it is a copy of, in rising order."""


def draw_faces(
    images: ImageInput, preset: Preset, most: int, *, device: torch.device = _CPU, colour: Colour = "rgb"
) -> Tensor:
    """Draw different faces, at most `most` of them, at even distances.

    Args:
        images: As :func:`make_batch` takes them.
        preset: Whose images they are.
        most: The largest number of faces.
        device: Where a tensor must be.
        colour: "bgr" for tensors and arrays whose first channel is blue.

    Returns:
        uint8 [N, 3, H, W] RGB on the CPU.

    Raises:
        InputError: What :func:`make_batch` and :func:`check_images` refuse.
    """
    batch = make_batch(images, preset, device=device, colour=colour)
    check_images(batch, preset)
    crops = scale_to_levels(batch, preset).round().to(torch.uint8).cpu()
    different = np.sort(np.unique(crops.flatten(1).numpy(), axis=0, return_index=True)[1])
    return crops[different[pick_evenly(len(different), most)]]


def check_face_count(crops: Tensor, least: int, who: str) -> None:
    """Check that there are enough faces; `who` asks, and the message begins with it.

    Raises:
        InputError: There are fewer than `least`.
    """
    if len(crops) < least:
        raise InputError(
            f"{who}: expected {least} or more different faces, got {len(crops)}: give more, as they usually come"
        )


def degrade_faces(crops: Tensor, seed: int) -> DegradedFaces:
    """Degrade each face a few times, by all kinds.

    Args:
        crops: uint8 [N, 3, H, W] RGB.
        seed: Of the degradations.
    """
    copies, kinds, face = [], [], []
    for index, crop in enumerate(crops):
        image = crop.permute(1, 2, 0).numpy()
        for copy in range(_COPIES):
            steps = draw_steps(f"{index}/{copy}", seed, image.shape[0], tuple(KINDS))
            if steps:
                copies.append(torch.from_numpy(degrade(image, steps)).permute(2, 0, 1))
                kinds.append(frozenset(step.kind for step in steps))
                face.append(index)
    return DegradedFaces(copies, kinds, torch.tensor(face))


def measure(scorer: Scorer, crops: Sequence[Tensor] | Tensor, what: str) -> ScoreOutput:
    """Run the scorer over uint8 crops, with a bar of progress that says what they are; the result is on the CPU."""
    outputs = []
    with tqdm(total=len(crops), desc=what, unit="face", disable=None, leave=False) as bar:
        for begin in range(0, len(crops), _BATCH):
            rows = torch.stack(list(crops[begin : begin + _BATCH])).to(scorer.device)
            outputs.append(ScoreOutput(*(field.cpu() for field in scorer(rows))))
            bar.update(len(rows))
    return ScoreOutput(*(torch.cat(fields) for fields in zip(*outputs, strict=True)))
