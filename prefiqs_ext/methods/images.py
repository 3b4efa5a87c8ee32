"""What methods that run the caller's own network share: its check, the batch's, chunks, no score that is not finite."""

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


class OfNetwork(Protocol):
    name: str
    network: nn.Module
    preset: Preset


def check_network(method: OfNetwork) -> None:
    """Raises ValueError unless the network is in eval mode, else a pass would move batch norm's statistics; in float32;
    on the CPU."""
    check_model(method.network, method.name)
    for name, tensor in [*method.network.named_parameters(), *method.network.named_buffers()]:
        if tensor.device.type != "cpu":
            raise InputError(
                f"{method.name}: expected a model on the CPU, got {name!r} on {tensor.device}: call model.cpu()"
            )


def check_uint8(images: Tensor, preset: Preset) -> None:
    """Raises TypeError or ValueError unless these are uint8 images [N, 3, H, W] of the preset's size."""
    check_batch(images, preset)
    if images.dtype != torch.uint8:
        raise InputTypeError(f"expected uint8 images of 0-255, got {images.dtype}")


@torch_defaults()
def score_chunks(method: OfNetwork, images: Tensor, chunk: int, score: Callable[[Tensor], Tensor]) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 [N], `score` being given at most `chunk` images at a time.

    TypeError, ValueError: for another batch, for a network that has changed its mode, or naming the rows whose score is
    not finite.
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
