"""A scale of 0 to 100 for the raw quality, as people and the vocabulary of ISO/IEC 29794-5 have it.

100 * quality is squeezed near the top, so the scale is fitted on the qualities of the user's own images. It changes no
ranking. It holds for one network and one pruning. It is not OFIQ's unified quality score: do not call it
ISO-conformant.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from prefiqs_ext.exceptions import InputError, InputTypeError
from prefiqs_ext.utils.strict_json import build_dataclass

if TYPE_CHECKING:
    from prefiqs_ext.utils.strict_json import JSON

_LEAST = 20  # qualities to fit on: with fewer, a percentile is off by 10 points (one standard error) or more
_PERCENTILES = 101  # the 0th to the 100th


class Calibration(ABC):
    """A monotone map of quality to 0..100: a :class:`PercentileCalibration` or a :class:`LogisticCalibration`.

    >>> calibration = prefiqs_ext.Calibration.fit(prefiqs_ext.score(crops).quality)
    >>> calibration(prefiqs_ext.score(crops).quality).shape
    torch.Size([40])
    """

    kind: ClassVar[str]

    @staticmethod
    def fit(quality: ArrayLike | Tensor, kind: Literal["percentile", "logistic"] = "percentile") -> Calibration:
        """Fit the scale on these qualities. Their median becomes 50.

        Args:
            quality: [N] of ScoreOutput, a tensor, an array or a list; at least 20, not all equal. NaN is ignored.
            kind: "percentile": their quartiles become 25 and 75. "logistic": their quartiles lie as far apart as 25 and
                75.

        Raises:
            InputTypeError: Something else than numbers.
            InputError: Too few qualities, or qualities that do not differ; another kind.
        """
        values = _convert_quality(quality).detach().double().cpu().numpy().ravel()
        values = values[np.isfinite(values)]
        if len(values) < _LEAST:
            raise InputError(f"expected {_LEAST} or more qualities to fit a calibration on, got {len(values)}")
        if values.min() == values.max():
            raise InputError("expected qualities that differ, got all equal")
        return _get_class(kind)._fit(values)

    def __call__(self, quality: ArrayLike | Tensor) -> Tensor:
        """Map qualities [N] to float32 [N] on the same device: 0 to 100, HIGHER is better; NaN where one is NaN."""
        return self._scale(_convert_quality(quality).detach().double()).float()

    def to_dict(self) -> dict[str, JSON]:
        """The calibration as JSON values: its kind, and its fields by name."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]  # both kinds are dataclasses

    @staticmethod
    def from_dict(values: object) -> Calibration:
        """Make the calibration that `to_dict` gave.

        Raises:
            InputError: The values are those of no calibration.
            FileFormatError: A field is missing, or there is one more.
        """
        if not isinstance(values, dict) or "kind" not in values:
            raise InputError(f"calibration is {str(values)[:80]!r}, expected an object with its kind")
        fields = {name: value for name, value in values.items() if name != "kind"}
        calibration: Calibration = build_dataclass(_get_class(values["kind"]), fields, "a calibration")
        return calibration

    @classmethod
    @abstractmethod
    def _fit(cls, values: NDArray[np.float64]) -> Calibration:
        """Fit on finite qualities [N], not all equal."""

    @abstractmethod
    def _scale(self, values: Tensor) -> Tensor:
        """Map qualities, float64 [N], to [0, 100]. It is plain tensor arithmetic, which can be exported."""


@dataclass(frozen=True)
class PercentileCalibration(Calibration):
    """The percentage of the qualities it was fitted on that is lower.

    Between neighbouring percentiles it is linear, among equal ones it is their middle, and outside them it is 0 or 100.

    Attributes:
        percentiles: The 0th to the 100th percentile of these qualities, ascending, not all equal.

    Raises:
        InputError: Values that are no such percentiles.
    """

    kind: ClassVar[str] = "percentile"

    percentiles: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "percentiles", _convert_finite(self.percentiles, _PERCENTILES, "percentiles"))
        if any(np.diff(self.percentiles) < 0) or self.percentiles[0] == self.percentiles[-1]:
            raise InputError("expected percentiles in ascending order, not all equal")

    @classmethod
    def _fit(cls, values: NDArray[np.float64]) -> PercentileCalibration:
        return cls(tuple(np.quantile(values, np.linspace(0, 1, _PERCENTILES)).tolist()))

    def _scale(self, values: Tensor) -> Tensor:
        points = torch.tensor(self.percentiles, dtype=torch.float64, device=values.device)
        middles = (torch.searchsorted(points, points) + torch.searchsorted(points, points, right=True) - 1).double() / 2
        upper = torch.searchsorted(points, values).clamp(1, _PERCENTILES - 1)  # the first point that is not lower
        low, high = points[upper - 1], points[upper]
        inside = torch.lerp(middles[upper - 1], middles[upper], (values - low) / (high - low))
        inside = torch.where(values == points[0], middles[0], inside)  # where low and high may be equal
        return inside.masked_fill(values < points[0], 0).masked_fill(values > points[-1], 100)


@dataclass(frozen=True)
class LogisticCalibration(Calibration):
    """100 / (1 + exp((midpoint - quality) / width)), the form of OFIQ's quality measures.

    Attributes:
        midpoint: The quality that becomes 50.
        width: Above 0. The quality midpoint + width * ln 3 becomes 75.

    Raises:
        InputError: A number that is not finite, or a width of 0 or less.
    """

    kind: ClassVar[str] = "logistic"

    midpoint: float
    width: float

    def __post_init__(self) -> None:
        midpoint, width = _convert_finite((self.midpoint, self.width), 2, "midpoint and width")
        object.__setattr__(self, "midpoint", midpoint)
        object.__setattr__(self, "width", width)
        if self.width <= 0:
            raise InputError(f"expected a width above 0, got {self.width}")

    @classmethod
    def _fit(cls, values: NDArray[np.float64]) -> LogisticCalibration:
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        if high <= low:
            raise InputError("expected qualities that differ, got half of them equal: use kind='percentile'")
        # 100 / (1 + exp(-d / w)) is 75 at d = w ln 3.
        return cls(middle, (high - low) / (2 * math.log(3)))

    def _scale(self, values: Tensor) -> Tensor:
        # A narrow scale is a step: its exponent overflows to infinity, whose score is 0.
        return 100 / (1 + torch.exp((self.midpoint - values) / self.width))


def _convert_quality(quality: ArrayLike | Tensor) -> Tensor:
    if isinstance(quality, Tensor):
        return quality
    try:
        return torch.from_numpy(np.array(quality, dtype=np.float64))
    except (TypeError, ValueError, RuntimeError) as error:
        remedy = ": give its quality" if hasattr(quality, "quality") else ""
        raise InputTypeError(
            f"expected qualities [N] in a tensor, an array or a list, got {type(quality).__name__}{remedy}"
        ) from error


def _get_class(kind: object) -> type[Calibration]:
    for known in (PercentileCalibration, LogisticCalibration):
        if kind == known.kind:
            return known
    raise InputError(f"expected a calibration of kind percentile or logistic, got {kind!r}")


def _convert_finite(values: tuple[float, ...], count: int, what: str) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, values))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"expected numbers as {what}: {error}") from None
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise InputError(f"expected {count} finite numbers as {what}, got {len(numbers)}")
    return numbers
