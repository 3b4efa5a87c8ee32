"""The operators with half-precision weights, as CUDA has them, in plain torch on the CPU: float32 sums, rounded once.

Float32 weights go to the CPU's own operators.

What it shows is the arithmetic of a converted graph in float16 or bfloat16: what is rounded where. It says nothing of
the kernels, whose order of additions is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from prefiqs_ext import ops
from prefiqs_ext.ops import EmbeddingDistance
from tests import oracle

HALF = (torch.float16, torch.bfloat16)
_native_conv2d, _native_linear, _unpack = ops.dual_conv2d, ops.dual_linear, oracle.unpack_mask


class Emulation:
    """dtypes: of every layer's result, in the order in which they were computed; normed: of what dense_norm read."""

    def __init__(self) -> None:
        self.dtypes: list[torch.dtype] = []
        self.normed: list[torch.dtype] = []
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def dual_conv2d(
        self,
        src: Tensor,
        weight: Tensor,
        mask: Tensor | None = None,
        pruned_scale: Tensor | None = None,
        bias: Tensor | None = None,
        tap_shift: Tensor | None = None,
        slope: Tensor | None = None,
        residual: Tensor | None = None,
        *,
        out: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        if weight.dtype == torch.float32:
            inputs = (src, weight, mask, pruned_scale, bias, tap_shift, slope, residual)
            return _native_conv2d(*inputs, **settings, out=out)
        assert out is None
        assert residual is None or residual.dtype == self._result_dtype(src, weight)
        return self._layer(
            oracle.expected_dual_conv2d, src, weight, mask, pruned_scale, bias, tap_shift, slope, residual, **settings
        ).contiguous(memory_format=torch.channels_last)

    def dual_linear(
        self,
        src: Tensor,
        weight: Tensor,
        mask: Tensor | None = None,
        pruned_scale: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        paired: bool = False,
    ) -> Tensor:
        if weight.dtype == torch.float32:
            return _native_linear(src, weight, mask, pruned_scale, bias, paired=paired)
        return self._layer(oracle.expected_dual_linear, src, weight, mask, pruned_scale, bias, paired=paired)

    def embedding_distance(self, pair: Tensor) -> EmbeddingDistance:
        return EmbeddingDistance(*oracle.expected_embedding_distance(pair.float()))

    def dense_norm(self, src: Tensor, paired: bool) -> Tensor:
        self.normed.append(src.dtype)
        return oracle.expected_dense_norm(src.float(), paired)

    def _layer(
        self, expected: Any, src: Tensor, weight: Tensor, mask: Tensor | None, *more: Any, **named: Any
    ) -> Tensor:
        assert weight.dtype in HALF
        assert src.dtype in (torch.uint8, torch.float32, weight.dtype)
        assert all(t is None or t.dtype == torch.float32 for t in more[:4])
        dtype = self._result_dtype(src, weight)
        self.dtypes.append(dtype)
        values = src if src.dtype == torch.uint8 else src.to(weight.dtype).float()
        result: Tensor = expected(values, weight.float(), mask, *more, **named)
        return result.to(dtype)

    @staticmethod
    def _result_dtype(src: Tensor, weight: Tensor) -> torch.dtype:
        return src.dtype if src.is_floating_point() else weight.dtype

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """From here on converted graphs run as on CUDA."""
        for name in ("dual_conv2d", "dual_linear"):
            patch.setattr(ops, name, getattr(self, name))
        patch.setattr("prefiqs_ext.dual.runtime.compare.embedding_distance", self.embedding_distance)
        patch.setattr(torch.ops.prefiqs_ext, "dense_norm", self.dense_norm)  # graphs hold the function that calls it
        patch.setattr(oracle, "unpack_mask", self.unpack_mask)

    def unpack_mask(self, packed: Tensor, weight_shape: Sequence[int]) -> Tensor:
        """The oracle's, which goes bit by bit, once for each mask."""
        if id(packed) not in self._kept:
            self._kept[id(packed)] = (packed, _unpack(packed, weight_shape))  # holding on to it: its id stays its own
        return self._kept[id(packed)][1]
