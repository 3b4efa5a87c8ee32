"""GraFIQs (CVPR Workshops 2024): the gradient that would pull an image's batch-norm statistics to the recorded ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.inputs import example_images
from prefiqs_ext.methods.images import check_network, score_chunks
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.torch_defaults import torch_defaults

_BLOCKS = ("block1", "block2", "block3", "block4")
TAPS = ("image", *_BLOCKS)
"""Where the gradient is read."""


class GraFIQs:
    """Sum of |gradient| at the image or at the end of one of four stages, at least 0, LOWER is better.

    The loss of an image is the mean over the L inputs of BatchNorm2d of mean_c (mean - running_mean)^2 +
    mean_c (var - running_var)^2, mean and biased var over (H, W). Batch norm in eval mode does not couple images, so
    the gradients of the summed losses are those of each image alone.

    tap: "image", "block1" .. "block4": what `score` gives. stages: names of the four modules whose outputs are the
    blocks; None: layer1 .. layer4 where they exist; else, among the blocks of `body` where there is one, otherwise
    among all modules, the last before the last batch norm at each of the four smallest spatial sizes above 1 x 1 (no
    loss comes after that norm, so no gradient; layer4 too is what enters an IResNet's last norm).
    ValueError: no BatchNorm2d; no such stages; a network that is not in eval mode, in float32 and on the CPU.
    """

    name = "grafiqs"
    higher_is_better = False
    needs_fit = False

    @torch_defaults()
    def __init__(
        self,
        network: nn.Module,
        preset: Preset,
        *,
        tap: str = "block2",
        stages: Sequence[str] | None = None,
        chunk: int = 8,
    ) -> None:
        if tap not in TAPS:
            raise InputError(f"expected a tap of {', '.join(TAPS)}, got {tap!r}")
        self.network, self.preset, self.tap, self.chunk = network, preset, tap, chunk
        check_network(self)
        self._norms = [module for module in network.modules() if _is_norm(module)]
        if not self._norms:
            raise InputError(
                "grafiqs: expected a network with BatchNorm2d and its running statistics, got none; the usual cause is "
                "batch norm folded into the convolutions: use the network as it was trained"
            )
        self._normalize = preset.normalize()
        self.stages = tuple(stages) if stages is not None else self._find_stages()
        modules = dict(network.named_modules())
        missing = [name for name in self.stages if name not in modules]
        if len(self.stages) != len(_BLOCKS) or missing:
            raise InputError(f"grafiqs: expected the names of four modules as stages, got {', '.join(self.stages)}")
        self._stage_modules = [modules[name] for name in self.stages]

    def fit(self, images: Tensor) -> None:
        """Nothing to calibrate."""

    def score(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] RGB -> float32 [N] at `tap`. TypeError, ValueError: as Scorer."""
        return self._scores(images, (self.tap,))[0]

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [N, 3, H, W] RGB -> float32 [N] at each of TAPS, all of one pass, which costs more than `score`."""
        return dict(zip(TAPS, self._scores(images, TAPS), strict=True))

    def _scores(self, images: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, ...]:
        tables: list[Tensor] = []

        def at_taps(rows: Tensor) -> Tensor:
            tables.append(self._gradients(self._normalize(rows), taps))
            return tables[-1].sum(1)  # not finite where one of them is not

        with torch.inference_mode(False):  # which records nothing
            score_chunks(self, images, self.chunk, at_taps)
        table = torch.cat(tables) if tables else torch.empty(0, len(taps))
        return table.float().unbind(1)

    def _gradients(self, x: Tensor, taps: tuple[str, ...]) -> Tensor:
        """Network input [N, 3, H, W] -> sums of absolute gradients [N, taps].

        What comes before the first tap cannot change its gradient: neither recorded nor looked at.
        """
        losses: list[Tensor] = []
        norms = 0
        places: dict[str, Tensor] = {}

        def statistics(module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal norms
            norms += 1
            if args[0].requires_grad:
                losses.append(_loss(module, args[0]))

        def place(tap: str, value: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                torch.set_grad_enabled(True)
                value = value.detach().requires_grad_()
            places[tap] = value
            return value.clone()  # the network may write to it

        with ExitStack() as stack, torch.no_grad():
            for norm in self._norms:
                stack.enter_context(norm.register_forward_pre_hook(statistics))
            for tap, module in zip(_BLOCKS, self._stage_modules, strict=True):
                if tap in taps:

                    def keep(_module: nn.Module, _args: tuple[Any, ...], output: Any, tap: str = tap) -> Tensor:
                        if not isinstance(output, Tensor):
                            raise InputError(f"grafiqs: expected a tensor from the stage of {tap}: choose other stages")
                        return place(tap, output)

                    stack.enter_context(module.register_forward_hook(keep))
            self.network(place("image", x) if "image" in taps else x)
            gradients: Sequence[Tensor | None] = [None] * len(places)
            if losses:
                loss = torch.stack(losses).sum() / norms
                gradients = torch.autograd.grad(loss, [*places.values()], allow_unused=True)
        sums = {tap: g.abs().flatten(1).sum(1) for tap, g in zip(places, gradients, strict=True) if g is not None}
        unused = [tap for tap in taps if tap not in sums]
        if unused:
            raise InputError(f"grafiqs: no batch norm comes after {', '.join(unused)}: choose other stages")
        return torch.stack([sums[tap] for tap in taps], 1)

    def _find_stages(self) -> tuple[str, ...]:
        layers = tuple(f"layer{index}" for index in range(1, 5))
        modules = dict(self.network.named_modules())
        if all(layer in modules for layer in layers):
            return layers
        body = modules.get("body")
        inside = [f"body.{name}" for name, _ in body.named_children()] if body is not None else list(modules)
        last: dict[tuple[int, int], str] = {}
        before_last_norm: dict[tuple[int, int], str] = {}

        def seen(_module: nn.Module, _args: tuple[Any, ...], output: Any, name: str) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1:
                last[output.shape[2], output.shape[3]] = name

        def norm_comes(_module: nn.Module, _args: tuple[Any, ...]) -> None:
            before_last_norm.update(last)

        with ExitStack() as stack, torch.no_grad():
            for norm in self._norms:
                stack.enter_context(norm.register_forward_pre_hook(norm_comes))
            for name in inside:

                def hook(module: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
                    seen(module, args, output, name)

                stack.enter_context(modules[name].register_forward_hook(hook))
            self.network(self._normalize(example_images(self.preset)))
        sizes = sorted(before_last_norm, key=lambda size: size[0] * size[1])[: len(_BLOCKS)]
        if len(sizes) < len(_BLOCKS):
            raise InputError(
                f"grafiqs: expected four spatial sizes above 1 x 1 in the network, got {len(sizes)}: name the stages"
            )
        return tuple(before_last_norm[size] for size in reversed(sizes))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _loss(norm: nn.Module, value: Tensor) -> Tensor:
    """Its input [N, C, H, W] -> how far the statistics of each image are from the recorded ones, [N]."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None  # _is_norm
    assert norm.running_var is not None
    mean = value.mean((2, 3), keepdim=True)
    var = (value - mean).square().mean((2, 3))  # torch.var is several times slower on CPUs
    return (mean.flatten(1) - norm.running_mean).square().mean(1) + (var - norm.running_var).square().mean(1)
