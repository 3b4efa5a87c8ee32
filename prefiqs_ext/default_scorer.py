"""The built-in network, ready to use: :func:`score`."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from prefiqs_ext.inputs import Colour, ImageInput
from prefiqs_ext.output import ScoreOutput
from prefiqs_ext.scorer import Scorer


@lru_cache(maxsize=4)
def get_default_scorer(device: torch.device = torch.device("cpu")) -> Scorer:  # noqa: B008, immutable
    """Returns the Scorer of the built-in network on a device, made at the first call."""
    return Scorer(device=device)


def score(images: ImageInput, *, colour: Colour = "rgb") -> ScoreOutput:
    """Scores aligned face crops with the built-in network (SFace), pruned as in the paper.

    >>> out = prefiqs_ext.score(crops)  # RGB, uint8 [40, 3, 112, 112]; or arrays, PIL images, paths
    >>> out.score.shape  # HIGHER is better; with SFace it is the embedding norm
    torch.Size([40])
    >>> out.embedding.shape  # for recognition, of length 1
    torch.Size([40, 128])

    The first call fetches the weights (39 MB, announced on standard error) unless they are in the cache folder, and
    prepares the network. Tensors on a GPU are scored there in float16, everything else on the CPU in float32. For
    photos, in which faces must be found first, there is :func:`prefiqs_ext.score_photo`.

    Args:
        images: crops of 112 x 112 pixels, aligned, RGB: a tensor ``[N, 3, 112, 112]`` or ``[3, 112, 112]``, uint8 of
            0-255 or floating of [0, 1]; a NumPy array uint8 ``[N, 112, 112, 3]`` or ``[112, 112, 3]``; a PIL image in
            mode RGB; the path of a crop; or a list of single images of these kinds.
        colour: "bgr" for tensors and arrays whose first channel is blue, as OpenCV reads images.

    Returns:
        :class:`ScoreOutput`, one row per crop: the score to rank by (HIGHER is better), quality, distance, embedding,
        embedding norm.

    Raises:
        InputTypeError, InputError: the crops have another type, shape, size or device; the message says what to do.
        FileAccessError, FileFormatError: a path that gives no image.
        MissingWeightsError: the weights are not in the cache folder and cannot be fetched.
    """
    first = images[0] if isinstance(images, list | tuple) and images else images
    device = first.device if isinstance(first, Tensor) and first.is_cuda else torch.device("cpu")
    return get_default_scorer(device)(images, colour=colour)
