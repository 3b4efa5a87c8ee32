"""What an H200 needs at least for each layer of a pair in float16: `python -m benchmarks.roofline iresnet100 256`.

Computed, nothing is run on a GPU: the floor is the longer of operations at the speed of matrix products and bytes at
the speed of copies, both as measured on an H200. Weights and mask count once, every source and result once, residuals
not at all.
"""

from __future__ import annotations

import argparse

from benchmarks import conv
from benchmarks.score import network

TERAFLOPS, TERABYTES = 785.0, 4.3  # a second; matrix products gave 770 to 800


def moved_bytes(layer: conv.Layer, batch: int) -> float:
    """Of device memory, in float16, uint8 sources counted as float16."""
    linear = layer.kernel == (0, 0)
    taps = 1 if linear else layer.kernel[0] * layer.kernel[1]
    weights = layer.filters * layer.channels // layer.groups * taps
    in_pixels = 1 if linear else layer.size[0] * layer.size[1]
    # Operations are two a product: what each output takes gives their number.
    outputs = layer.operations / (2 * taps * layer.channels // layer.groups)
    pixels = min(in_pixels, taps * outputs / layer.filters)  # a 1x1 of stride 2 reads a quarter
    sources = (2 if layer.paired else 1) * batch * layer.channels * pixels
    return weights * (2 + 1 / 8) + 2 * sources + 2 * 2 * batch * outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("batch", type=int)
    arguments = parser.parse_args()
    print("| layer | times | GFLOP | MB | floor of one, us | bound by | measured, us | share |")
    print("|---|---|---|---|---|---|---|---|")
    total = 0.0
    for layer, times in conv.layers(*network(arguments.model)).items():
        work, moved = 2 * arguments.batch * layer.operations, moved_bytes(layer, arguments.batch)
        compute, memory = work / TERAFLOPS / 1e6, moved / TERABYTES / 1e6
        floor = max(compute, memory)
        total += times * floor
        bound = "products" if compute > memory else "copies"
        print(f"| {layer!s} | {times} | {work / 1e9:.3g} | {moved / 1e6:.3g} | {floor:.3g} | {bound} | | |")
    print(f"\nAll layers: {total:.0f} us, at most {arguments.batch / total * 1e6:.0f} images a second.")


if __name__ == "__main__":
    main()
