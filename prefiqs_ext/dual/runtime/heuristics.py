"""The sizes and limits that the engine chooses by, in one place. They change speed and memory, never a result.

The first three decide where a graph is cut (tiling.py). They date from 2026-11-24, when the cut was measured
with SFace and IResNet-50 at 16 images on two cores of an AMD EPYC, Zen 4 (docs/performance.md, "layers of large maps").
No measurement of the single values is recorded, and none was repeated since.
"""

from __future__ import annotations

CACHE_BYTES = 24 * 2**20
"""What stays in a third-level cache of the usual 32 MB. Values beyond it are waited for in slow memory."""

PACKING_BYTES = 64
"""Packing, masking and transforming one weight takes about as long as moving this many bytes."""

HIDING_OPERATIONS = 24
"""From this many multiply-adds per byte on, a layer's arithmetic takes longer than moving its values."""

MOST_RECORDINGS = 4
"""CUDA graphs that are kept, one for each shape of batch. Not measured on a GPU."""

SHAPES_REMEMBERED = 64
"""Shapes of batches that are remembered so that the second one of a shape is recorded. Not measured on a GPU."""
