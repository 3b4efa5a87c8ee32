"""Computes the least time that an H200 needs for each layer of a pair in float16.

Example: `python -m benchmarks.roofline iresnet100 256`

Nothing runs on a GPU. A layer's floor is the longer of two times: its operations at the speed of matrix products, and
its bytes at the speed of copies, both as measured on an H200. Weights, mask, sources and results count once, residuals
not at all.
"""

from __future__ import annotations

import argparse

from benchmarks import conv
from benchmarks.score import load_network

TERAFLOPS, TERABYTES = 785.0, 4.3  # a second; matrix products gave 770 to 800


def count_moved_bytes(layer: conv.Layer, batch: int) -> float:
    """Count the bytes of device memory that a layer must move in float16; uint8 sources count as float16."""
    linear = layer.kernel == (0, 0)
    taps = 1 if linear else layer.kernel[0] * layer.kernel[1]
    weights = layer.filters * layer.channels // layer.groups * taps
    in_pixels = 1 if linear else layer.size[0] * layer.size[1]
    # Operations are two a product: what each output takes gives their number.
    outputs = layer.operations / (2 * taps * layer.channels // layer.groups)
    pixels = min(in_pixels, taps * outputs / layer.filters)  # a 1x1 of stride 2 reads a quarter
    sources = (2 if layer.paired else 1) * batch * layer.channels * pixels
    return weights * (2 + 1 / 8) + 2 * sources + 2 * 2 * batch * outputs


def read_arguments(description: str | None) -> tuple[dict[conv.Layer, int], int]:
    """Read the model and the batch of a command line; give the model's layers, how often it has each, and the batch."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("batch", type=int)
    arguments = parser.parse_args()
    return conv.find_layers(*load_network(arguments.model)), arguments.batch


def main() -> None:
    """Print a table of the layers and the sum of their floors."""
    layers, batch = read_arguments(__doc__)
    print("| layer | times | GFLOP | MB | floor of one, us | bound by | measured, us | share |")
    print("|---|---|---|---|---|---|---|---|")
    total = 0.0
    for layer, times in layers.items():
        work, moved = 2 * batch * layer.operations, count_moved_bytes(layer, batch)
        compute, memory = work / TERAFLOPS / 1e6, moved / TERABYTES / 1e6
        floor = max(compute, memory)
        total += times * floor
        bound = "products" if compute > memory else "copies"
        print(f"| {layer!s} | {times} | {work / 1e9:.3g} | {moved / 1e6:.3g} | {floor:.3g} | {bound} | | |")
    print(f"\nAll layers: {total:.0f} us, at most {batch / total * 1e6:.0f} images a second.")


if __name__ == "__main__":
    main()
