"""FROQ (IJCB 2025): the norms of a few of the network's own layers, which pseudo-labels of some images choose once.

Source: the paper's section on observer initialisation, and the authors' code (github.com/LSIbabnikz/FROQ). The numbers
of masks, alphas, cells and candidates below are the paper's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefiqs_ext.exceptions import FileFormatError, InputError, NotFittedError
from prefiqs_ext.inputs import name_rows
from prefiqs_ext.methods.network_method import ObservingMethod, check_network, check_uint8
from prefiqs_ext.models.embedding import iterate_leaves
from prefiqs_ext.models.fingerprint import check_sha256, hash_weights
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.strict_json import JSON, build_dataclass, check_names, check_version, read_strict_json
from prefiqs_ext.utils.torch_defaults import torch_defaults

if TYPE_CHECKING:
    from typing_extensions import Self

Numbers = NDArray[np.float64]

_MASKS = 10
_ALPHAS = (0.001, 0.002, 0.005)
_CELLS = 8  # per side of the image: cells of 14 x 14 pixels at 112 x 112
_CANDIDATES = 10  # the most modules that are selected
_LEAST_IMAGES = 20  # with fewer, a rank correlation of .4 is found between independent numbers in 1 of 12 tries
_ALIKE = 1e-3  # relative difference of the norms of one image alone and in a batch; rounding stays below 1e-5
_ROUNDING = 1e-5  # relative rounding of the norms of float32 outputs
_VERSION = 1


@dataclass(frozen=True)
class LayerSelection:
    """What a fit found.

    Attributes:
        modules: Their names in the network, in the order in which they were chosen.
        correlation: Spearman's correlation, in [-1, 1], of the mean of the modules' norms with the pseudo-labels of the
            calibration images.
        images: How many calibration images there were.
        seed: Of the noise, and of the draw of the images.

    Raises:
        InputError: Values that no fit can find.
    """

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
        if type(self.images) is not int or self.images < _LEAST_IMAGES or type(self.seed) is not int:
            raise InputError(f"images is {self.images!r}, seed is {self.seed!r}")


class FROQ(ObservingMethod):
    """Mean of the L2 norms of the selected modules' outputs, at least 0, unbounded, HIGHER is better.

    Call `fit` or `load` before `score`. Candidates are the modules inside the network. Operations that are functions in
    its code are not seen, for example the additions of a network imported from ONNX. If a module runs several times for
    one image, its last output counts. If a module gives several outputs, the first floating tensor counts.

    Args:
        network: In eval mode, in float32 and on the CPU.
        preset: What the network wants done to an image.
        seed: Of the noise and of the draw of the images.
        fit_images: The most images that `fit` draws from those that it is given.
        chunk: Images run together.
        output: Which of the network's several outputs is the embedding, as in :class:`Scorer`.

    Attributes:
        selection: What `fit` or `load` found; None before.

    Raises:
        InputError: A network that is not as above, or numbers out of range.
    """

    name = "froq"
    higher_is_better = True

    def __init__(
        self,
        network: nn.Module,
        preset: Preset,
        *,
        seed: int = 0,
        fit_images: int = 200,
        chunk: int = 8,
        output: int | str | None = None,
    ) -> None:
        if fit_images < _LEAST_IMAGES or chunk < 1:
            raise InputError(
                f"expected {_LEAST_IMAGES} or more images and a chunk of 1 or more, got {fit_images} and {chunk}"
            )
        self.network, self.preset, self.seed, self.fit_images, self.chunk = network, preset, seed, fit_images, chunk
        self.output = output
        check_network(self)
        self.selection: LayerSelection | None = None
        self._normalize = preset.normalize()
        self._modules = {name: module for name, module in network.named_modules() if name}

    @torch_defaults()
    def fit(self, images: Tensor) -> Self:
        """Select the modules on uint8 RGB faces [N, 3, H, W], and return the method itself.

        It takes 20 images or more, and draws some of them at random if there are more than the constructor's
        `fit_images`.
        Each image costs 97 passes of the network, see `compute_pseudo_labels`.

        Raises:
            InputError: Another batch; images that no module's norm tells apart; whatever the Scorer refuses.
        """
        check_network(self)
        check_uint8(images, self.preset)
        if len(images) < _LEAST_IMAGES:
            raise InputError(f"froq: expected {_LEAST_IMAGES} or more calibration images, got {len(images)}")
        if len(images) > self.fit_images:
            drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))[: self.fit_images]
            images = images[drawn.sort().values]
        names, norms = self._measure_candidates(images)
        labels = compute_pseudo_labels(images, self.network, self.preset, seed=self.seed, output=self.output)
        chosen, correlation = select_columns(norms, labels)
        self.selection = LayerSelection(tuple(names[index] for index in chosen), correlation, len(images), self.seed)
        return self

    @contextmanager
    def observe(self, rows: int) -> Iterator[Callable[[], Tensor]]:
        """Watch one pass of the network over this many images.

        Raises:
            NotFittedError: Before `fit` or `load`.
            InputError: After the pass: a module gave no norms.
        """
        names = self._check_fitted().modules

        def compute_mean_norm() -> Tensor:
            silent = [name for name in names if name not in norms]
            if silent:
                raise InputError(f"froq: {silent[0]} gave no floating tensor with one row per image")
            return torch.stack([norms[name] for name in names]).mean(0)

        with _watch_norms({name: self._modules[name] for name in names}, rows) as norms:
            yield compute_mean_norm

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the selection to a JSON file, in full or not at all.

        Raises:
            NotFittedError: Before `fit` or `load`.
            FileAccessError: The file cannot be written.
        """
        values = {
            "version": _VERSION,
            "model_sha256": hash_weights(self.network),
            "preset": asdict(self.preset),
            "selection": asdict(self._check_fitted()),
        }
        with atomic_write(os.fspath(path)) as file:
            file.write((json.dumps(values, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str], network: nn.Module, preset: Preset, *, chunk: int = 8) -> FROQ:
        """Make the method that `save` wrote.

        Args:
            path: The file.
            network: The network that it was fitted on, or one of the same weights.
            preset: The preset that it was fitted with, under any name.
            chunk: Images run together.

        Raises:
            MissingFileError: There is no such file.
            FileFormatError: The file is not a saved FROQ.
            InputError: The network has other weights, or the preset is another.
        """
        weights, saved_preset, selection = read_strict_json(path, "a saved FROQ", _parse)
        if hash_weights(network) != weights:
            raise InputError(f"expected the model that {path} was made with, got one of other weights")
        if astuple(preset)[1:] != astuple(saved_preset)[1:]:  # the first field is the name
            raise InputError(f"expected the preset that {path} was made with, {saved_preset}, got {preset}")
        method = cls(network, preset, seed=selection.seed, chunk=chunk)
        unknown = [name for name in selection.modules if name not in method._modules]
        if unknown:
            raise InputError(f"expected the model that {path} was made with, got one without {unknown[0]!r}")
        method.selection = selection
        return method

    def _check_fitted(self) -> LayerSelection:
        if self.selection is None:
            raise NotFittedError("froq: call fit() first, or FROQ.load() what was saved")
        return self.selection

    def _measure_norms(self, images: Tensor) -> dict[str, Tensor]:
        """Measure the norms, float64 [N], of each module that gives one row or several per image."""
        with _watch_norms(self._modules, len(images)) as norms, torch.no_grad():
            self.network(self._normalize(images))
        return norms

    def _measure_candidates(self, images: Tensor) -> tuple[list[str], Numbers]:
        """Names and norms [N, modules] of the modules that treat an image alike alone and in a batch."""
        alone = self._measure_norms(images[:1])
        chunks = [self._measure_norms(rows) for rows in torch.split(images, self.chunk)]
        names = [
            name
            for name in self._modules
            if name in alone
            and all(name in chunk for chunk in chunks)
            and bool(torch.isclose(chunks[0][name][0], alone[name][0], rtol=_ALIKE, atol=0))
        ]
        columns = [torch.cat([chunk[name] for chunk in chunks]).numpy() for name in names]
        return names, np.stack(columns, axis=1) if columns else np.empty((len(images), 0))


@contextmanager
def _watch_norms(modules: Mapping[str, nn.Module], rows: int) -> Iterator[dict[str, Tensor]]:
    """Watch a pass over this many images. It fills in the norms, float64 [rows], of each module that gives such rows.

    They are measured inside the hooks, because the next module may write to the tensor.
    """
    norms: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, module in modules.items():

            def hook(_module: nn.Module, _args: object, output: object, name: str = name) -> None:
                norm = _compute_row_norms(output, rows)
                if norm is not None:
                    norms[name] = norm

            stack.enter_context(module.register_forward_hook(hook))
        yield norms


def compute_pseudo_labels(
    images: Tensor, network: nn.Module, preset: Preset, *, seed: int = 0, output: int | str | None = None
) -> Numbers:
    """Measure how little perturbations turn the embeddings of uint8 RGB images [N, 3, H, W].

    The label of an image is the mean of three cosines to its plain embedding:

    * that of the mirrored image;
    * that of x' = (1 - a) x + a n, averaged over 10 Gaussian masks n, the same for all images, and over a of .001, .002
      and .005. Here x and n are on the scale on which levels of 0 to 255 are -1 to 1, whatever scale the network uses;
      otherwise the noise would be stronger for one network than for another;
    * that of the image with one cell of a grid of 8 x 8 black, averaged over the cells. A cell has 14 x 14 pixels at
      112 x 112.

    The original and its 96 variants run on the Scorer's graph with nothing pruned.

    Returns:
        [N] in [-1, 1], HIGHER is better.

    Raises:
        InputError: An image whose embedding, plain or perturbed, has no direction.
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


def select_columns(norms: Numbers, labels: Numbers) -> tuple[list[int], float]:
    """Select the columns of norms [N, M] whose mean ranks the images as the labels [N] do.

    The candidates are the 10 columns with the highest correlation. Starting from the first, the column is added that
    makes the correlation of the mean highest. The best of these growing sets is taken; of equal ones, the smallest.
    Columns that are constant, or have NaN or infinity, are ignored.

    Returns:
        The columns, in the order in which they were added, and Spearman's correlation of their mean with the labels.

    Raises:
        InputError: No column is left, or the labels are constant.
    """
    if _is_constant(labels):
        raise InputError("froq: expected calibration images of different quality, got pseudo-labels that are all equal")
    usable = [index for index, column in enumerate(norms.T) if np.isfinite(column).all() and not _is_constant(column)]
    if not usable:
        raise InputError("froq: expected modules whose norms differ between images, got none")
    alone = {index: _compute_spearman(norms, [index], labels) for index in usable}
    left = sorted(usable, key=lambda index: -alone[index])[:_CANDIDATES]
    order: list[int] = []
    reached: list[float] = []
    while left:
        tried = [_compute_spearman(norms, [*order, index], labels) for index in left]
        reached.append(max(tried))
        order.append(left.pop(tried.index(reached[-1])))
    best = max(reached)
    return order[: reached.index(best) + 1], best


def _compute_spearman(norms: Numbers, columns: Sequence[int], labels: Numbers) -> float:
    """Spearman's correlation of the columns' mean with the labels; -1 if the mean is constant."""
    mean = norms[:, columns].mean(axis=1)
    return -1.0 if _is_constant(mean) else float(np.corrcoef(_rank(mean), _rank(labels))[0, 1])


def _rank(values: Numbers) -> Numbers:
    """Rank values from 1 on; equal values share the mean of their ranks."""
    place, counts = np.unique(values, return_inverse=True, return_counts=True)[1:]
    ranks: Numbers = np.cumsum(counts) - (counts - 1) / 2
    return ranks[place]


def _is_constant(values: Numbers) -> bool:
    """Whether values differ by no more than the rounding of float32."""
    return bool(np.ptp(values) <= _ROUNDING * np.abs(values).max())


def _compute_row_norms(output: object, rows: int) -> Tensor | None:
    """L2 norms of an output's rows, float64 [rows]: squares of float32 cannot overflow it.

    Several rows per image, as of attention windows, count as one. None if the output has no such rows.
    """
    for leaf in iterate_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() and leaf.shape[0]:
            if leaf.shape[0] % rows:
                return None
            norm: Tensor = torch.linalg.vector_norm(leaf.detach().reshape(rows, -1), dim=1, dtype=torch.float64)
            return norm
    return None


def _parse(values: JSON) -> tuple[str, Preset, LayerSelection]:
    named = check_names(values, ("version", "model_sha256", "preset", "selection"), "an object")
    check_version(named["version"], _VERSION)
    check_sha256(named["model_sha256"])
    preset, selection = build_dataclass(Preset, named["preset"]), build_dataclass(LayerSelection, named["selection"])
    if preset is None or selection is None:
        raise FileFormatError("preset or selection is missing")
    return named["model_sha256"], preset, selection
