"""What networks and methods give for many images: a few crops in memory at a time, and from the cache where it was
computed before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from tqdm import tqdm

from prefiqs_ext import __version__
from prefiqs_ext.evaluation import revisions
from prefiqs_ext.evaluation.cache import Keep, cached
from prefiqs_ext.evaluation.datasets.crops import Source, digest, name_of, read_crops
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.methods import Method
from prefiqs_ext.methods.prefiqs import ScorerMethod
from prefiqs_ext.models.embedding import select_embedding
from prefiqs_ext.models.fingerprint import hash_weights
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer

VERSIONS = {
    "prefiqs_ext": __version__,
    "torch": torch.__version__,
    "numpy": np.__version__,
    "Pillow": PIL.__version__,
    "OpenCV": cv2.__version__,
}
"""Of what the numbers depend on."""
_BATCH = 32  # crops together


class ImageSet:
    """Images to compute something of; one that comes again, as in a benchmark's pairs, is computed once.

    ValueError, while computing: a source that gives no crop, or whose result is not finite, by name.
    """

    def __init__(self, sources: Sequence[Source], keep: Keep = cached) -> None:
        """keep: what was computed: for other runs too, or in_memory()."""
        self._keep = keep
        digests = list(map(digest, sources))
        rows: dict[bytes, int] = {}
        self.contents = np.array([rows.setdefault(value, len(rows)) for value in digests])
        """[N] a number for each different content."""
        self._different = [sources[i] for i in np.unique(self.contents, return_index=True)[1]]
        self.hash = hashlib.sha256(b"".join(digests)).hexdigest()
        """Of contents in order."""

    def crops(self, preset: Preset) -> Tensor:
        """uint8 [N, 3, H, W]: all of them."""
        return torch.stack(list(read_crops(self._different, preset.size)))[self.contents]

    def compute(
        self, what: str, function: Callable[[Tensor], Tensor], preset: Preset, facts: dict[str, Any]
    ) -> NDArray[np.float32]:
        """[N, d] of a function, crops [n, 3, H, W] -> [n, d] or, for d = 1, [n]. what: it is; facts: what decides it
        beside images, preset and the engine, as JSON values."""
        facts = facts | {"of": what, "preset": asdict(preset), "images": self.hash, "versions": VERSIONS}
        facts |= {"engine": revisions.ENGINE}

        def rows() -> Any:
            return np.concatenate(list(self._batches(what, function, preset)))[self.contents]

        return self._keep(facts, len(self.contents), rows)

    def _batches(
        self, what: str, function: Callable[[Tensor], Tensor], preset: Preset
    ) -> Iterator[NDArray[np.float32]]:
        images = self._different
        crops = iter(tqdm(read_crops(images, preset.size), what, len(images), disable=None, leave=False))
        start = 0
        while batch := list(islice(crops, _BATCH)):
            with torch.no_grad():
                result = function(torch.stack(batch)).reshape(len(batch), -1).cpu().numpy()
            bad = ~np.isfinite(result).all(axis=1)
            if bad.any():
                name = name_of(images[start + int(bad.argmax())])
                raise InputError(f"{name}: no finite {what}; a blank image? Take it out of the set")
            yield result
            start += len(batch)


class Pass(NamedTuple):
    """What the Scorer gave for N images."""

    embeddings: NDArray[np.float32]
    """[N, d] L2-normalised."""
    distance: Tensor
    """[N]"""
    norm: Tensor
    """[N]"""


@dataclass(frozen=True)
class Scoring:
    """A network and how it is pruned; its Scorer is made when something is to be computed."""

    network: nn.Module
    preset: Preset
    pruning: Pruning
    options: dict[str, Any] = field(default_factory=dict)
    """The Scorer's device, dtype and output."""

    @cached_property
    def _computes(self) -> dict[str, Any]:
        return _what_computes(self.network)

    @property
    def weights(self) -> str:
        return str(self._computes["weights"])

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.network, self.pruning, preset=self.preset, on_bad="nan", **self.options)

    def of(self, images: ImageSet) -> Pass:
        """One pass over the images."""

        def score(crops: Tensor) -> Tensor:
            output = self.scorer(crops.to(self.scorer.device))
            return torch.cat([output.embedding, output.distance[:, None], output.embedding_norm[:, None]], dim=1)

        facts = self._computes | {"pruning": asdict(self.pruning)}
        facts |= {name: str(value) for name, value in self.options.items()}
        table = images.compute("embedding and D", score, self.preset, facts)
        distance, norm = torch.from_numpy(np.ascontiguousarray(table[:, -2:].T))
        return Pass(table[:, :-2], distance, norm)

    def quality(self, method: Method, images: ImageSet, fit_on: ImageSet, seed: int) -> NDArray[np.float32]:
        """[N] of a method that was made for this network, with this seed; HIGHER is better: turned round where the
        method's own scores are lower better. fit_on: for a method that is fitted."""
        if isinstance(method, ScorerMethod):
            if method.needs_fit:
                method.fit_pass(*self.of(fit_on)[1:])
            scores = method.read(*self.of(images)[1:]).numpy()
        else:
            facts = self._computes | {"seed": seed, "output": self.options.get("output")}
            facts |= {"revision": revisions.METHODS.get(method.name)}
            facts |= {"fitted on": fit_on.hash} if method.needs_fit else {}
            score = _fitting(method, fit_on, self.preset) if method.needs_fit else method.score
            scores = images.compute(method.name, score, self.preset, facts)[:, 0]
        return scores if method.higher_is_better else -scores


def embedded(images: ImageSet, network: nn.Module, preset: Preset) -> NDArray[np.float32]:
    """Embeddings [N, d], L2-normalised, of a network alone."""
    normalize = preset.normalize()

    def embed(crops: Tensor) -> Tensor:
        found = select_embedding(network(normalize(crops)))
        unit: Tensor = found / torch.linalg.vector_norm(found, dim=1, keepdim=True)
        return unit  # NaN where the norm is 0, which is refused

    return images.compute("embedding", embed, preset, _what_computes(network))


def _what_computes(network: nn.Module) -> dict[str, Any]:
    """Hashes of the weights, and of what is computed with them: modules with their settings, and operations between
    them as far as a graph has them."""
    graphs = [module.code for module in network.modules() if isinstance(module, fx.GraphModule)]
    structure = hashlib.sha256("\n".join([repr(network), *graphs]).encode()).hexdigest()
    return {"weights": hash_weights(network), "structure": structure}


def _fitting(method: Method, fit_on: ImageSet, preset: Preset) -> Callable[[Tensor], Tensor]:
    """Fits when it is first needed: not where the scores are cached."""
    fitted = False

    def score(crops: Tensor) -> Tensor:
        nonlocal fitted
        if not fitted:
            method.fit(fit_on.crops(preset))
            fitted = True
        return method.score(crops)

    return score
