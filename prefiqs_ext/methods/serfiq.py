"""SER-FIQ (CVPR 2020): how close together the embeddings of one image stay while dropout draws anew.

The same-model method. Its form: equation 2 of the paper, and the authors' code (github.com/pterhoer/FaceImageQuality).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.inputs import example_images
from prefiqs_ext.methods.images import check_network, score_chunks
from prefiqs_ext.models.embedding import select_embedding
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.torch_defaults import torch_defaults

_TOLERANCE = 1e-3  # of embeddings of length 1; float32 rounds below 1e-5


class SERFIQ:
    """2 / (1 + exp(d)) in (0, 1], d the mean Euclidean distance of the pairs among m normalised embeddings of an image,
    each behind another draw of the network's last nn.Dropout. HIGHER is better.

    The network runs once up to the dropout; its output then becomes m rows, so only what follows runs m times. All
    images have the same m draws, and run one by one: a score has the same bits in any batch. The authors' last step, a
    logistic function of the score that changes no order, is left out.

    passes: m, 2 or more. seed: of the draws. output: which of several outputs is the embedding, as Scorer takes it.
    ValueError: a network that is not in eval mode, in float32 and on the CPU,
    without such a dropout, or that mixes rows behind it.
    """

    name = "serfiq"
    higher_is_better = True
    needs_fit = False

    @torch_defaults()
    def __init__(
        self, network: nn.Module, preset: Preset, *, passes: int = 100, seed: int = 0, output: int | str | None = None
    ) -> None:
        if passes < 2:
            raise InputError(f"expected 2 passes or more, got {passes}")
        self.network, self.preset, self.output = network, preset, output
        check_network(self)
        self._normalize = preset.normalize()
        self.dropout, self._module, shape = self._last_dropout()
        kept = torch.rand(passes, *shape, generator=torch.Generator().manual_seed(seed)) >= self._module.p
        self._draws = kept / (1 - self._module.p)
        self._check()

    def fit(self, images: Tensor) -> None:
        """Nothing to calibrate."""

    def score(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] RGB -> float32 [N]. TypeError, ValueError: as Scorer."""

        def robustness(image: Tensor) -> Tensor:
            distances = torch.pdist(self._embeddings(image, self._draws))
            return 2 * torch.sigmoid(-distances.mean(0, keepdim=True))

        return score_chunks(self, images, 1, robustness)

    def _embeddings(self, image: Tensor, draws: Tensor) -> Tensor:
        """Float64 [m, d], normalised, of one image; NaN where one has no direction."""

        def draw(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            return output * draws  # in eval mode the output is the input

        with self._module.register_forward_hook(draw), torch.no_grad():
            found = select_embedding(self.network(self._normalize(image)), self.output).double()
        unit: Tensor = found / torch.linalg.vector_norm(found, dim=1, keepdim=True)
        return unit

    def _last_dropout(self) -> tuple[str, nn.Dropout, torch.Size]:
        """The one that is called last, its name before it, and the shape of an image's row in it."""
        called: list[tuple[str, nn.Dropout, torch.Size]] = []
        with ExitStack() as stack, torch.no_grad():
            for name, module in self.network.named_modules():
                if isinstance(module, nn.Dropout) and 0 < module.p < 1:

                    def hook(module: nn.Dropout, _args: Any, output: Tensor, name: str = name) -> None:
                        called.append((name, module, output.shape[1:]))

                    stack.enter_context(module.register_forward_hook(hook))
            self.network(self._normalize(example_images(self.preset)))
        if not called:
            raise InputError(
                "serfiq: expected a network with an nn.Dropout of 0 < p < 1 before its embedding, got none: without "
                "dropout no pass differs from another"
            )
        return called[-1]

    def _check(self) -> None:
        """That m rows behind the dropout give what m passes give."""
        image = example_images(self.preset)
        try:
            together = self._embeddings(image, self._draws)
        except RuntimeError as error:
            raise InputError(self._mixed(" ".join(str(error).split())[:100])) from error
        last = self._embeddings(image, self._draws[-1:])
        if len(together) != len(self._draws):
            raise InputError(self._mixed(f"{len(together)} embeddings for {len(self._draws)} draws"))
        difference = float((together[-1:] - last).abs().max())
        if not difference < _TOLERANCE:
            raise InputError(self._mixed(f"embeddings that differ by {difference:.2g}"))

    def _mixed(self, what: str) -> str:
        return f"serfiq: expected rows that stay apart behind {self.dropout}, got {what}"
