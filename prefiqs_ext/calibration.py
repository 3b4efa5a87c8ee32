"""From a raw quality to an integer of 0 to 100, as people and ISO/IEC 29794-5's vocabulary have it.

100 Q is squeezed near the top, so the scale is fitted on qualities of the user's own images. It ranks nothing anew, it
is for one network and pruning, and it is not OFIQ's unified quality score: do not call it ISO-conformant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prefiqs_ext.exceptions import InputError

NOT_ASSESSABLE = -1
_KINDS = ("percentile", "logistic")
_LEAST = 20  # qualities, to fit a scale on
_LOGISTIC, _PERCENTILES = 2, 101


@dataclass(frozen=True)
class Calibration:
    """A monotone map of quality to 0..100.

    kind "logistic", numbers (x0, w): round(100 / (1 + exp((x0 - quality) / w))), OFIQ's form. kind "percentile",
    numbers the 101 quantiles of the qualities it was fitted on: the percentage of them that is lower, between
    neighbours linear, among equals their middle, outside them 0 or 100. ValueError for numbers that are not such.
    """

    kind: Literal["percentile", "logistic"]
    numbers: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", tuple(map(float, self.numbers)))
        if self.kind not in _KINDS:
            raise InputError(f"expected a calibration of kind {' or '.join(_KINDS)}, got {self.kind!r}")
        count = _LOGISTIC if self.kind == "logistic" else _PERCENTILES
        if len(self.numbers) != count or not all(math.isfinite(number) for number in self.numbers):
            raise InputError(f"expected {count} finite numbers of a {self.kind} calibration, got {len(self.numbers)}")
        if self.kind == "logistic" and self.numbers[1] <= 0:
            raise InputError(f"expected a width above 0, got {self.numbers[1]}")
        if self.kind == "percentile" and (any(np.diff(self.numbers) < 0) or self.numbers[0] == self.numbers[-1]):
            raise InputError("expected quantiles in ascending order, not all equal")

    @classmethod
    def fit(cls, quality: Tensor, kind: Literal["percentile", "logistic"] = "percentile") -> Calibration:
        """The scale of these qualities: their median becomes 50; their quartiles become 25 and 75, or (logistic) lie as
        far apart as 25 and 75.

        quality: [N] of ScoreOutput, at least 20, not all equal; NaN rows are left out. ValueError otherwise.
        """
        values = quality.detach().double().cpu().numpy().ravel()
        values = values[np.isfinite(values)]
        if len(values) < _LEAST:
            raise InputError(f"expected {_LEAST} or more qualities to fit a calibration on, got {len(values)}")
        if values.min() == values.max():
            raise InputError("expected qualities that differ, got all equal")
        if kind == "percentile":
            return cls(kind, tuple(np.quantile(values, np.linspace(0, 1, _PERCENTILES)).tolist()))
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        if high <= low:
            raise InputError("expected qualities that differ, got half of them equal: use kind='percentile'")
        # 100 / (1 + exp(-d / w)) is 75 at d = w ln 3.
        return cls(kind, (middle, (high - low) / (2 * math.log(3))))

    def __call__(self, quality: Tensor) -> Tensor:
        """[N] -> int64 [N] on the same device, 0..100, HIGHER is better; -1, not assessable, where quality is NaN."""
        values = quality.detach().double().cpu().numpy()
        if self.kind == "logistic":
            x0, width = self.numbers
            with np.errstate(over="ignore"):  # a narrow scale is a step
                scores = 100 / (1 + np.exp(np.minimum((x0 - values) / width, 700)))
        else:
            quantiles, first, counts = np.unique(self.numbers, return_index=True, return_counts=True)
            scores = np.interp(values, quantiles, first + (counts - 1) / 2, left=0, right=100)
        rounded = np.where(np.isnan(values), NOT_ASSESSABLE, np.floor(np.nan_to_num(scores) + 0.5))
        return torch.from_numpy(rounded.astype(np.int64)).to(quality.device)
