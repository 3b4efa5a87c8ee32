"""Predicts what each layer of a pair takes on an H200, in cycles of a multiprocessor and in time, by both kernels.

Example: `python -m benchmarks.cycles iresnet100 256`

Nothing runs on a GPU. A block's steps take the longest of three times: its products, its instructions at one a cycle
and scheduler, and its bytes at the speed of the second-level cache. The epilogue's instructions come on top where a
multiprocessor has one block; with two, one's epilogue runs beside the other one's steps. The instructions are counted
in the machine code of the paired mode (float16, nvcc 13.0, 2026-11-30), for a pixel with a residual and away from the
border. Latencies, device memory and the power limit are left out, so a measurement will be higher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks import conv
from benchmarks.gpu import fits_sm90
from benchmarks.roofline import read_arguments

MULTIPROCESSORS, SCHEDULERS, GIGAHERTZ = 132, 4, 1.755
CACHE_BYTES = 5120 / MULTIPROCESSORS  # a cycle, from the second-level cache: the figure of the A100
WGMMA_PRODUCTS = 2048  # multiply-adds a cycle
MMA_PRODUCTS = 0.63 * WGMMA_PRODUCTS  # mma.sync reaches 62 to 65 % of wgmma where others measured it


@dataclass(frozen=True)
class Kernel:
    """A tile of one kernel.

    Attributes:
        channels: Filters of a tile.
        pixels: Pixels of a tile, of each branch.
        depth: Channels of a step.
        warps: Warps that multiply in a block.
        blocks: Blocks side by side on a multiprocessor; one block's epilogue then runs beside another one's steps.
        products: Multiply-adds a cycle that its instruction reaches.
        step: Instructions of such a warp in a step.
        finish: Instructions for eight channels of a pixel in the epilogue, by each lane.
        cached_taps: Pixels are fetched once for all taps, through the first-level cache.
    """

    channels: int
    pixels: int
    depth: int
    warps: int
    blocks: int
    products: float
    step: int
    finish: int
    cached_taps: bool


WIDE = Kernel(128, 64, 32, 4, 2, MMA_PRODUCTS, 297, 200, True)
BROAD = Kernel(64, 128, 32, 4, 2, MMA_PRODUCTS, 320, 200, True)
DEEP = Kernel(128, 64, 32, 8, 1, MMA_PRODUCTS, 195, 200, True)
SM90 = Kernel(128, 128, 64, 8, 1, WGMMA_PRODUCTS, 159, 220, False)


@dataclass(frozen=True)
class Cycles:
    """Cycles of a multiprocessor for one layer."""

    products: float
    instructions: float
    feeding: float
    epilogue: float

    @property
    def total(self) -> float:
        """The longest of the three that run side by side, and the epilogue where it runs alone."""
        return max(self.products, self.instructions, self.feeding) + self.epilogue


def predict_cycles(layer: conv.Layer, batch: int, kernel: Kernel) -> Cycles:
    """Predict a layer's cycles on the multiprocessor that gets the most tiles.

    Args:
        layer: A convolution without groups.
        batch: Images of each branch.
        kernel: The tile that computes it.
    """
    taps = layer.kernel[0] * layer.kernel[1]
    outputs = round(layer.operations / (2 * taps * layer.channels // layer.groups) / layer.filters)
    tiles = math.ceil(layer.filters / kernel.channels) * math.ceil(batch * outputs / kernel.pixels)
    tiles = math.ceil(tiles / MULTIPROCESSORS)
    steps = tiles * taps * math.ceil(layer.channels / kernel.depth)
    rows = kernel.channels + (2 if layer.paired else 1) * kernel.pixels / (taps if kernel.cached_taps else 1)
    chunks = 2 * kernel.pixels * kernel.channels / 8 / 32  # for one warp
    epilogue = tiles * chunks * kernel.finish / SCHEDULERS
    return Cycles(
        products=steps * 2 * kernel.channels * kernel.pixels * kernel.depth / kernel.products,
        instructions=steps * kernel.warps * kernel.step / SCHEDULERS + (epilogue if kernel.blocks > 1 else 0),
        feeding=steps * rows * kernel.depth * 2 / CACHE_BYTES,
        epilogue=0 if kernel.blocks > 1 else epilogue,
    )


def choose_kernels(layer: conv.Layer) -> dict[str, Kernel]:
    """Choose each kernel's tile for a large batch; none for the first layer and linear ones, which load otherwise."""
    if layer.kernel == (0, 0) or layer.channels % 8 != 0 or layer.groups != 1:
        return {}
    if layer.filters <= 64:
        return {"sm80": BROAD}
    return {"sm80": WIDE, "sm90": SM90} if fits_sm90(layer) else {"sm80": DEEP}


def main() -> None:
    """Print a table of the layers."""
    layers, batch = read_arguments(__doc__)
    print("| layer | times | kernel | products | instructions | feeding | epilogue | us |")
    print("|---|---|---|---|---|---|---|---|")
    totals = {"sm80": 0.0, "sm90": 0.0}
    for layer, times in layers.items():
        took: dict[str, float] = {}
        for name, kernel in choose_kernels(layer).items():
            cycles = predict_cycles(layer, batch, kernel)
            parts = (cycles.products, cycles.instructions, cycles.feeding, cycles.epilogue)
            thousands = " | ".join(f"{part / 1e3:.0f}" for part in parts)
            took[name] = cycles.total / GIGAHERTZ / 1e3
            print(f"| {layer!s} | {times} | {name} | {thousands} | {took[name]:.0f} |")
        for name in totals:  # a layer that sm90 does not take runs by sm80
            totals[name] += times * took.get(name, took.get("sm80", 0.0))
    print("\nAll of these layers:", ", ".join(f"{total:.0f} us with {name}" for name, total in totals.items()))


if __name__ == "__main__":
    main()
