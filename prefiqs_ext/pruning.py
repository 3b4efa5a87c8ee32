"""What is pruned: how many weights of which layers, chosen how.

PreFIQs (arXiv 2605.13396) prunes single weights by magnitude, 40 % of them; beside that, it studies random weights and
whole filters. Which weights those are depends on the weights alone: no image, no label and no gradient plays a part.

This module describes a pruning and needs no torch. pruning_masks.py does the work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prefiqs_ext.exceptions import InputError, InputTypeError

if TYPE_CHECKING:
    from torch import Tensor, nn

METHODS = ("magnitude", "random", "structured")
"""The names of pruning methods. Besides, there are n:m patterns such as "2:4"."""

_DEFAULT_SPARSITY = 0.4
_SCOPES = ("layer", "global")
_LARGEST_M = 64


@dataclass(frozen=True)
class Pruning:
    """Which weights the pruned branch loses.

    A module that is used in several places is one layer. For example, ``Pruning()`` is the paper's setting,
    ``Pruning(sparsity=0.3, scope="global", layers="conv+linear")`` ranks the weights of all layers together, and
    ``Pruning("2:4")`` keeps two of every four weights.

    Attributes:
        method: How the weights are chosen.

            - "magnitude" removes those of smallest absolute value.
            - "random" draws a number per weight, from one CPU generator per layer, seeded by `seed` and the layer's
              name: a layer's mask does not depend on which other layers are pruned.
            - "structured" removes whole filters, those of smallest L1 norm (torch.nn.utils.prune.ln_structured, n=1,
              dim=0). Shapes, biases and the following layers stay as they are, so a removed filter's batch norm still
              leaves a constant; removing what depends on the filter, as DepGraph does, is another thing. The last
              linear layer stays dense unless a pattern names it: its filters are the embedding's coordinates.
            - "2:4", or any n:m with 1 <= n < m <= 64, keeps the n largest of every m weights along the input channels.
              A layer whose input channels (per group) m does not divide stays dense.
        sparsity: The fraction of the weights, or of the filters, that is removed, in [0, 1). Of n weights exactly
            Python's round(sparsity * n) go, the lowest ranked ones. Of equals, the one with the lowest flat index goes
            first, in the shape in which torch stores the weight (OIHW for a convolution). The default is the paper's
            0.4, and 1 - n/m for n:m, which takes no other value.
        scope: "layer" ranks each layer by itself. "global" ranks all chosen layers together, equal weights in the order
            of ``model.named_modules()``; it is for "magnitude" and "random" only.
        layers: "conv" means every Conv1d and Conv2d, with depthwise, shortcut and stem layers. "conv+linear" means
            those and every Linear. Or one or more fnmatch patterns, case-sensitive, for the names of such modules.
        seed: For "random" only.

    Raises:
        InputError: A value is none of these.
    """

    method: Literal["magnitude", "random", "structured"] | str = "magnitude"
    sparsity: float = None  # type: ignore[assignment]  # a number in every instance
    scope: Literal["layer", "global"] = "layer"
    layers: str | Sequence[str] = "conv"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS and self.n_of_m is None:
            raise InputError(
                f"pruning method must be one of {', '.join(METHODS)}, or n:m such as '2:4', got {self.method!r}"
            )
        if self.scope not in _SCOPES:
            raise InputError(f"pruning scope must be one of {', '.join(_SCOPES)}, got {self.scope!r}")
        if self.scope == "global" and self.method not in ("magnitude", "random"):
            raise InputError(f"pruning method {self.method!r} ranks each layer by itself: use scope='layer'")
        n, m = self.n_of_m or (None, None)
        own = _DEFAULT_SPARSITY if n is None or m is None else (m - n) / m
        if self.sparsity is None:
            object.__setattr__(self, "sparsity", own)
        if isinstance(self.sparsity, bool) or not isinstance(self.sparsity, (int, float)) or not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity must be a number in [0, 1), got {self.sparsity!r}")
        if n is not None:
            if not math.isclose(self.sparsity, own):
                raise InputError(
                    f"pruning method {self.method!r} has sparsity {own:g}, got {self.sparsity!r}: leave sparsity out"
                )
            object.__setattr__(self, "sparsity", own)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"pruning seed must be an integer, got {self.seed!r}")
        if not isinstance(self.layers, str):
            patterns = tuple(self.layers) if isinstance(self.layers, Sequence) else ()
            if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
                raise InputError(f"layers must be 'conv', 'conv+linear' or name patterns, got {self.layers!r}")
            object.__setattr__(self, "layers", patterns)  # a list would make the dataclass unhashable

    def make_masks(self, model: nn.Module) -> dict[str, Tensor]:
        """Makes the masks of a network's weights.

        The weights must be the RAW ones: batch norms folded into them would rescale them, and other weights would be
        chosen. The network is only read. Besides the masks (one byte per weight) this needs, at its peak, 8 bytes
        per weight of the largest layer (scope "layer") or of all chosen layers (scope "global"); 16 bytes for float64.

        Args:
            model: The network.

        Returns:
            By the names of the modules, a bool mask of each weight's shape, on the CPU, True = keep, in the order of
            named_modules.

        Raises:
            InputError: No layer is chosen or can be pruned, a pattern matches no layer, or a weight is NaN or infinite.
        """
        from prefiqs_ext.pruning_masks import make_masks

        return make_masks(self, model)

    def find_dense_layers(self, model: nn.Module) -> list[str]:
        """Finds those of the chosen layers that the method leaves as they are.

        For n:m, these are layers whose input channels m does not divide; for "structured", it is the last linear layer.

        Returns:
            The names of the layers.
        """
        from prefiqs_ext.pruning_masks import find_dense_layers

        return find_dense_layers(self, model)

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """The two numbers of an n:m method; None for the other methods."""
        match = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", self.method) if isinstance(self.method, str) else None
        if match is None:
            return None
        n, m = int(match[1]), int(match[2])
        return (n, m) if n < m <= _LARGEST_M else None


def check_pruning(pruning: object) -> None:
    """Checks the type of what is given as a pruning: a :class:`Pruning`, or masks by the names of layers.

    Raises:
        InputTypeError: It is something else, such as the sparsity alone.
    """
    if isinstance(pruning, Pruning):
        return
    if isinstance(pruning, Mapping):
        from torch import Tensor

        for name, mask in pruning.items():
            if not isinstance(mask, Tensor):
                raise InputTypeError(f"expected a bool tensor as mask of {name!r}, got {type(mask).__name__}")
        return
    remedy = ""
    if isinstance(pruning, float | int):
        remedy = f": Pruning(sparsity={pruning!r})"
    elif isinstance(pruning, str):
        remedy = f": Pruning({pruning!r})"
    raise InputTypeError(f"expected a Pruning, or a dictionary of masks, got {type(pruning).__name__}{remedy}")
