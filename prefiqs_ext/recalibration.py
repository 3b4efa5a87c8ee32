"""Constants that hold each channel of a pruned network to the mean and the spread that it has in the dense network.

Pruning moves the channels of every layer, and later layers then work outside the range they were trained on. This
displacement is the same for all images, so it says nothing about any of them. A recalibrated pruned branch takes it
away: the raw output r of each pruned layer becomes gain * r + shift, with a gain and a shift per output channel. They
come from a few faces without labels (dual/convert/recalibrate.py).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from prefiqs_ext.exceptions import InputError, InputTypeError
from prefiqs_ext.utils.strict_json import check_names

if TYPE_CHECKING:
    from prefiqs_ext.utils.strict_json import JSON

GAINS = (0.2, 5.0)
"""The least and the largest gain. A channel that needs more was cut off, and a larger gain would only amplify noise."""
_MOST_CHANNELS = 1 << 19  # of all layers together, so that settings stay below the largest file that is read


class ChannelScale(NamedTuple):
    """What the pruned branch of one layer does to its raw output: gain * output + shift.

    Attributes:
        gain: float32 [Co], in `GAINS`.
        shift: float32 [Co].
    """

    gain: Tensor
    shift: Tensor


@dataclass(frozen=True, eq=False)
class Recalibration:
    """The gains and shifts of all pruned layers of a network.

    They hold for one network and one pruning. `Scorer(network, pruning, recalibrate=crops)` finds them.

    Attributes:
        layers: The scale of each pruned layer, by the name of its module in the network.

    Raises:
        InputTypeError: It is no mapping of names to pairs of tensors.
        InputError: A gain or shift has another dtype or shape, is not finite or out of range; or there are too many.
    """

    layers: Mapping[str, ChannelScale]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Mapping):
            raise InputTypeError(f"expected gains and shifts by the names of layers, got {type(self.layers).__name__}")
        layers = {name: _check_scale(name, scale) for name, scale in self.layers.items()}
        channels = sum(len(scale.gain) for scale in layers.values())
        if channels > _MOST_CHANNELS:
            raise InputError(f"expected constants of at most {_MOST_CHANNELS} channels, got {channels}: prune less")
        object.__setattr__(self, "layers", layers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recalibration) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))

    def check_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Check that each layer with constants is pruned, and has as many channels.

        Args:
            masks: By the names of the modules, a mask of each weight's shape.

        Raises:
            InputError: A layer is not among them, or has another number of channels.
        """
        for name, scale in self.layers.items():
            if name not in masks:
                raise InputError(
                    f"expected the recalibration of this network and pruning, got one of {name!r}, which is not pruned"
                )
            if len(scale.gain) != len(masks[name]):
                raise InputError(
                    f"expected the recalibration of this network, whose {name!r} has {len(masks[name])} channels, "
                    f"got {len(scale.gain)}"
                )

    def with_prefix(self, prefix: str) -> Recalibration:
        """Return the same constants for a network whose modules have longer names, such as "network.conv1"."""
        return Recalibration({f"{prefix}{name}": scale for name, scale in self.layers.items()})

    def to_dict(self) -> dict[str, JSON]:
        """The constants as JSON values: by layer, the little-endian float32 numbers of gain and shift in base64."""
        return {name: {key: _encode(t) for key, t in scale._asdict().items()} for name, scale in self.layers.items()}

    @staticmethod
    def from_dict(values: Any) -> Recalibration:
        """Make the recalibration that `to_dict` gave, bit for bit.

        Raises:
            InputError: The values are those of no recalibration.
            FileFormatError: A layer has other names than gain and shift.
        """
        if not isinstance(values, Mapping):
            raise InputTypeError(f"recalibration is {str(values)[:80]!r}, expected an object of layers")
        layers = {}
        for name, scale in values.items():
            named = check_names(scale, ChannelScale._fields, f"the constants of {name!r}")
            layers[name] = ChannelScale(**{key: _decode(name, value) for key, value in named.items()})
        return Recalibration(layers)


class RecalibratedLayers(TorchFunctionMode):
    """While it is active, every convolution and linear layer with a weight of its own gives gain * result + shift.

    It serves plain torch networks. A layer is known by its weight and not by its module, because a forward may call
    torch's functions itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self._scales = WeakTensorKeyDictionary()

    def add(self, weight: Tensor, scale: ChannelScale) -> None:
        """Recalibrate what uses this very tensor as its weight."""
        self._scales[weight] = scale

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one of torch's functions."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in (F.conv1d, F.conv2d, F.linear):
            return result
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        scale = self._scales.get(weight)  # type: ignore[no-untyped-call]
        if scale is None:
            return result
        shape = (-1, *(1,) * (weight.dim() - 2))  # channels are the last dimension of a linear layer
        gain, shift = (vector.to(result).view(shape) for vector in scale)
        return result * gain + shift


def _check_scale(name: object, scale: object) -> ChannelScale:
    if not isinstance(name, str):
        raise InputTypeError(f"expected the name of a layer, got {type(name).__name__}")
    if not isinstance(scale, tuple) or len(scale) != 2 or not all(isinstance(vector, Tensor) for vector in scale):
        raise InputTypeError(f"expected a pair of tensors, gain and shift, for {name!r}, got {type(scale).__name__}")
    for vector in scale:
        if vector.dtype != torch.float32 or vector.dim() != 1 or vector.shape != scale[0].shape or not len(vector):
            raise InputError(
                f"expected gain and shift float32 [channels] for {name!r}, got {vector.dtype} {list(vector.shape)}"
            )
        if not bool(vector.isfinite().all()):
            raise InputError(f"expected finite gains and shifts, got NaN or infinity for {name!r}")
    gain, shift = (vector.detach().cpu().clone() for vector in scale)
    least, most = (float(extreme) for extreme in gain.aminmax())
    if least < GAINS[0] or most > GAINS[1]:
        raise InputError(f"expected gains from {GAINS[0]} to {GAINS[1]}, got {least:g} to {most:g} for {name!r}")
    return ChannelScale(gain, shift)


def _encode(vector: Tensor) -> str:
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()


def _decode(name: str, text: object) -> Tensor:
    try:
        if not isinstance(text, str):
            raise ValueError(f"it is {type(text).__name__}")
        return torch.from_numpy(np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32))
    except ValueError as error:  # binascii's too
        raise InputError(f"expected float32 numbers in base64 for {name!r}: {error}") from None
