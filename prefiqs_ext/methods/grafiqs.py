"""GraFIQs (CVPR Workshops 2024): the gradient that would pull an image's batch-norm statistics to the recorded ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prefiqs_ext.batches import example_images
from prefiqs_ext.models.preset import Preset

from .images import score_chunks

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
    among all modules, the last before the last batch norm at each of the four smallest spatial sizes above 1 x 1.
    ValueError: no BatchNorm2d, a network in train mode, no such stages.
    """

    name = "grafiqs"
    higher_is_better = False
    needs_fit = False

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
            raise ValueError(f"expected a tap of {', '.join(TAPS)}, got {tap!r}")
        if network.training:
            raise ValueError("expected a model in eval mode: call model.eval() first")
        self._norms = [module for module in network.modules() if _is_norm(module)]
        if not self._norms:
            raise ValueError(
                "grafiqs: expected a network with BatchNorm2d and its running statistics, got none; the usual cause is "
                "batch norm folded into the convolutions: use the network as it was trained"
            )
        self.network, self.preset, self.tap, self.chunk = network, preset, tap, chunk
        self._normalize = preset.normalize()
        self.stages = tuple(stages) if stages is not None else self._find_stages()
        modules = dict(network.named_modules())
        missing = [name for name in self.stages if name not in modules]
        if len(self.stages) != len(_BLOCKS) or missing:
            raise ValueError(f"grafiqs: expected the names of four modules as stages, got {', '.join(self.stages)}")
        self._stage_modules = [modules[name] for name in self.stages]

    def fit(self, images: Tensor) -> None:
        """Nothing to calibrate."""

    def score(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] RGB -> float32 [N] at `tap`. TypeError, ValueError: as Scorer."""
        return self.scores(images)[self.tap]

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [N, 3, H, W] RGB -> float32 [N] at each of TAPS, all of one pass."""
        columns: list[Tensor] = []

        def at_tap(rows: Tensor) -> Tensor:
            columns.append(self._gradients(self._normalize(rows)))
            return columns[-1].sum(1)  # not finite where one of them is not

        score_chunks(images, self.preset, self.chunk, at_tap)
        table = torch.cat(columns) if columns else torch.empty(0, len(TAPS))
        return dict(zip(TAPS, table.float().unbind(1), strict=True))

    def _gradients(self, x: Tensor) -> Tensor:
        """Network input [N, 3, H, W] -> sums of absolute gradients [N, 5], in the order of TAPS."""
        losses: list[Tensor] = []
        outputs: dict[nn.Module, Tensor] = {}

        def statistics(module: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(module, nn.BatchNorm2d)
            assert module.running_mean is not None  # _is_norm
            assert module.running_var is not None
            value: Tensor = args[0]
            mean, var = value.mean((2, 3)), value.var((2, 3), unbiased=False)
            losses.append((mean - module.running_mean).square().mean(1) + (var - module.running_var).square().mean(1))

        def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            outputs[module] = output

        with ExitStack() as stack, torch.enable_grad():
            for norm in self._norms:
                stack.enter_context(_removed(norm.register_forward_pre_hook(statistics)))
            for module in self._stage_modules:
                stack.enter_context(_removed(module.register_forward_hook(keep)))
            x = x.detach().requires_grad_()
            self.network(x)
            loss = torch.stack(losses).mean(0).sum()
            taps = [x, *(outputs[module] for module in self._stage_modules)]
            gradients = torch.autograd.grad(loss, taps, allow_unused=True)
        unused = [name for name, gradient in zip(TAPS, gradients, strict=True) if gradient is None]
        if unused:
            raise ValueError(f"grafiqs: no batch norm comes after {', '.join(unused)}: choose other stages")
        return torch.stack([gradient.abs().flatten(1).sum(1) for gradient in gradients], 1)

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
                stack.enter_context(_removed(norm.register_forward_pre_hook(norm_comes)))
            for name in inside:

                def hook(module: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
                    seen(module, args, output, name)

                stack.enter_context(_removed(modules[name].register_forward_hook(hook)))
            self.network(self._normalize(example_images(self.preset)))
        sizes = sorted(before_last_norm, key=lambda size: size[0] * size[1])[: len(_BLOCKS)]
        if len(sizes) < len(_BLOCKS):
            raise ValueError(
                f"grafiqs: expected four spatial sizes above 1 x 1 in the network, got {len(sizes)}: name the stages"
            )
        return tuple(before_last_norm[size] for size in reversed(sizes))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    """Takes the hook away at the end, whatever happened."""
    try:
        yield
    finally:
        handle.remove()
