"""What networks and methods give for many images, a few crops in memory at a time, from the cache if it is there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from prefiqs_ext.device import choose_batch_size, resolve_device
from prefiqs_ext.evaluation import cache_revisions as revisions
from prefiqs_ext.evaluation.cache import Arrays, Cache, load_or_compute
from prefiqs_ext.evaluation.datasets.sources import Source, get_name, hash_source, read_every_crop
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.methods.calibrated import Calibrated
from prefiqs_ext.methods.method import Method
from prefiqs_ext.methods.prefiqs import ScorerMethod
from prefiqs_ext.models.embedding import select_embedding
from prefiqs_ext.models.fingerprint import fingerprint_network
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer
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

_CPU = torch.device("cpu")


class ImageSet:
    """Images of which something is to be computed.

    An image that comes again, as in the pairs of a benchmark, is computed once.

    Args:
        sources: The images.
        cache: Keeps what was computed: `load_or_compute` for other runs too, or a `make_memory_cache()`.

    Attributes:
        contents: [N] one number per different content.
        hash: SHA-256 of the contents in order.

    Raises:
        MissingFileError: A file is not there.
        FileFormatError: A file is empty, too large or no regular file.
    """

    def __init__(self, sources: Sequence[Source], cache: Cache = load_or_compute) -> None:
        self._cache = cache
        digests = list(map(hash_source, sources))
        rows: dict[bytes, int] = {}
        self.contents = np.array([rows.setdefault(value, len(rows)) for value in digests])
        self._different = [sources[i] for i in np.unique(self.contents, return_index=True)[1]]
        self.hash = hashlib.sha256(b"".join(digests)).hexdigest()

    def read_crops(self, preset: Preset) -> Tensor:
        """Read all crops: uint8 [N, 3, H, W]."""
        return torch.stack(list(read_every_crop(self._different, preset.template)))[self.contents]

    def compute(
        self,
        what: str,
        names: Sequence[str],
        function: Callable[[Tensor], Mapping[str, Tensor]],
        preset: Preset,
        facts: Mapping[str, JSON],
        device: torch.device = _CPU,
    ) -> Arrays:
        """Compute arrays of all images, or take them from the cache.

        Args:
            what: What is computed, for the progress bar and for errors.
            names: Of the arrays.
            function: uint8 crops [n, 3, H, W] -> a tensor [n, ...] for each name.
            preset: Its size is that of the crops.
            facts: What decides the numbers besides the images, the preset and the engine.
            device: Where `function` computes, which decides how many crops it gets at a time.

        Returns:
            float32 [N, ...] for each name.

        Raises:
            InputError: An image gives no crop, or a result that is not finite; the error names it.
        """
        key: dict[str, JSON] = {
            **facts,
            "of": what,
            "preset": asdict(preset),
            "images": self.hash,
            "versions": {**VERSIONS},
            "engine": revisions.ENGINE,
        }

        def compute() -> Arrays:
            batches = list(self._compute_batches(what, function, preset, choose_batch_size(device)))
            return {name: np.concatenate([batch[name] for batch in batches])[self.contents] for name in names}

        return self._cache(key, names, len(self.contents), compute)

    def _compute_batches(
        self, what: str, function: Callable[[Tensor], Mapping[str, Tensor]], preset: Preset, batch_size: int
    ) -> Iterator[Arrays]:
        images = self._different
        crops = iter(tqdm(read_every_crop(images, preset.template), what, len(images), disable=None, leave=False))
        start = 0
        while batch := list(islice(crops, batch_size)):
            with torch.no_grad():
                result = {name: values.float().cpu().numpy() for name, values in function(torch.stack(batch)).items()}
            for values in result.values():
                bad = ~np.isfinite(values).reshape(len(batch), -1).all(axis=1)
                if bad.any():
                    name = get_name(images[start + int(bad.argmax())])
                    raise InputError(f"{name}: no finite {what}; a blank image? Take it out of the set")
            yield result
            start += len(batch)


class ImageScores(NamedTuple):
    """What the Scorer gave for N images.

    Attributes:
        embeddings: [N, d] L2-normalised.
        distance: [N] D in [0, 2], LOWER is better.
        norm: [N] of the dense embedding, above 0, HIGHER is better.
    """

    embeddings: NDArray[np.float32]
    distance: Tensor
    norm: Tensor


@dataclass(frozen=True)
class Scoring:
    """A network and how it is scored. Its Scorer is made when something is to be computed.

    Attributes:
        network: In eval mode.
        preset: What it wants done to an image.
        pruning: What the pruned branch loses.
        device: Where the Scorer computes; None: the network's own device.
        dtype: What it computes in; None: float32 on the CPU, float16 on CUDA.
        output: Which of the network's several outputs is the embedding.
        recalibrate_on: The images that the pruned branch is recalibrated on; None: it is not.
    """

    network: nn.Module
    preset: Preset
    pruning: Pruning
    device: str | None = None
    dtype: torch.dtype | None = None
    output: int | str | None = None
    recalibrate_on: ImageSet | None = None

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """The hashes of the network, see `fingerprint_network`."""
        return fingerprint_network(self.network)

    @cached_property
    def scorer(self) -> Scorer:
        """The Scorer; a row without a direction gets NaN, which `ImageSet` refuses by the image's name."""
        crops = None
        if self.recalibrate_on is not None:
            device, _ = resolve_device(self.device, self.dtype, self.network)
            crops = self.recalibrate_on.read_crops(self.preset).to(device)
        return Scorer(
            self.network,
            self.pruning,
            recalibrate=crops,
            preset=self.preset,
            device=self.device,
            dtype=self.dtype,
            output=self.output,
            on_bad="nan",
        )

    def score_images(self, images: ImageSet) -> ImageScores:
        """Run the Scorer over the images once."""

        def score(crops: Tensor) -> dict[str, Tensor]:
            result = self.scorer(crops.to(self.scorer.device))
            return {"embedding": result.embedding, "distance": result.distance, "norm": result.embedding_norm}

        facts: dict[str, JSON] = {
            **self.fingerprint,
            "pruning": asdict(self.pruning),
            "device": str(self.device),
            "dtype": str(self.dtype),
            "output": self.output,
            "recalibrated on": None if self.recalibrate_on is None else self.recalibrate_on.hash,
        }
        device, _ = resolve_device(self.device, self.dtype, self.network)
        names = ("embedding", "distance", "norm")
        arrays = images.compute("embedding and D", names, score, self.preset, facts, device)
        distance, norm = torch.from_numpy(arrays["distance"]), torch.from_numpy(arrays["norm"])
        return ImageScores(arrays["embedding"], distance, norm)

    def compute_quality(self, method: Method, images: ImageSet, fit_on: ImageSet, seed: int) -> NDArray[np.float32]:
        """Compute the quality [N] of images, HIGHER is better: negated if the method's own scores are LOWER better.

        Args:
            method: Made for this network, with this seed.
            images: The images.
            fit_on: What a method that needs a fit is fitted on.
            seed: Part of the cache's key.
        """
        if isinstance(method, ScorerMethod):
            scoring = replace(self, recalibrate_on=fit_on) if method.recalibrates else self
            if method.fit_images:
                fitting = scoring.score_images(fit_on)
                method.fit_signals(fitting.distance, fitting.norm)
            scored = scoring.score_images(images)
            scores: NDArray[np.float32] = method.score_signals(scored.distance, scored.norm).numpy()
        else:
            facts: dict[str, JSON] = {
                **self.fingerprint,
                "seed": seed,
                "output": self.output,
                "revision": revisions.METHODS.get(method.name),
            }
            if isinstance(method, Calibrated):
                facts["pruning"] = asdict(method.pruning)
            if method.fit_images:
                facts["fitted on"] = fit_on.hash
            score = _fit_when_needed(method, fit_on, self.preset)
            arrays = images.compute(method.name, ("score",), lambda crops: {"score": score(crops)}, self.preset, facts)
            scores = arrays["score"]
        return scores if method.higher_is_better else -scores


def embed_images(images: ImageSet, network: nn.Module, preset: Preset) -> NDArray[np.float32]:
    """Compute the L2-normalised embeddings [N, d] of a network alone."""
    normalize = preset.normalize()

    def embed(crops: Tensor) -> dict[str, Tensor]:
        found = select_embedding(network(normalize(crops)))
        # NaN if the norm is 0, which ImageSet refuses.
        return {"embedding": found / torch.linalg.vector_norm(found, dim=1, keepdim=True)}

    return images.compute("embedding", ("embedding",), embed, preset, fingerprint_network(network))["embedding"]


def _fit_when_needed(method: Method, fit_on: ImageSet, preset: Preset) -> Callable[[Tensor], Tensor]:
    """The method's `score`, which fits the method first. Scores from the cache thus cost no fit."""
    fitted = method.fit_images == 0

    def score(crops: Tensor) -> Tensor:
        nonlocal fitted
        if not fitted:
            method.fit(fit_on.read_crops(preset))
            fitted = True
        return method.score(crops)

    return score
