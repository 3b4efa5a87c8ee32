"""Baselines that look at the image only, not at a network: chance, sharpness, brightness."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prefiqs_ext.inputs import check_images, scale_to_levels
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.torch_defaults import torch_defaults

if TYPE_CHECKING:
    from typing_extensions import Self

_LUMA = (0.299, 0.587, 0.114)  # weights of R, G and B by ITU-R BT.601
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class _PixelMethod(ABC):
    """Scores one image at a time by its levels of 0-255."""

    name: str
    higher_is_better = True
    fit_images = 0

    def __init__(self, preset: Preset) -> None:
        self._preset = preset

    def fit(self, images: Tensor) -> Self:
        """Return the method itself: there is nothing to fit."""
        return self

    @torch_defaults()
    def score(self, images: Tensor) -> Tensor:
        """Score uint8 RGB images [N, 3, H, W]: float32 [N]."""
        check_images(images, self._preset)
        pixels = scale_to_levels(images, self._preset).double().cpu()
        return torch.tensor([self._score_one(image[None]) for image in pixels], dtype=torch.float32)

    @abstractmethod
    def _score_one(self, image: Tensor) -> float:
        """The score of float64 levels [1, 3, H, W], RGB."""


class Random(_PixelMethod):
    """A number in [0, 1), drawn uniformly from the seed and the image: equal images get equal scores."""

    name = "random"

    def __init__(self, preset: Preset, *, seed: int = 0) -> None:
        super().__init__(preset)
        self._seed = seed

    def _score_one(self, image: Tensor) -> float:
        digest = hashlib.sha256(np.ascontiguousarray(image.numpy()).tobytes()).digest()
        return float(np.random.default_rng([self._seed, int.from_bytes(digest, "little")]).random())


class Sharpness(_PixelMethod):
    """The variance of the luma's Laplacian, at least 0, HIGHER is better (Pech-Pacheco et al., ICPR 2000)."""

    name = "sharpness"

    def _score_one(self, image: Tensor) -> float:
        luma = F.pad(_compute_luma(image), (1, 1, 1, 1), mode="reflect")
        edges = F.conv2d(luma, torch.tensor(_LAPLACIAN, dtype=luma.dtype)[None, None])
        return float(edges.var(correction=0))


class Brightness(_PixelMethod):
    """The mean luma in [0, 255]; HIGHER is taken as better."""

    name = "brightness"

    def _score_one(self, image: Tensor) -> float:
        return float(_compute_luma(image).mean())


def _compute_luma(image: Tensor) -> Tensor:
    """[1, 1, H, W] from RGB levels [1, 3, H, W]."""
    return (image * image.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)
