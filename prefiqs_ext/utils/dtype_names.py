"""The names of the types that a Scorer computes in, for what must not import torch to know them."""

from __future__ import annotations

DTYPE_NAMES = ("float32", "float16", "bfloat16")
"""Each is the name of the type in torch."""
