"""Small checkpoints of every layout, each with the function that says what it computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import layouts
from layouts import State
from torch import Tensor

from prefiqs_ext import models
from prefiqs_ext.models.preset import Preset

_CHANNELS = (64, 64, 128, 256, 256, 512)


class Layout(NamedTuple):
    state: Callable[[], State]
    forward: Callable[[State, Tensor], Tensor]
    preset: str
    size: int = 112


LAYOUTS = {
    "iresnet": Layout(partial(layouts.iresnet_state, (1, 2, 1, 1)), layouts.iresnet, "arcface"),
    "iresnet, 64 pixels": Layout(
        partial(layouts.iresnet_state, (1, 1, 1, 1), last=4, features=30), layouts.iresnet, "arcface", 64
    ),
    "curricularface": Layout(
        partial(layouts.ir_state, _CHANNELS, adaface=False, affine=False), layouts.ir, "curricularface"
    ),
    "face.evoLVe, IR-SE": Layout(
        partial(layouts.ir_state, _CHANNELS, adaface=False, excite="5"), layouts.ir, "curricularface"
    ),
    "adaface": Layout(partial(layouts.ir_state, _CHANNELS, adaface=True, affine=False), layouts.ir, "adaface"),
    "adaface, IR-SE": Layout(
        partial(layouts.ir_state, _CHANNELS, adaface=True, affine=False, excite="se_block", last=3),
        layouts.ir,
        "adaface",
        48,
    ),
    "facexzoo": Layout(layouts.mobilefacenet_state, layouts.mobilefacenet, "facexzoo"),
    "SE-IResNet": Layout(
        partial(layouts.iresnet_state, (1, 2, 1, 1), last=2, excite=True), layouts.iresnet, "arcface", 32
    ),
    "adaface, bottlenecks": Layout(
        partial(layouts.ir_state, (64, 64, 96, 128), adaface=True, bottleneck=True, affine=False, last=3),
        layouts.ir,
        "adaface",
        24,
    ),
    "adaface, bottlenecks, IR-SE": Layout(
        partial(layouts.ir_state, (96, 96, 64), adaface=True, bottleneck=True, excite="se_block", last=6),
        layouts.ir,
        "adaface",
        24,
    ),
    "arcface_torch, MobileFaceNet": Layout(
        partial(layouts.arcface_mobilefacenet_state, (1, 2, 1, 1), scale=2, unit=8, last=3),
        layouts.arcface_mobilefacenet,
        "arcface",
        48,
    ),
    "arcface_torch, MobileFaceNet, large": Layout(
        partial(layouts.arcface_mobilefacenet_state, (2, 1, 2, 1), scale=4, unit=8, last=2),
        layouts.arcface_mobilefacenet,
        "arcface",
        32,
    ),
}


def preset_of(layout: Layout, name: str | None = None) -> Preset:
    return models.PRESETS[name or layout.preset].with_size(layout.size)


def wrapped(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}
