"""GraFIQs (CVPR Workshops 2024): how strongly a gradient would pull an image's statistics to those of batch norm.

Source: the paper's section on the method, and the authors' code (github.com/jankolf/GraFIQs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.inputs import make_example_images
from prefiqs_ext.methods.network_method import ObservingMethod, check_network, score_chunks
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.torch_defaults import torch_defaults

if TYPE_CHECKING:
    from typing_extensions import Self

_BLOCKS = ("block1", "block2", "block3", "block4")
TAPS = ("image", *_BLOCKS)
"""The places at which the gradient can be read."""


class GraFIQs(ObservingMethod):
    """Sum of the absolute gradient at the image or after one of four stages, at least 0, LOWER is better.

    The loss of an image is the mean, over the inputs of all BatchNorm2d, of
    mean_c (mean - running_mean)^2 + mean_c (var - running_var)^2. Here mean and the biased var are taken over (H, W),
    and mean_c over the channels. Batch norm in eval mode does not mix images, so the gradient of the sum of the losses
    is the gradient of each image alone.

    Without `stages`, they are found as follows. If the network has modules layer1 .. layer4, these are the stages.
    Otherwise the candidates are the children of `body`, or all modules if there is no `body`. At each of the four
    smallest spatial sizes above 1 x 1, the last candidate before the last batch norm is taken. After that norm there is
    no loss, hence no gradient. (In an IResNet, too, the output of layer4 is what enters the last norm.)

    Args:
        network: In eval mode, in float32 and on the CPU, with BatchNorm2d that keeps running statistics.
        preset: What the network wants done to an image.
        tap: Where `score` reads the gradient: one of `TAPS`.
        stages: Names of the four modules after which block1 .. block4 are read; None: see above.
        chunk: Images run together; 8 bounds the memory that the recorded activations take.

    Raises:
        InputError: The network is not as above, or has no such stages.
    """

    name = "grafiqs"
    higher_is_better = False
    fit_images = 0

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

    def fit(self, images: Tensor) -> Self:
        """Return the method itself: there is nothing to fit."""
        return self

    @contextmanager
    def observe(self, rows: int) -> Iterator[Callable[[], Tensor]]:
        """Watch one pass of the network, which records the gradient from `tap` on."""
        with self._observe_taps((self.tap,)) as sum_gradients:
            yield lambda: sum_gradients()[:, 0]

    def score_all_taps(self, images: Tensor) -> dict[str, Tensor]:
        """Score uint8 RGB images [N, 3, H, W] at all of `TAPS` in one pass: float32 [N] each.

        The pass takes longer than that of `score`, which stops recording at its tap.
        """
        tables: list[Tensor] = []

        def score_rows(rows: Tensor) -> Tensor:
            with torch.no_grad(), self._observe_taps(TAPS) as sum_gradients:
                self.network(self._normalize(rows))
                tables.append(sum_gradients())
            return tables[-1].sum(1)  # not finite if one of the taps is not

        with torch.inference_mode(False):  # in inference mode nothing is recorded for the gradient
            score_chunks(self, images, self.chunk, score_rows)
        table = torch.cat(tables) if tables else torch.empty(0, len(TAPS))
        return dict(zip(TAPS, table.float().unbind(1), strict=True))

    @contextmanager
    def _observe_taps(self, taps: tuple[str, ...]) -> Iterator[Callable[[], Tensor]]:
        """Watch one pass. The function that is given sums the absolute gradients of each image: [N, taps].

        What the network computes before the first tap cannot change the gradient there, so it is not recorded.
        """
        losses: list[Tensor] = []
        norms = 0
        places: dict[str, Tensor] = {}

        def add_loss(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal norms
            norms += 1
            if args[0].requires_grad:
                losses.append(_compute_loss(module, args[0]))

        def record(tap: str, value: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                torch.set_grad_enabled(True)
                value = value.detach().requires_grad_()
            places[tap] = value
            return value.clone()  # the network may write to it

        def sum_gradients() -> Tensor:
            gradients: Sequence[Tensor | None] = [None] * len(places)
            if losses:
                loss = torch.stack(losses).sum() / norms
                gradients = torch.autograd.grad(loss, [*places.values()], allow_unused=True)
            sums = {tap: g.abs().flatten(1).sum(1) for tap, g in zip(places, gradients, strict=True) if g is not None}
            unused = [tap for tap in taps if tap not in sums]
            if unused:
                raise InputError(f"grafiqs: no batch norm comes after {', '.join(unused)}: choose other stages")
            return torch.stack([sums[tap] for tap in taps], 1)

        with ExitStack() as stack:
            for norm in self._norms:
                stack.enter_context(norm.register_forward_pre_hook(add_loss))
            if "image" in taps:
                stack.enter_context(
                    self.network.register_forward_pre_hook(lambda _module, args: (record("image", args[0]),))
                )
            for tap, module in zip(_BLOCKS, self._stage_modules, strict=True):
                if tap in taps:

                    def hook(_module: nn.Module, _args: object, output: object, tap: str = tap) -> Tensor:
                        if not isinstance(output, Tensor):
                            raise InputError(f"grafiqs: expected a tensor from the stage of {tap}: choose other stages")
                        return record(tap, output)

                    stack.enter_context(module.register_forward_hook(hook))
            yield sum_gradients

    def _find_stages(self) -> tuple[str, ...]:
        layers = tuple(f"layer{index}" for index in range(1, 5))
        modules = dict(self.network.named_modules())
        if all(layer in modules for layer in layers):
            return layers
        body = modules.get("body")
        inside = [f"body.{name}" for name, _ in body.named_children()] if body is not None else list(modules)
        last: dict[tuple[int, int], str] = {}
        before_last_norm: dict[tuple[int, int], str] = {}

        def note_size(output: object, name: str) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1:
                last[output.shape[2], output.shape[3]] = name

        def note_norm(_module: nn.Module, _args: object) -> None:
            before_last_norm.update(last)

        with ExitStack() as stack, torch.no_grad():
            for norm in self._norms:
                stack.enter_context(norm.register_forward_pre_hook(note_norm))
            for name in inside:

                def hook(_module: nn.Module, _args: object, output: object, name: str = name) -> None:
                    note_size(output, name)

                stack.enter_context(modules[name].register_forward_hook(hook))
            self.network(self._normalize(make_example_images(self.preset)))
        sizes = sorted(before_last_norm, key=lambda size: size[0] * size[1])[: len(_BLOCKS)]
        if len(sizes) < len(_BLOCKS):
            raise InputError(
                f"grafiqs: expected four spatial sizes above 1 x 1 in the network, got {len(sizes)}: name the stages"
            )
        return tuple(before_last_norm[size] for size in reversed(sizes))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _compute_loss(norm: nn.Module, value: Tensor) -> Tensor:
    """[N] how far the statistics of each image in a norm's input [N, C, H, W] are from the recorded ones."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None  # _is_norm
    assert norm.running_var is not None
    mean = value.mean((2, 3), keepdim=True)
    var = (value - mean).square().mean((2, 3))  # torch.var is several times slower on the CPU
    return (mean.flatten(1) - norm.running_mean).square().mean(1) + (var - norm.running_var).square().mean(1)
