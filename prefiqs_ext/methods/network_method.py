"""What methods that run the caller's own network share: checks, and scoring in chunks without NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from prefiqs_ext.dual import check_model
from prefiqs_ext.exceptions import InputError, InputTypeError
from prefiqs_ext.inputs import check_batch, name_rows
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.torch_defaults import torch_defaults


class NetworkMethod(Protocol):
    """A method that runs a network.

    Attributes:
        name: Stands at the head of error messages.
        network: In eval mode, in float32 and on the CPU.
        preset: What the network wants done to an image.
    """

    name: str
    network: nn.Module
    preset: Preset


def check_network(method: NetworkMethod) -> None:
    """Check that the method's network can be run as it is.

    Raises:
        InputError: The network is in train mode (a pass would change the statistics of batch norm), not in float32, or
            not on the CPU.
    """
    check_model(method.network, method.name)
    for name, tensor in [*method.network.named_parameters(), *method.network.named_buffers()]:
        if tensor.device.type != "cpu":
            raise InputError(
                f"{method.name}: expected a model on the CPU, got {name!r} on {tensor.device}: call model.cpu()"
            )


def check_uint8(images: Tensor, preset: Preset) -> None:
    """Check that a batch is uint8 [N, 3, H, W] of the preset's size.

    Raises:
        InputTypeError: Another dtype.
        InputError: Another shape.
    """
    check_batch(images, preset)
    if images.dtype != torch.uint8:
        raise InputTypeError(f"expected uint8 images of 0-255, got {images.dtype}")


@torch_defaults()
def score_chunks(method: NetworkMethod, images: Tensor, chunk: int, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Score uint8 images [N, 3, H, W] in chunks: float32 [N].

    Args:
        method: Whose network and preset are checked first.
        images: The batch.
        chunk: The most images that `score` is given at a time.
        score: uint8 [n, 3, H, W] -> [n].

    Raises:
        InputTypeError: The batch has another dtype.
        InputError: The batch has another shape; the network has changed its mode; a score is not finite, naming the
            rows.
    """
    check_network(method)
    check_uint8(images, method.preset)
    if not len(images):
        return torch.empty(0)
    scores = torch.cat([score(rows).detach().float() for rows in torch.split(images, chunk)])
    bad = ~scores.isfinite()
    if bool(bad.any()):
        raise InputError(f"expected finite scores, got NaN or infinity for {name_rows(bad)}; check these images")
    return scores
