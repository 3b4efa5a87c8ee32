"""What methods that run the caller's own network share: checks, scoring in chunks without NaN, a pass for several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

import torch
from torch import Tensor, nn

from prefiqs_ext.dual import check_model
from prefiqs_ext.exceptions import InputError, InputTypeError
from prefiqs_ext.inputs import check_batch, name_rows
from prefiqs_ext.methods.method import Method
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
    return _check_scores([score(rows) for rows in torch.split(images, chunk)] if len(images) else [])


class ObservingMethod(ABC):
    """A method that watches a pass of the network by hooks. Several of them can watch the same pass.

    Attributes:
        name: Stands at the head of error messages.
        network: In eval mode, in float32 and on the CPU.
        preset: What the network wants done to an image.
        chunk: The most images that run together.
    """

    name: str
    network: nn.Module
    preset: Preset
    chunk: int

    @abstractmethod
    def observe(self, rows: int) -> AbstractContextManager[Callable[[], Tensor]]:
        """Watch one pass of the network over this many images.

        Returns:
            A context for the pass. It gives a function that returns the scores [rows] after the pass.

        Raises:
            NotFittedError: The method needs a fit and has had none.
        """

    def score(self, images: Tensor) -> Tensor:
        """Score uint8 RGB images [N, 3, H, W] in one pass of the network: float32 [N].

        Raises:
            NotFittedError: The method needs a fit and has had none.
            InputError: Another batch, or an image without a finite score.
        """
        return _observe_pass([self], images)[0]


def score_together(methods: Sequence[Method], images: Tensor) -> list[Tensor]:
    """Score uint8 RGB images [N, 3, H, W] by several methods of one network: float32 [N] of each, as if alone.

    The methods that watch the network share one pass of it.

    Args:
        methods: Fitted, if they need a fit.
        images: The batch.

    Raises:
        InputError: As each method.
    """
    observers = [method for method in methods if isinstance(method, ObservingMethod)]
    observed = dict(zip(map(id, observers), _observe_pass(observers, images), strict=True)) if observers else {}
    return [observed[id(method)] if id(method) in observed else method.score(images) for method in methods]


@torch_defaults()
def _observe_pass(methods: Sequence[ObservingMethod], images: Tensor) -> list[Tensor]:
    first = methods[0]
    for method in methods:
        check_network(method)
    check_uint8(images, first.preset)
    normalize = first.preset.normalize()
    scores: list[list[Tensor]] = [[] for _ in methods]
    with torch.inference_mode(False):  # in inference mode nothing is recorded for a gradient
        for rows in torch.split(images, min(method.chunk for method in methods)) if len(images) else ():
            with ExitStack() as stack, torch.no_grad():
                readers = [stack.enter_context(method.observe(len(rows))) for method in methods]
                first.network(normalize(rows))
                for read, of_method in zip(readers, scores, strict=True):
                    of_method.append(read())
    return [_check_scores(of_method) for of_method in scores]


def _check_scores(chunks: Sequence[Tensor]) -> Tensor:
    """The scores of all chunks: float32 [N].

    Raises:
        InputError: One is not finite.
    """
    scores = torch.cat([chunk.detach().float() for chunk in chunks]) if chunks else torch.empty(0)
    bad = ~scores.isfinite()
    if bool(bad.any()):
        raise InputError(f"expected finite scores, got NaN or infinity for {name_rows(bad)}; check these images")
    return scores
