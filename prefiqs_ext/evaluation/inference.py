"""What networks and methods give for many images, a few crops in memory at a time, from the cache if it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefiqs_ext.device import resolve_device
from prefiqs_ext.evaluation import cache_revisions as revisions
from prefiqs_ext.evaluation.cache import Arrays
from prefiqs_ext.evaluation.image_set import Computation, ImageSet
from prefiqs_ext.methods.calibrated import Calibrated
from prefiqs_ext.methods.method import Method
from prefiqs_ext.methods.network_method import score_together
from prefiqs_ext.methods.prefiqs import ScorerMethod
from prefiqs_ext.models.embedding import select_embedding
from prefiqs_ext.models.fingerprint import fingerprint_network
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.utils.strict_json import JSON

_PLAIN = "embedding and D"
"""What the Scorer gives, beside methods by their names."""


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

    @staticmethod
    def make(arrays: Arrays) -> ImageScores:
        """Make it of the arrays that the cache keeps."""
        return ImageScores(arrays["embedding"], torch.from_numpy(arrays["distance"]), torch.from_numpy(arrays["norm"]))


@dataclass
class MethodTask:
    """A method, and the images that it is fitted on if it needs a fit."""

    method: Method
    fit_on: ImageSet
    _fitted: bool = False

    def get_fitted(self, preset: Preset) -> Method:
        """The method, fitted when it is first asked for: scores from the cache cost no fit."""
        if self.method.fit_images and not self._fitted:
            self.method.fit(self.fit_on.read_crops(preset))
            self._fitted = True
        return self.method


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
            crops = self.recalibrate_on.read_crops(self.preset).to(self._find_device())
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

    @property
    def _computation(self) -> Computation:
        facts: dict[str, JSON] = {
            **self.fingerprint,
            "pruning": asdict(self.pruning),
            "device": str(self.device),
            "dtype": str(self.dtype),
            "output": self.output,
            "recalibrated on": None if self.recalibrate_on is None else self.recalibrate_on.hash,
        }
        return Computation(_PLAIN, ("embedding", "distance", "norm"), facts)

    def _score(self, crops: Tensor) -> dict[str, Tensor]:
        result = self.scorer(crops.to(self.scorer.device))
        return {"embedding": result.embedding, "distance": result.distance, "norm": result.embedding_norm}

    def score_images(self, images: ImageSet) -> ImageScores:
        """Run the Scorer over the images once."""
        (arrays,) = images.compute(
            [self._computation], lambda crops, _: [self._score(crops)], self.preset, self._find_device()
        )
        return ImageScores.make(arrays)

    def compute_qualities(
        self, tasks: Sequence[MethodTask], images: ImageSet, seed: int, *, embed: bool = False
    ) -> tuple[dict[str, NDArray[np.float32]], ImageScores | None]:
        """Compute the quality [N] of images by several methods, in one pass over the images.

        Args:
            tasks: Methods of different names, made for this network, with this seed.
            images: The images.
            seed: Part of the cache's key.
            embed: Run the Scorer even if no method needs it.

        Returns:
            By each method's name, HIGHER is better: negated if the method's own scores are LOWER better. And what the
            Scorer gave for the images; None if it did not run.
        """
        scorings: dict[str, Scoring] = {}
        computing: dict[str, MethodTask] = {}
        for task in tasks:
            if not isinstance(task.method, ScorerMethod):
                computing[task.method.name] = task
            elif task.method.recalibrates:
                scorings[task.method.name] = replace(self, recalibrate_on=task.fit_on)
            else:
                embed = True
        if embed:
            scorings[_PLAIN] = self
        scorers, others = list(scorings.values()), list(computing.values())

        def run(crops: Tensor, missing: Sequence[int]) -> list[dict[str, Tensor]]:
            found = [scorers[index]._score(crops) for index in missing if index < len(scorers)]
            to_score = [others[index - len(scorers)] for index in missing if index >= len(scorers)]
            scores = score_together([task.get_fitted(self.preset) for task in to_score], crops)
            return found + [{"score": values} for values in scores]

        computations = [each._computation for each in scorers] + [self._describe(each, seed) for each in others]
        arrays = images.compute(computations, run, self.preset, self._find_device())
        found = dict(zip([*scorings, *computing], arrays, strict=True))
        qualities = {}
        for task in tasks:
            method, name = task.method, task.method.name
            if isinstance(method, ScorerMethod):
                if method.fit_images and not method.recalibrates:
                    fitting = self.score_images(task.fit_on)
                    method.fit_signals(fitting.distance, fitting.norm)
                scored = ImageScores.make(found[name if method.recalibrates else _PLAIN])
                scores: NDArray[np.float32] = method.score_signals(scored.distance, scored.norm).numpy()
            else:
                scores = found[name]["score"]
            qualities[name] = scores if method.higher_is_better else -scores
        return qualities, ImageScores.make(found[_PLAIN]) if embed else None

    def _find_device(self) -> torch.device:
        return resolve_device(self.device, self.dtype, self.network)[0]

    def _describe(self, task: MethodTask, seed: int) -> Computation:
        method = task.method
        facts: dict[str, JSON] = {
            **self.fingerprint,
            "seed": seed,
            "output": self.output,
            "revision": revisions.METHODS.get(method.name),
        }
        if isinstance(method, Calibrated):
            facts["pruning"] = asdict(method.pruning)
        if method.fit_images:
            facts["fitted on"] = task.fit_on.hash
        return Computation(method.name, ("score",), facts)


def embed_images(images: ImageSet, network: nn.Module, preset: Preset) -> NDArray[np.float32]:
    """Compute the L2-normalised embeddings [N, d] of a network alone."""
    normalize = preset.normalize()

    def embed(crops: Tensor, _missing: Sequence[int]) -> list[dict[str, Tensor]]:
        found = select_embedding(network(normalize(crops)))
        # NaN if the norm is 0, which ImageSet refuses.
        return [{"embedding": found / torch.linalg.vector_norm(found, dim=1, keepdim=True)}]

    computation = Computation("embedding", ("embedding",), {**fingerprint_network(network)})
    return images.compute([computation], embed, preset)[0]["embedding"]
