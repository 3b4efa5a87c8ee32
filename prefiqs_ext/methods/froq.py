"""FROQ (IJCB 2025): the norms of a few of the network's own layers, chosen once by pseudo-labels of calibration images.

What it follows: the paper's section on observer initialisation and the authors' code (github.com/LSIbabnikz/FROQ).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.inputs import name_rows
from prefiqs_ext.methods.images import check_network, check_uint8, score_chunks
from prefiqs_ext.models.embedding import iterate_leaves
from prefiqs_ext.models.fingerprint import check_sha256, hash_weights
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.strict_json import build_dataclass, check_names, read_strict_json
from prefiqs_ext.utils.torch_defaults import torch_defaults

Numbers = NDArray[np.float64]

_MASKS = 10
_ALPHAS = (0.001, 0.002, 0.005)
_CELLS = 8  # along a side of the image: 14 pixels each of 112
_CANDIDATES = 10  # modules
_LEAST = 20  # calibration images
_ALIKE = 1e-3  # norms of one image alone and in a batch
_ROUNDING = 1e-5  # of norms of float32 outputs, relative
_VERSION = 1


@dataclass(frozen=True)
class LayerSelection:
    """What a fit found. modules: names in the network, in the order in which they were chosen. correlation: Spearman's,
    of the mean of their norms with the pseudo-labels, on the calibration images. images: how many these were. seed: of
    the noise, and of the draw of the images. ValueError for what no fit can find."""

    modules: tuple[str, ...]
    correlation: float
    images: int
    seed: int

    def __post_init__(self) -> None:
        names = self.modules
        if type(names) is not tuple or not all(type(name) is str and name for name in names):
            raise InputError(f"modules are {names!r}")
        if not 1 <= len(set(names)) == len(names) <= _CANDIDATES:
            raise InputError(f"expected 1 to {_CANDIDATES} different modules, got {len(names)}")
        if type(self.correlation) not in (int, float) or not -1 <= self.correlation <= 1:
            raise InputError(f"correlation is {self.correlation!r}")
        if type(self.images) is not int or self.images < _LEAST or type(self.seed) is not int:
            raise InputError(f"images is {self.images!r}, seed is {self.seed!r}")


class FROQ:
    """Mean of the L2 norms of the selected modules' outputs, at least 0, unbounded, HIGHER is better.

    `fit` first, or `load`. A module whose forward runs several times for an image counts with its last output, one of
    several outputs with its first floating tensor. Seen are modules only: operations that are functions in the
    network's code (in one imported from ONNX its additions, for example) are not. The network itself is no candidate.

    seed: of the noise and of the draw. images: how many `fit` draws of those that it is given. chunk: images run
    together. output: which of several outputs is the embedding, as Scorer takes it. ValueError for a network that is
    not in eval mode, in float32 and on the CPU.
    """

    name = "froq"
    higher_is_better = True
    needs_fit = True

    def __init__(
        self,
        network: nn.Module,
        preset: Preset,
        *,
        seed: int = 0,
        images: int = 200,
        chunk: int = 8,
        output: int | str | None = None,
    ) -> None:
        if images < _LEAST or chunk < 1:
            raise InputError(f"expected {_LEAST} or more images and a chunk of 1 or more, got {images} and {chunk}")
        self.network, self.preset, self.seed, self.images, self.chunk = network, preset, seed, images, chunk
        self.output = output
        check_network(self)
        self.selection: LayerSelection | None = None
        self._normalize = preset.normalize()
        self._modules = {name: module for name, module in network.named_modules() if name}

    @torch_defaults()
    def fit(self, images: Tensor) -> None:
        """Calibrate on uint8 RGB faces [N, 3, H, W], 20 or more; of more than `images`, as many are drawn.

        Costs 97 passes of the network an image (see `pseudo_labels`).
        TypeError, ValueError: another batch; images that no module's norm tells apart; what the Scorer raises.
        """
        check_network(self)
        check_uint8(images, self.preset)
        if len(images) < _LEAST:
            raise InputError(f"froq: expected {_LEAST} or more calibration images, got {len(images)}")
        if len(images) > self.images:
            drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))[: self.images]
            images = images[drawn.sort().values]
        names, norms = self._every_norm(images)
        labels = pseudo_labels(images, self.network, self.preset, seed=self.seed, output=self.output)
        chosen, correlation = select(norms, labels)
        self.selection = LayerSelection(tuple(names[index] for index in chosen), correlation, len(images), self.seed)

    def score(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] RGB -> float32 [N], in one pass of the network. TypeError, ValueError: as Scorer."""
        names = self._fitted().modules
        modules = {name: self._modules[name] for name in names}

        def mean_norm(rows: Tensor) -> Tensor:
            norms = self._norms(modules, rows)
            silent = [name for name in names if name not in norms]
            if silent:
                raise InputError(f"froq: {silent[0]} gave no floating tensor with a row an image")
            return torch.stack([norms[name] for name in names]).mean(0)

        return score_chunks(self, images, self.chunk, mean_norm)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the selection as JSON, whole or not at all. ValueError where it cannot be written."""
        values = {
            "version": _VERSION,
            "model_sha256": hash_weights(self.network),
            "preset": asdict(self.preset),
            "selection": asdict(self._fitted()),
        }
        with atomic_write(os.fspath(path)) as file:
            file.write((json.dumps(values, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str], network: nn.Module, preset: Preset, *, chunk: int = 8) -> FROQ:
        """The method that was saved. FileNotFoundError; ValueError, in one line, for a file that is none, or one that
        was made with other weights or another preset."""
        weights, saved_preset, selection = read_strict_json(path, "a saved FROQ", _parsed)
        if hash_weights(network) != weights:
            raise InputError(f"expected the model that {path} was made with, got one of other weights")
        if astuple(preset)[1:] != astuple(saved_preset)[1:]:  # whatever their names
            raise InputError(f"expected the preset that {path} was made with, {saved_preset}, got {preset}")
        method = cls(network, preset, seed=selection.seed, chunk=chunk)
        unknown = [name for name in selection.modules if name not in method._modules]
        if unknown:
            raise InputError(f"expected the model that {path} was made with, got one without {unknown[0]!r}")
        method.selection = selection
        return method

    def _fitted(self) -> LayerSelection:
        if self.selection is None:
            raise InputError("froq: call fit() first, or FROQ.load() what was saved")
        return self.selection

    def _norms(self, modules: Mapping[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
        """Float64 [N] of each module that gives a row, or several, an image. Taken inside the hooks: the next module
        may write to the tensor."""
        norms: dict[str, Tensor] = {}
        with ExitStack() as stack, torch.no_grad():
            for name, module in modules.items():

                def hook(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                    norm = _row_norms(output, len(images))
                    if norm is not None:
                        norms[name] = norm

                stack.enter_context(module.register_forward_hook(hook))
            self.network(self._normalize(images))
        return norms

    def _every_norm(self, images: Tensor) -> tuple[list[str], Numbers]:
        """Names and norms [N, modules] of the modules that see an image alike alone and in a batch."""
        alone = self._norms(self._modules, images[:1])
        chunks = [self._norms(self._modules, rows) for rows in torch.split(images, self.chunk)]
        names = [
            name
            for name in self._modules
            if name in alone
            and all(name in chunk for chunk in chunks)
            and bool(torch.isclose(chunks[0][name][0], alone[name][0], rtol=_ALIKE, atol=0))
        ]
        columns = [torch.cat([chunk[name] for chunk in chunks]).numpy() for name in names]
        return names, np.stack(columns, axis=1) if columns else np.empty((len(images), 0))


def pseudo_labels(
    images: Tensor, network: nn.Module, preset: Preset, *, seed: int = 0, output: int | str | None = None
) -> Numbers:
    """uint8 [N, 3, H, W] RGB -> [N] in [-1, 1], HIGHER is better: how little the embedding turns under perturbation.

    Mean of three cosines to the plain embedding: of the mirrored image; of x' = (1 - a) x + a n, averaged over 10
    Gaussian masks n, the same for all images, and a of .001, .002, .005; of the image with one cell of a grid of 8 x 8
    black, averaged over the cells. Cells have 14 pixels a side at 112 x 112, at other sizes an eighth of the image's.
    x and n are on the scale where levels 0 to 255 are -1 to 1, whatever the network's own: elsewhere n would mean
    another noise.

    The 97 images of an image run on the Scorer's graph with nothing pruned. ValueError: an image whose embedding, plain
    or perturbed, has no direction.
    """
    check_uint8(images, preset)
    normalize, (height, width) = preset.normalize(), preset.size
    noise = torch.randn(_MASKS, 3, height, width, generator=torch.Generator().manual_seed(seed))
    # Normalisation is affine, so blends of normalised images are normalised blends.
    noise, black = normalize(127.5 + 127.5 * noise), normalize(torch.zeros(1, 3, 1, 1))
    row, column = (torch.arange(side) * _CELLS // side for side in (height, width))
    cells = (row[:, None] * _CELLS + column) == torch.arange(_CELLS**2)[:, None, None, None]
    network_input = normalize(images[:1])
    scorer = Scorer(network, Pruning(sparsity=0.0), example=network_input, output=output, device="cpu", on_bad="nan")
    labels = torch.empty(len(images), dtype=torch.float64)
    for index in range(len(images)):
        x = normalize(images[index : index + 1])
        noisy = [(1 - alpha) * x + alpha * noise for alpha in _ALPHAS]
        result = scorer(torch.cat([x, x.flip(3), *noisy, torch.where(cells, black, x)]))
        embedding = result.embedding.double()
        cosines = nn.functional.cosine_similarity(embedding[1:], embedding[:1])
        cosines[result.distance[1:].isnan() | result.distance[0].isnan()] = torch.nan
        parts = torch.split(cosines, [1, len(_ALPHAS) * _MASKS, _CELLS**2])
        labels[index] = torch.stack([part.mean() for part in parts]).mean()
    if bool(labels.isnan().any()):
        raise InputError(
            f"froq: expected embeddings of finite norm above 0, got none for {name_rows(labels.isnan())}, plain or "
            "perturbed; check these images"
        )
    return labels.numpy()


def select(norms: Numbers, labels: Numbers) -> tuple[list[int], float]:
    """Which columns of norms [N, M] have a mean that ranks images as the labels [N] do, and its Spearman correlation.

    Candidates are the 10 columns of largest correlation. From the first on, the one is added that makes the correlation
    of the mean largest; the best of these growing sets is taken, the smallest of equals. Constant columns, and those
    with NaN or infinity, are left out. ValueError where nothing is left, or the labels are constant.
    """
    if _constant(labels):
        raise InputError("froq: expected calibration images of different quality, got pseudo-labels that are all equal")
    usable = [index for index, column in enumerate(norms.T) if np.isfinite(column).all() and not _constant(column)]
    if not usable:
        raise InputError("froq: expected modules whose norms differ between images, got none")
    alone = {index: _spearman(norms, [index], labels) for index in usable}
    left = sorted(usable, key=lambda index: -alone[index])[:_CANDIDATES]
    order: list[int] = []
    reached: list[float] = []
    while left:
        tried = [_spearman(norms, [*order, index], labels) for index in left]
        reached.append(max(tried))
        order.append(left.pop(tried.index(reached[-1])))
    best = max(reached)
    return order[: reached.index(best) + 1], best


def _spearman(norms: Numbers, columns: Sequence[int], labels: Numbers) -> float:
    """Of the columns' mean with the labels; -1 where the mean is constant."""
    mean = norms[:, columns].mean(axis=1)
    return -1.0 if _constant(mean) else float(np.corrcoef(_ranks(mean), _ranks(labels))[0, 1])


def _ranks(values: Numbers) -> Numbers:
    """From 1 on; equal values share the mean of theirs."""
    place, counts = np.unique(values, return_inverse=True, return_counts=True)[1:]
    ranks: Numbers = np.cumsum(counts) - (counts - 1) / 2
    return ranks[place]


def _constant(values: Numbers) -> bool:
    """But for the rounding of float32."""
    return bool(np.ptp(values) <= _ROUNDING * np.abs(values).max())


def _row_norms(output: Any, rows: int) -> Tensor | None:
    """Float64 [rows], which float32's squares cannot overflow; several rows an image (windows) count as one."""
    for leaf in iterate_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() and leaf.shape[0]:
            if leaf.shape[0] % rows:
                return None
            norm: Tensor = torch.linalg.vector_norm(leaf.reshape(rows, -1), dim=1, dtype=torch.float64)
            return norm
    return None


def _parsed(values: Any) -> tuple[str, Preset, LayerSelection]:
    named = check_names(values, ("version", "model_sha256", "preset", "selection"), "an object")
    if type(named["version"]) is not int or named["version"] != _VERSION:
        raise InputError(f"version {_VERSION} is what this program reads, got {named['version']!r}")
    check_sha256(named["model_sha256"])
    preset, selection = build_dataclass(Preset, named["preset"]), build_dataclass(LayerSelection, named["selection"])
    if preset is None or selection is None:
        raise InputError("preset or selection is missing")
    return named["model_sha256"], preset, selection
