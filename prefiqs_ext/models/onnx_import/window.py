"""The sliding window of a convolution or pooling, and the padding around images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import fx, nn

from prefiqs_ext.models.onnx_import.node import Node

Pair = tuple[int, int]


class Window(NamedTuple):
    """The sliding window of a convolution or pooling. Each field is (height, width).

    Attributes:
        kernel: The size of the window.
        stride: The step of the window.
        dilation: The distance between two elements of the window.
        before: The padding above and on the left.
        after: The padding below and on the right.
    """

    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair
    after: Pair


def get_window(node: Node, kernel: Sequence[int] | None = None) -> Window:
    """Return the window that a node's attributes describe. Refuse an input that is not ``[N, C, H, W]``.

    Args:
        node: A convolution or pooling.
        kernel: The size of the window if the weights tell it; the attribute must then agree.
    """
    node.expect_images()
    given = _get_pair(node, "kernel_shape", kernel)
    node.expect(kernel is None or given == tuple(kernel), f"kernel_shape of the weights, got {list(given)}")
    stride, dilation = _get_pair(node, "strides", (1, 1)), _get_pair(node, "dilations", (1, 1))
    return Window(given, stride, dilation, *_compute_padding(node, given, stride, dilation))


def _get_pair(node: Node, name: str, default: Sequence[int] | None) -> Pair:
    values = node.get_integers(name, default=default)
    node.expect(len(values) == 2 and min(values) > 0, f"two positive numbers as {name}, got {values}")
    return values[0], values[1]


def _compute_padding(node: Node, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """Return the padding before and after, from the attribute `pads` or `auto_pad`."""
    mode = node.attributes.get("auto_pad", b"NOTSET").decode()
    if mode == "NOTSET":
        pads = node.get_integers("pads", default=(0, 0, 0, 0))
        node.expect(len(pads) == 4 and min(pads) >= 0, f"four pads of 0 or more, got {pads}")
        return (pads[0], pads[1]), (pads[2], pads[3])
    if mode == "VALID":
        return (0, 0), (0, 0)
    node.expect(mode in ("SAME_UPPER", "SAME_LOWER"), f"auto_pad of the ONNX standard, got {mode!r}")
    less, more = [], []
    for size, k, s, d in zip(node.get_shape()[2:], kernel, stride, dilation, strict=True):
        if size is None:
            node.refuse(f"auto_pad {mode} needs a fixed input height and width")
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        less.append(total // 2)
        more.append(total - total // 2)
    before, after = (less, more) if mode == "SAME_UPPER" else (more, less)
    return (before[0], before[1]), (after[0], after[1])


def pad_images(node: Node, before: Pair, after: Pair, value: float) -> fx.Node:
    """Add a module to the torch graph that pads the height and width of the first input with a value."""
    sides = (before[1], after[1], before[0], after[0])
    return node.call_module(nn.ConstantPad2d(sides, value) if value else nn.ZeroPad2d(sides), suffix="_pad")
