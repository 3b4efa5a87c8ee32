"""The calibrated score: what a pass of the network gives for a face, as one number of 0 to 100."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.strict_json import check_names

if TYPE_CHECKING:
    from prefiqs_ext.utils.strict_json import JSON

DISCARDED = (0.01, 0.05, 0.1)
"""The shares of the calibration faces that the proposed thresholds discard."""
_LEAST_DISTANCE = 1e-6  # how far float32 rounds D
_LEAST = 1e-20  # a number whose logarithm is taken is at least this
_MOST_LAYERS = 64
_LARGEST = sys.float_info.max
_LARGEST_INTEGER = 1 << 53  # which a float has exactly

Prior = Literal["norm", "distance"]


@dataclass(frozen=True)
class Calibration:
    """From what a pass gives for a face to a score of 0 to 100: 100 times the expected similarity.

    That is the cosine that this network is expected to find between the face's embedding and that of a good image of
    the same face. With x the logarithms of the prior's signal and of the layers' norms, minus `centre`,

        m = x . precision . x
        s = x[0] + min(1, radius / m) * (x . correction)
        score = 100 / (1 + exp(-(offset + slope * s)))

    `calibrate` fits it, by the rule in fit.py. It holds for one network, device and dtype.

    Attributes:
        prior: The signal that ranks without a correction: "norm", of the embedding, or "distance", 1 / D.
        layers: The names of the network's layers whose outputs' norms are read.
        centre: 1 + K numbers, with K layers.
        precision: 1 + K rows of 1 + K numbers.
        radius: Above 0.
        correction: 1 + K numbers; all are 0 where no correction was found to help.
        offset: Of the logistic curve.
        slope: Of the logistic curve, above 0.
        error: The root mean square of expected minus found similarity, in points of the score, on faces left out.
        reliability: For tenths of the degraded copies, by rising expectation: the means of the expected and of the
            found similarity in points, and the number of copies. All are of faces left out.
        left_out: For each kind of degradation, how the score ranked copies of that kind when the fit had not seen it,
            relative to the prior; below 1 is better. See fit.py.
        thresholds: The scores below which 1, 5 and 10 % of the calibration faces lie.
        faces: How many faces it was fitted on.

    Raises:
        InputError: Numbers that are not as above.
    """

    prior: Prior
    layers: tuple[str, ...]
    centre: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    radius: float
    correction: tuple[float, ...]
    offset: float
    slope: float
    error: float
    reliability: tuple[tuple[float, float, int], ...]
    left_out: dict[str, float] = field(hash=False)
    thresholds: tuple[float, float, float]
    faces: int

    def __post_init__(self) -> None:
        if self.prior not in ("norm", "distance"):
            raise InputError(f"prior is {self.prior!r}, expected 'norm' or 'distance'")
        layers = self.layers
        if not isinstance(layers, tuple) or not all(isinstance(name, str) and name for name in layers):
            raise InputError(f"layers are {layers!r:.80}, expected names")
        if len(set(layers)) < len(layers) or len(layers) > _MOST_LAYERS:
            raise InputError(f"expected at most {_MOST_LAYERS} different layers, got {len(layers)}")
        size = 1 + len(layers)
        if not isinstance(self.left_out, dict):
            raise InputError(f"left_out is {str(self.left_out)[:80]}, expected a number for each kind")
        if not isinstance(self.reliability, tuple):
            raise InputError(f"reliability is {str(self.reliability)[:80]}, expected bins")
        if not (isinstance(self.precision, tuple) and len(self.precision) == size):
            raise InputError(f"expected a precision of {size} rows")
        for name, numbers, count in (
            ("centre", self.centre, size),
            ("correction", self.correction, size),
            *(("row of precision", row, size) for row in self.precision),
            ("thresholds", self.thresholds, len(DISCARDED)),
            *(("bin of reliability", row, 3) for row in self.reliability),
            ("radius, offset, slope and error", (self.radius, self.offset, self.slope, self.error), 4),
            ("left_out", tuple(self.left_out.values()), len(self.left_out)),
        ):
            _check_numbers(numbers, count, name)
        if self.radius <= 0 or self.slope <= 0:
            raise InputError(f"expected radius and slope above 0, got {self.radius} and {self.slope}")
        if type(self.faces) is not int or self.faces < 1:
            raise InputError(f"faces is {self.faces!r}, expected 1 or more")

    def __call__(
        self, distance: Tensor, embedding_norm: Tensor, layer_norms: Tensor, *, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Score N faces by what a pass gave for them.

        Args:
            distance: [N], D.
            embedding_norm: [N].
            layer_norms: [N, K], of `layers`.
            dtype: What to compute in. In float64 the order in which a device adds up does not show in the result.

        Returns:
            float32 [N] on the same device, 0 to 100, HIGHER is better. NaN where a number is NaN.
        """
        features = compute_features(self.prior, distance, embedding_norm, layer_norms, dtype)
        centred = features - features.new_tensor(self.centre)
        precision = centred.new_tensor(self.precision)
        squared = ((centred @ precision) * centred).sum(1)
        seen = self.radius / squared.clamp_min(self.radius)
        ranked = centred[:, 0] + seen * (centred @ centred.new_tensor(self.correction))
        return (100 * torch.sigmoid(self.offset + self.slope * ranked)).float()

    @property
    def is_corrected(self) -> bool:
        """Whether the layers' norms change anything; if not, the score ranks as the prior does."""
        return any(self.correction)

    def describe(self) -> str:
        """Say what the score and a threshold mean, one sentence per line."""
        one, five, ten = self.thresholds
        return (
            "A score of 60 means an expected cosine of 0.60 between the face and a good image of the same face, "
            "by this network.\n"
            f"On faces left out, the expectation was off by {self.error:.0f} points (root mean square).\n"
            f"A threshold of {one:.1f}, {five:.1f} or {ten:.1f} discards 1, 5 or 10 % of faces like these."
        )

    def to_dict(self) -> dict[str, JSON]:
        """The calibration as JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, JSON]) -> Calibration:
        """Make the calibration that `to_dict` gave.

        Raises:
            InputError: The values are those of no calibration.
        """
        named = check_names(values, tuple(field.name for field in fields(Calibration)), "a calibration")
        return Calibration(**{name: _make_tuples(value) for name, value in named.items()})


def compute_features(
    prior: Prior,
    distance: Tensor,
    embedding_norm: Tensor,
    layer_norms: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Compute the features that a calibrated score reads: [N, 1 + K] in `dtype`, see :class:`Calibration`."""
    signal = embedding_norm if prior == "norm" else 1 / distance.clamp_min(_LEAST_DISTANCE)
    return torch.cat([signal[:, None], layer_norms], 1).to(dtype).clamp_min(_LEAST).log()


def _make_tuples(value: JSON) -> Any:
    return tuple(map(_make_tuples, value)) if isinstance(value, list) else value


def _check_numbers(numbers: object, count: int, name: str) -> None:
    if not isinstance(numbers, tuple) or len(numbers) != count:
        raise InputError(f"expected {count} numbers as {name}, got {str(numbers)[:80]}")
    for number in numbers:
        largest = _LARGEST_INTEGER if isinstance(number, int) else _LARGEST
        if type(number) not in (int, float) or not -largest <= number <= largest:  # nor is NaN
            raise InputError(f"expected finite numbers as {name}, got {str(number)[:80]}")
