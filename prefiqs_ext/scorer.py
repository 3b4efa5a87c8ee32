"""Images in, qualities and embeddings out: :class:`Scorer` for any network, :func:`score` for the built-in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import lru_cache, partial
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from prefiqs_ext.device import resolve
from prefiqs_ext.dual import BufferedGraph, CudaGraphs, dualize, out_of_memory, to_half
from prefiqs_ext.exceptions import InputError, OutOfMemoryError
from prefiqs_ext.inputs import check_batch, check_values, example_images, levels, name_rows
from prefiqs_ext.models.fingerprint import hash_weights
from prefiqs_ext.models.loading import resolve_network
from prefiqs_ext.models.normalize import NormalizedNetwork
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.ops import embedding_distance
from prefiqs_ext.output import ScoreOutput
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.settings import Settings, dtype_name
from prefiqs_ext.utils.torch_defaults import torch_defaults, without_autocast

# Images run together: what stays in a CPU's cache; what fills a GPU.
_CHUNK = {"cpu": 16, "cuda": 256}
# Of an embedding in half precision, largest difference over largest size, in units of the type's rounding. Some fifty
# to a hundred roundings add up like their square root; a wrong kernel is off by its own size.
_ROUNDINGS = 32


class Scorer(nn.Module):
    """A recognition network and its pruned shadow, run together on one set of weights.

    Called with a batch it returns a :class:`ScoreOutput`. A row's result has the same bits alone and anywhere in a
    batch of any size, with any number of threads. The caller's model is never changed and not kept.

    Args:
        model: the name of a built-in model ("sface"; fetched at first use), a file for :func:`models.load`, or a
            module in eval mode that maps a batch to embeddings ``[N, d]``.
        pruning: what the pruned branch loses; or masks of your own, module name -> bool tensor of its weight's shape,
            True = keep.
        preset: what the network wants done to an image: a :class:`Preset`, its name ("arcface", "magface", ...), or
            None: a built-in model's own, or a guess by a checkpoint's layout, with a warning; a module or an ONNX file
            then gets the batch exactly as it is.
        device: "cpu", "cuda", or a device of these; None: the GPU that the model is on, else the CPU. Batches come from
            there, and results are there.
        dtype: what to compute in: float32 on the CPU; float16 on CUDA, or bfloat16 for a network whose activations
            overflow float16 (the error says so).
        example: a batch like those to come, ``[N, ...]``; needed where there is no preset to tell the shape.
        output: which of a network's several outputs is the embedding, by index or key; None: the first floating
            ``[N, d]`` of two columns or more.
        chunk: images run together; bounds memory, never changes a result. None: 16 on the CPU, 256 on CUDA.
        fuse: fold batch norm, input normalisation, activations and residuals into the convolutions.
        on_bad: a row whose embedding has no direction (norm 0 or not finite): "raise", or "nan" for its distance and
            quality.

    Raises:
        ValueError: naming what was expected and what came, or why CUDA cannot be used.
        RuntimeError: when the converted network does not give what the network gives.
    """

    @torch_defaults()
    def __init__(
        self,
        model: str | PathLike[str] | nn.Module = "sface",
        pruning: Pruning | Mapping[str, Tensor] = Pruning(),  # noqa: B008, frozen
        *,
        preset: Preset | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        example: Tensor | None = None,
        output: int | str | None = None,
        chunk: int | None = None,
        fuse: bool = True,
        on_bad: Literal["raise", "nan"] = "raise",
    ) -> None:
        super().__init__()
        if chunk is not None and chunk < 1:
            raise InputError(f"expected chunk of 1 or more, got {chunk}")
        if on_bad not in ("raise", "nan"):
            raise InputError(f"expected on_bad 'raise' or 'nan', got {on_bad!r}")
        self.device, self.dtype = resolve(device, dtype, model)
        network, self.preset = resolve_network(model, preset)
        weights_hash = hash_weights(network)
        if isinstance(pruning, Pruning):
            masks = pruning.masks(network)
        else:
            masks = {name: mask.cpu() for name, mask in pruning.items()}
        self._settings = None
        if isinstance(pruning, Pruning):
            name = None if isinstance(model, nn.Module) else str(model)
            self._settings = Settings(
                name, weights_hash, self.preset, pruning, self.device.type, dtype_name(self.dtype), output
            )
        if self.preset is not None:
            # Masks come first: pruning knows layers by the names they have in the caller's model.
            network = NormalizedNetwork(self.preset, network)
            masks = {f"network.{name}": mask for name, mask in masks.items()}
            example = example_images(self.preset)
        if example is None:
            raise InputError("expected a preset, or an example batch that shows the network's input; got neither")
        example = example.cpu()
        self.chunk = chunk or _CHUNK[self.device.type]
        self.on_bad = on_bad
        self._input_rank = example.dim()
        self._dual = dualize(network, masks, example=example, output=output, fuse=fuse)
        with torch.inference_mode():
            expected = self._dual(example[:1])
        self._embedding_size = expected.shape[1]
        self._run: Callable[[Tensor], tuple[Tensor, ...]]
        if self.dtype == torch.float32:
            self._run = partial(_score_output, BufferedGraph(self._dual, example, chunk=self.chunk))
        else:
            to_half(self._dual, self.device, self.dtype)
            self._check_half(example[:1], expected)
            self._run = CudaGraphs(partial(_score_output, self._dual))

    def _check_half(self, example: Tensor, expected: Tensor) -> None:
        """The graph in half precision gives, on its device, about the pair that it gave in float32 on the CPU."""
        with torch.inference_mode():
            pair = self._dual(example.to(self.device)).float().cpu()
        remedy = "" if self.dtype == torch.bfloat16 else "; try dtype=torch.bfloat16, which does not overflow"
        if not bool(pair.isfinite().all()):
            raise InputError(f"the network gives NaN or infinity in {self.dtype} on {self.device}{remedy}")
        difference = float((pair - expected).abs().max() / expected.abs().max())
        most = _ROUNDINGS * torch.finfo(self.dtype).eps
        if difference > most:
            raise RuntimeError(
                f"the embedding in {self.dtype} on {self.device} differs from the CPU's by {difference:.2g} of its "
                f"size, expected at most {most:.2g}{remedy}"
            )

    @classmethod
    def from_settings(
        cls,
        settings: Settings | str | PathLike[str],
        model: str | PathLike[str] | nn.Module | None = None,
        **options: Any,
    ) -> Scorer:
        """The scorer that gave these settings, or one like it; its `settings` have their calibration.

        settings: or a file of them. model: None for the one that the settings name. options: device and dtype, None for
        those of the settings; example, chunk, fuse, on_bad. ValueError where the model has not the weights that the
        settings were made with, and for a device or dtype other than the one that their scale was fitted in.
        """
        if not isinstance(settings, Settings):
            settings = Settings.load(settings)
        device = options.pop("device", None) or settings.device
        dtype = options.pop("dtype", None)
        if dtype is None and torch.device(device).type == settings.device:
            dtype = getattr(torch, settings.dtype)
        place, dtype = resolve(device, dtype, None)
        settings = settings.computed_in(place, dtype)
        source = settings.model if model is None else model
        if source is None:
            raise InputError("expected the model that these settings were made with: they name none, it was a module")
        scorer = cls(
            source,
            settings.pruning,
            preset=settings.preset,
            output=settings.output,
            device=place,
            dtype=dtype,
            **options,
        )
        found = scorer.settings.model_sha256
        if found != settings.model_sha256:
            raise InputError(
                f"expected the model that these settings were made with, whose weights have SHA-256 "
                f"{settings.model_sha256[:12]}..., got {found[:12]}..."
            )
        scorer._settings = settings
        return scorer

    @property
    def settings(self) -> Settings:
        """What the numbers depend on: to save, and to make the same scorer from. ValueError with masks of your own."""
        if self._settings is None:
            raise InputError("masks of your own are not kept in settings: construct the Scorer with a Pruning")
        return self._settings

    @property
    def resident_bytes(self) -> int:
        """Bytes of all tensors the scorer keeps: weights, masks, biases."""
        return sum(t.numel() * t.element_size() for t in (*self.parameters(), *self.buffers()))

    def forward(self, batch: Tensor) -> ScoreOutput:
        """One pass, all rows together, nothing checked: what torch.compile and torch.export get of the scorer."""
        with without_autocast(self.device.type):
            return _score_output(self._dual, levels(batch, self.preset))

    def __call__(self, batch: Tensor) -> ScoreOutput:
        """Score a batch.

        Args:
            batch: with a preset, RGB images of exactly its size: uint8 ``[N, 3, H, W]`` of 0-255, or floating of
                [0, 1]. Without, what the network takes, float32 or uint8. Any memory layout. N = 0 gives empty tensors.

        Raises:
            TypeError, ValueError: naming what was expected and what came.
            MemoryError: naming a chunk to try, where there is a smaller one.
        """
        if torch.compiler.is_compiling():
            output: ScoreOutput = super().__call__(batch)
            return output
        self._check(batch)
        if not batch.shape[0]:
            return self._empty()
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with on_device, without_autocast(self.device.type), torch.inference_mode():
            extremes = batch.aminmax() if batch.is_floating_point() else ()
            outputs = [self._scored(levels(rows, self.preset)) for rows in torch.split(batch, self.chunk)]
        # Joined outside inference mode, so that the results are ordinary tensors.
        output = ScoreOutput(*(torch.cat(fields) for fields in zip(*outputs, strict=True)))
        bad = ~output.distance.isfinite() | ~output.embedding_norm.isfinite() | (output.embedding_norm == 0)
        # Read together: one wait for the device.
        any_bad, *extreme = torch.stack([bad.any(), *extremes]).tolist()
        if extreme:
            check_values(batch, self.preset, *extreme)
        return self._without(bad, output) if any_bad else output

    def _scored(self, rows: Tensor) -> tuple[Tensor, ...]:
        try:
            return self._run(rows)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if len(rows) == 1:
            raise OutOfMemoryError(
                f"{self.device} has too little memory for one image: free some of it, or use another device"
            )
        half = len(rows) // 2
        raise OutOfMemoryError(f"{self.device} has too little memory for {len(rows)} images together: try chunk={half}")

    def _empty(self) -> ScoreOutput:
        none = torch.empty(0, dtype=torch.float32, device=self.device)
        no_embedding = none.new_empty(0, self._embedding_size)
        return ScoreOutput(none, none.clone(), no_embedding, no_embedding.clone(), none.clone())

    def _check(self, batch: Tensor) -> None:
        check_batch(batch, self.preset, self._input_rank)
        if batch.device != self.device:
            raise InputError(f"expected a batch on the scorer's device {self.device}, got {batch.device}")

    def _without(self, bad: Tensor, output: ScoreOutput) -> ScoreOutput:
        """Rows without a direction raise, or lose their numbers."""
        if self.on_bad == "raise":
            overflow = "dtype=torch.bfloat16 if they overflow, or " if self.dtype == torch.float16 else ""
            raise InputError(
                f"expected embeddings of finite norm above 0, got none for {name_rows(bad)}; check these images and "
                f"the weights, or construct the Scorer with {overflow}on_bad='nan'"
            )
        nan = torch.full_like(output.distance, torch.nan)
        return output._replace(
            distance=torch.where(bad, nan, output.distance), quality=torch.where(bad, nan, output.quality)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Scorer:
        """What to(), cuda(), half() and the like call."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        moved = fn(like)
        if (moved.device, moved.dtype) != (like.device, like.dtype):
            raise InputError(
                f"a Scorer stays where it was made, on {self.device} in {self.dtype}: "
                "construct another with Scorer(model, device=..., dtype=...)"
            )
        return self


def _score_output(dual: fx.GraphModule | BufferedGraph, batch: Tensor) -> ScoreOutput:
    """The network's input -> scores of the pair of embeddings [2N, d]."""
    distance, embedding, pruned_embedding, norm = embedding_distance(dual(batch))
    return ScoreOutput(distance, 1 - distance / 2, embedding, pruned_embedding, norm)


@lru_cache(maxsize=4)
def _default_scorer(device: torch.device) -> Scorer:
    return Scorer(device=device)


def score(batch: Tensor) -> ScoreOutput:
    """Score face crops with the built-in network (SFace, 112 x 112, 128-d), pruned as in the paper.

    Computes where the batch is: on the CPU in float32, on a GPU in float16. The first call fetches the weights (39 MB,
    announced on standard error) if they are not in the cache folder, and prepares the network; later calls only run it.

    Args:
        batch: aligned RGB face crops, uint8 ``[N, 3, 112, 112]`` of 0-255 or floating of [0, 1].

    Returns:
        :class:`ScoreOutput`: distance (lower is better), quality (higher is better), embeddings and embedding norm.

    Raises:
        TypeError, ValueError: naming what was expected and what came.
        OSError: when the weights are neither in the cache nor to be had.
    """
    on_cuda = isinstance(batch, Tensor) and batch.is_cuda
    return _default_scorer(batch.device if on_cuda else torch.device("cpu"))(batch)
