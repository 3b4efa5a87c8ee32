"""Images of which something is to be computed, each read once for everything that is computed of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from prefiqs_ext.device import choose_batch_size
from prefiqs_ext.evaluation import cache_revisions as revisions
from prefiqs_ext.evaluation.cache import Arrays, Cache, FileCache
from prefiqs_ext.evaluation.datasets.sources import Source, get_name, hash_source, read_every_crop
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.strict_json import JSON
from prefiqs_ext.version import __version__

VERSIONS: dict[str, str] = {
    "prefiqs_ext": __version__,
    "torch": torch.__version__,
    "numpy": np.__version__,
    "Pillow": PIL.__version__,
    "OpenCV": cv2.__version__,
}
"""The versions of all packages that the numbers depend on."""

_BLOCK = 1024  # images that are kept together: what an interrupted run loses at most
_CPU = torch.device("cpu")


class Computation(NamedTuple):
    """Arrays that are computed of images.

    Attributes:
        what: What is computed, for the progress bar and for errors.
        names: Of the arrays.
        facts: What decides the numbers besides the images, the preset and the engine.
    """

    what: str
    names: Sequence[str]
    facts: Mapping[str, JSON]


Run = Callable[[Tensor, Sequence[int]], Sequence[Mapping[str, Tensor]]]
"""uint8 crops [n, 3, H, W], and the rising indices of what to compute -> of each, a tensor [n, ...] for each name."""


class ImageSet:
    """Images of which something is to be computed.

    An image that comes again, as in the pairs of a benchmark, is computed once.

    Args:
        sources: The images.
        cache: Keeps what was computed: FileCache for other runs too, or a MemoryCache.

    Attributes:
        contents: [N] one number per different content.
        hash: SHA-256 of the contents in order.

    Raises:
        MissingFileError: A file is not there.
        FileFormatError: A file is empty, too large or no regular file.
    """

    def __init__(self, sources: Sequence[Source], cache: Cache | None = None) -> None:
        self._cache = FileCache() if cache is None else cache
        digests = list(map(hash_source, sources))
        rows: dict[bytes, int] = {}
        self.contents = np.array([rows.setdefault(value, len(rows)) for value in digests])
        self._digests = list(rows)
        self._different = [sources[i] for i in np.unique(self.contents, return_index=True)[1]]
        self.hash = _join_hashes(digests)

    def read_crops(self, preset: Preset) -> Tensor:
        """Read all crops: uint8 [N, 3, H, W]."""
        return torch.stack(list(read_every_crop(self._different, preset.template)))[self.contents]

    def compute(
        self, computations: Sequence[Computation], run: Run, preset: Preset, device: torch.device = _CPU
    ) -> list[Arrays]:
        """Compute arrays of all images, or take them from the cache. An image is read once for all computations.

        What is computed is kept after every 1,024 images.

        Args:
            computations: What to compute.
            run: Computes those of them that the cache lacks, by their indices.
            preset: Its size is that of the crops.
            device: Where `run` computes, which decides how many crops it gets at a time.

        Returns:
            Of each computation, float32 [N, ...] for each name.

        Raises:
            InputError: An image gives no crop, or a result that is not finite; the error names it.
        """
        found: list[list[Arrays]] = [[] for _ in computations]
        label = ", ".join(each.what for each in computations)
        with tqdm(desc=label, total=len(self._different), disable=None, leave=False) as bar:
            for start in range(0, len(self._different), _BLOCK):
                of_block = self._compute_block(start, computations, run, preset, choose_batch_size(device), bar.update)
                for blocks, arrays in zip(found, of_block, strict=True):
                    blocks.append(arrays)
        return [
            {name: np.concatenate([block[name] for block in blocks])[self.contents] for name in each.names}
            for each, blocks in zip(computations, found, strict=True)
        ]

    def _compute_block(
        self,
        start: int,
        computations: Sequence[Computation],
        run: Run,
        preset: Preset,
        batch_size: int,
        advance: Callable[[int], object],
    ) -> list[Arrays]:
        """Compute arrays of a block of the different images."""
        images = self._different[start : start + _BLOCK]
        common: dict[str, JSON] = {
            "preset": asdict(preset),
            "images": _join_hashes(self._digests[start : start + _BLOCK]),
            "versions": {**VERSIONS},
            "engine": revisions.ENGINE,
        }
        keys: list[dict[str, JSON]] = [{**each.facts, "of": each.what, **common} for each in computations]
        found = [self._cache.load(key, each.names, len(images)) for key, each in zip(keys, computations, strict=True)]
        missing = [index for index, arrays in enumerate(found) if arrays is None]
        batches: list[list[Arrays]] = [[] for _ in missing]
        crops = iter(read_every_crop(images if missing else (), preset.template))
        done = 0
        while batch := list(islice(crops, batch_size)):
            with torch.no_grad():
                results = run(torch.stack(batch), missing)
            for index, result, parts in zip(missing, results, batches, strict=True):
                parts.append({name: values.float().cpu().numpy() for name, values in result.items()})
                _check_finite(parts[-1], computations[index].what, images[done : done + len(batch)])
            done += len(batch)
            advance(len(batch))
        advance(len(images) - done)
        for index, parts in zip(missing, batches, strict=True):
            computed = {name: np.concatenate([part[name] for part in parts]) for name in computations[index].names}
            self._cache.keep(keys[index], computed)
            found[index] = computed
        return [arrays for arrays in found if arrays is not None]


def _check_finite(arrays: Arrays, what: str, images: Sequence[Source]) -> None:
    for values in arrays.values():
        bad = ~np.isfinite(values).reshape(len(images), -1).all(axis=1)
        if bad.any():
            name = get_name(images[int(bad.argmax())])
            raise InputError(f"{name}: no finite {what}; a blank image? Take it out of the set")


def _join_hashes(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()
