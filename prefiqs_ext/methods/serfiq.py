"""SER-FIQ (CVPR 2020): how close the embeddings of one image stay when dropout draws another mask each time.

This is the paper's same-model method. Source: equation 2 of the paper, and the authors' code
(github.com/pterhoer/FaceImageQuality).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.inputs import make_example_images
from prefiqs_ext.methods.network_method import check_network, score_chunks
from prefiqs_ext.models.embedding import select_embedding
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.text import describe_error
from prefiqs_ext.utils.torch_defaults import torch_defaults

if TYPE_CHECKING:
    from typing_extensions import Self

_TOLERANCE = 1e-3  # of embeddings of length 1; float32 rounds below 1e-5


class SERFIQ:
    """2 / (1 + exp(d)) in (0, 1], HIGHER is better (equation 2 of the paper).

    Here d is the mean Euclidean distance between all pairs of m normalised embeddings of an image, each computed with
    another mask of the network's last nn.Dropout.

    The network runs once up to the dropout. Its output then becomes m rows, so that only what follows runs m times. All
    images get the same m masks and run one by one, so a score has the same bits in any batch. The authors' last step, a
    logistic function of the score, changes no order and is left out.

    Args:
        network: In eval mode, in float32 and on the CPU, with an nn.Dropout before its embedding.
        preset: What the network wants done to an image.
        passes: m, 2 or more; 100 in the paper.
        seed: Of the masks.
        output: Which of the network's several outputs is the embedding, as in :class:`Scorer`.

    Raises:
        InputError: The network is not as above, or it mixes rows behind the dropout.
    """

    name = "serfiq"
    higher_is_better = True
    fit_images = 0

    @torch_defaults()
    def __init__(
        self, network: nn.Module, preset: Preset, *, passes: int = 100, seed: int = 0, output: int | str | None = None
    ) -> None:
        if passes < 2:
            raise InputError(f"expected 2 passes or more, got {passes}")
        self.network, self.preset, self.output = network, preset, output
        check_network(self)
        self._normalize = preset.normalize()
        self.dropout, self._module, shape = self._find_last_dropout()
        kept = torch.rand(passes, *shape, generator=torch.Generator().manual_seed(seed)) >= self._module.p
        self._masks = kept / (1 - self._module.p)
        self._check_rows_stay_apart()

    def fit(self, images: Tensor) -> Self:
        """Return the method itself: there is nothing to fit."""
        return self

    def score(self, images: Tensor) -> Tensor:
        """Score uint8 RGB images [N, 3, H, W]: float32 [N] in (0, 1], HIGHER is better.

        Raises:
            InputError: Another batch, or an image whose embedding has no direction.
        """

        def robustness(image: Tensor) -> Tensor:
            distances = torch.pdist(self._embed(image, self._masks))
            return 2 * torch.sigmoid(-distances.mean(0, keepdim=True))

        return score_chunks(self, images, 1, robustness)

    def _embed(self, image: Tensor, masks: Tensor) -> Tensor:
        """Embed one image once per mask: float64 [m, d], normalised; NaN for one without a direction."""

        def apply_masks(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            return output * masks  # in eval mode a dropout's output is its input

        with self._module.register_forward_hook(apply_masks), torch.no_grad():
            found = select_embedding(self.network(self._normalize(image)), self.output).double()
        unit: Tensor = found / torch.linalg.vector_norm(found, dim=1, keepdim=True)
        return unit

    def _find_last_dropout(self) -> tuple[str, nn.Dropout, torch.Size]:
        """The name and module of the dropout that is called last, and the shape of one image's row in it."""
        called: list[tuple[str, nn.Dropout, torch.Size]] = []
        with ExitStack() as stack, torch.no_grad():
            for name, module in self.network.named_modules():
                if isinstance(module, nn.Dropout) and 0 < module.p < 1:

                    def hook(module: nn.Dropout, _args: object, output: Tensor, name: str = name) -> None:
                        called.append((name, module, output.shape[1:]))

                    stack.enter_context(module.register_forward_hook(hook))
            self.network(self._normalize(make_example_images(self.preset)))
        if not called:
            raise InputError(
                "serfiq: expected a network with an nn.Dropout of 0 < p < 1 before its embedding, got none: without "
                "dropout no pass differs from another"
            )
        return called[-1]

    def _check_rows_stay_apart(self) -> None:
        """Check that m rows behind the dropout give what m passes give."""
        image = make_example_images(self.preset)
        try:
            together = self._embed(image, self._masks)
        except RuntimeError as error:
            raise InputError(self._explain_mixing(describe_error(error)[:100])) from error
        last = self._embed(image, self._masks[-1:])
        if len(together) != len(self._masks):
            raise InputError(self._explain_mixing(f"{len(together)} embeddings for {len(self._masks)} masks"))
        difference = float((together[-1:] - last).abs().max())
        if not difference < _TOLERANCE:
            raise InputError(self._explain_mixing(f"embeddings that differ by {difference:.2g}"))

    def _explain_mixing(self, what: str) -> str:
        return f"serfiq: expected rows that stay apart behind {self.dropout}, got {what}"
