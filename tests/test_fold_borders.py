"""Folding a batch norm that stands before a convolution: exact on every kind of border."""

from __future__ import annotations

import pytest
from duals import calls, check_folding, randn, seeded
from torch import nn

WINDOWS = {
    "3x3": ((9, 8), {"kernel_size": 3, "padding": 1}),
    "3x3 stride 2, even": ((8, 8), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "3x3 stride 2, odd": ((9, 7), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "5x5": ((9, 8), {"kernel_size": 5, "padding": 2}),
    "7x7 stride 2": ((13, 12), {"kernel_size": 7, "stride": 2, "padding": 3}),
    "1x1": ((5, 4), {"kernel_size": 1}),
    "1x1 padded": ((5, 4), {"kernel_size": 1, "padding": 1}),
    "no padding": ((6, 5), {"kernel_size": 3}),
    "wide padding": ((4, 3), {"kernel_size": 3, "padding": 4}),
    "height 1": ((1, 6), {"kernel_size": 3, "padding": 1}),
    "width 2": ((6, 2), {"kernel_size": 3, "padding": 1}),
    "1x1 image": ((1, 1), {"kernel_size": 3, "padding": 1}),
    "dilated": ((9, 8), {"kernel_size": 3, "padding": 2, "dilation": 2}),
    "1x3": ((5, 6), {"kernel_size": (1, 3), "stride": (1, 2), "padding": (0, 1)}),
    "grouped": ((6, 7), {"kernel_size": 3, "padding": 1, "groups": 2}),
    "depthwise": ((7, 6), {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 6, "out_channels": 6}),
    "depthwise, twice the channels": ((6, 6), {"kernel_size": 3, "padding": 1, "groups": 6, "out_channels": 12}),
    "same": ((6, 7), {"kernel_size": (3, 5), "padding": "same"}),
    "reflected": ((6, 7), {"kernel_size": 5, "padding": 2, "padding_mode": "reflect"}),
    "circular": ((6, 7), {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}),
    "replicated, same": ((6, 7), {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"}),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_batch_norm_before_a_convolution(window: str, paired: bool, bias: bool) -> None:
    size, arguments = WINDOWS[window]
    convolution = nn.Conv2d(6, bias=bias, **{"out_channels": 4, **arguments})  # type: ignore[arg-type]
    before = [nn.Conv2d(6, 6, 1)] if paired else []
    model = seeded(nn.Sequential(*before, nn.BatchNorm2d(6), nn.PReLU(6), nn.BatchNorm2d(6), convolution, nn.Flatten()))
    folded = check_folding(model, randn(3, 6, *size))
    assert calls(folded)[-2:] == ["DualConv2d", "Flatten"]
    # Unpaired, the first batch norm stands at the input, with no convolution beside it.
    assert calls(folded).count("FrozenNorm") == (0 if paired else 1)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, about its own speed
def test_one_sided_zeros_are_kept_apart() -> None:
    """An even kernel with padding "same": torch pads one zero more at the end, after the batch norm."""
    model = seeded(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 4, padding="same"), nn.Flatten()))
    assert calls(check_folding(model, randn(2, 3, 6, 5))) == ["FrozenNorm", "DualConv2d", "Flatten"]


@pytest.mark.parametrize("kernel", [1, 3])
def test_batch_norm_around_a_1d_convolution(kernel: int) -> None:
    model = seeded(
        nn.Sequential(
            nn.BatchNorm1d(4),
            nn.Conv1d(4, 6, kernel, stride=2, padding=kernel // 2, groups=2),
            nn.BatchNorm1d(6),
            nn.PReLU(6),
            nn.Conv1d(6, 5, 3, padding="same", padding_mode="reflect"),
            nn.Flatten(),
        )
    )
    assert calls(check_folding(model, randn(2, 4, 11))) == ["DualConv1d", "DualConv1d", "Flatten"]
