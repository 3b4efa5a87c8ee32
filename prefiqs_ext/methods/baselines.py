"""Baselines that see the picture only: chance, sharpness, brightness."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefiqs_ext.inputs import check_images, levels
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.utils.torch_defaults import torch_defaults

# ITU-R BT.601.
_LUMA = (0.299, 0.587, 0.114)
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class _Pictures:
    """Checks a batch and hands its levels of 0-255 on, as float64 [1, 3, H, W], one image at a time."""

    higher_is_better = True
    needs_fit = False

    def __init__(
        self, network: nn.Module, preset: Preset, pruning: Pruning, seed: int, output: int | str | None = None
    ) -> None:
        self._preset = preset
        self._seed = seed

    def fit(self, images: Tensor) -> None:
        """Nothing to do."""

    @torch_defaults()
    def score(self, images: Tensor) -> Tensor:
        check_images(images, self._preset)
        pictures = levels(images, self._preset).double().cpu()
        return torch.tensor([self._of(picture[None]) for picture in pictures], dtype=torch.float32)

    def _of(self, picture: Tensor) -> float:
        raise NotImplementedError


class Random(_Pictures):
    """Uniform in [0, 1), drawn from the seed and the picture itself: equal pictures get equal scores."""

    name = "random"

    def _of(self, picture: Tensor) -> float:
        digest = hashlib.sha256(np.ascontiguousarray(picture.numpy()).tobytes()).digest()
        return float(np.random.default_rng([self._seed, int.from_bytes(digest, "little")]).random())


class Sharpness(_Pictures):
    """Variance of the Laplacian of the luma, at least 0, HIGHER is better (Pech-Pacheco et al., ICPR 2000)."""

    name = "sharpness"

    def _of(self, picture: Tensor) -> float:
        luma = F.pad(_luma(picture), (1, 1, 1, 1), mode="reflect")
        edges = F.conv2d(luma, torch.tensor(_LAPLACIAN, dtype=luma.dtype)[None, None])
        return float(edges.var(correction=0))


class Brightness(_Pictures):
    """Mean luma in [0, 255], HIGHER is taken as better."""

    name = "brightness"

    def _of(self, picture: Tensor) -> float:
        return float(_luma(picture).mean())


def _luma(picture: Tensor) -> Tensor:
    """[1, 1, H, W] of levels [1, 3, H, W], RGB."""
    return (picture * picture.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)
