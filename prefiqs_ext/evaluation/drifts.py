"""D of the same images under many prunings: the dense network runs once, each pruned one alone.

A Scorer runs both each time, which for 28 prunings is nearly twice the work. Here D is by its definition, from two
plain networks, and within 1e-5 of the Scorer's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import __version__
from ..files.pipeline import read_crops
from ..models.preset import Preset
from ..network import Normalized
from ..pruning import Pruning
from ..settings import hash_weights
from .cache import cached, hash_files

_CHUNK = 4  # images run together: what stays in a CPU's cache


class Drifts:
    """network: in eval mode, on the CPU; not changed. paths: aligned crops of the preset's size. What was computed
    before is read from the evaluation's cache.

    ValueError, in any method: a file that cannot be read or is of another size; an embedding without direction.
    """

    def __init__(self, network: nn.Module, preset: Preset, paths: Sequence[str]) -> None:
        self._network = network
        self._preset = preset
        self._paths = list(paths)
        self._crops: Tensor | None = None
        self.facts: dict[str, Any] = {
            "version": [__version__, torch.__version__, np.__version__],
            "weights": hash_weights(network),
            "preset": asdict(preset),
            "images": hash_files(paths),
        }
        """What all numbers depend on, as JSON values."""
        raw = cached(self.facts | {"embeddings": "raw"}, (len(paths), None), lambda: self._run(network))
        self.norms: NDArray[np.float32] = np.linalg.norm(raw, axis=1)
        """[N] of the dense embeddings before normalisation."""
        self.embeddings: NDArray[np.float32] = raw / self.norms[:, None]
        """[N, d] L2-normalised."""

    def distances(self, pruning: Pruning) -> NDArray[np.float32]:
        """D [N] in [0, 2], lower is better."""

        def compute() -> NDArray[np.float32]:
            pruned = copy.deepcopy(self._network)
            with torch.no_grad():
                for name, mask in pruning.masks(pruned).items():
                    pruned.get_parameter(f"{name}.weight").mul_(mask)
            raw = self._run(pruned)
            drift: NDArray[np.float32] = np.linalg.norm(
                self.embeddings - raw / np.linalg.norm(raw, axis=1, keepdims=True), axis=1
            )
            return drift

        return cached(self.facts | {"distances": asdict(pruning)}, (len(self._paths),), compute)

    def _run(self, network: nn.Module) -> NDArray[np.float32]:
        """[N, d] embeddings before normalisation, all of them finite and not 0."""
        if self._crops is None:
            self._crops = self._read()
        network = Normalized(self._preset, network)
        with torch.inference_mode():
            raw = torch.cat([network(rows.float()) for rows in torch.split(self._crops, _CHUNK)]).float().numpy()
        bad = np.flatnonzero(~np.isfinite(raw).all(axis=1) | ~raw.any(axis=1))
        if len(bad):
            raise ValueError(f"{self._paths[bad[0]]}: its embedding has no direction; take it out of the folder")
        return np.asarray(raw)

    def _read(self) -> Tensor:
        crops = []
        for path in self._paths:
            crop = list(read_crops([path], self._preset.size, aligned=True))
            if not crop:
                height, width = self._preset.size
                raise ValueError(f"{path}: expected an image of {width} x {height} pixels; take it out of the folder")
            crops.append(crop[0])
        return torch.stack(crops)
