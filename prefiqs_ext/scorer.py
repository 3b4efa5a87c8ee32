"""Images in, qualities and embeddings out: :class:`Scorer` for any network, :func:`score` for the built-in one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prefiqs_ext import models
from prefiqs_ext.dual import InPlace, dualize
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.ops import embedding_distance
from prefiqs_ext.output import ScoreOutput
from prefiqs_ext.pruning import Pruning

# Floating images come from divisions by 255 and resampling, which overshoot a little.
_OVERSHOOT = 1e-3


class Scorer(nn.Module):
    """A recognition network and its pruned shadow, run together on one set of weights.

    Called with a batch it returns a :class:`ScoreOutput`. A row's result has the same bits alone and anywhere in a
    batch of any size, with any number of threads. The caller's model is never changed and not kept.

    Args:
        model: the name of a built-in model ("sface"; fetched at first use), an ONNX file, or a module in eval mode that
            maps a batch to embeddings ``[N, d]``.
        pruning: what the pruned branch loses; or masks of your own, module name -> bool tensor of its weight's shape,
            True = keep.
        preset: what the network wants done to an image: a :class:`Preset`, its name ("arcface", "magface", ...), or
            None: a built-in model's own; any other network then gets the batch exactly as it is.
        device, dtype: where and in what to compute. This build computes on the CPU in float32.
        example: a batch like those to come, ``[N, ...]``; needed where there is no preset to tell the shape.
        chunk: images run together; bounds memory, never changes a result.
        fuse: fold batch norm, input normalisation, activations and residuals into the convolutions.
        on_bad: a row whose embedding has no direction (norm 0 or not finite): "raise", or "nan" for its distance and
            quality.

    Raises:
        ValueError: naming what was expected and what came.
    """

    def __init__(
        self,
        model: str | PathLike[str] | nn.Module = "sface",
        pruning: Pruning | Mapping[str, Tensor] = Pruning(),  # noqa: B008, frozen
        *,
        preset: Preset | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        example: Tensor | None = None,
        chunk: int = 16,
        fuse: bool = True,
        on_bad: Literal["raise", "nan"] = "raise",
    ) -> None:
        super().__init__()
        if torch.device(device or "cpu").type != "cpu":
            raise ValueError(f"expected device 'cpu', the only one this build computes on; got {device!r}")
        if dtype not in (None, torch.float32):
            raise ValueError(f"expected dtype torch.float32, the only one this build computes in; got {dtype}")
        if chunk < 1:
            raise ValueError(f"expected chunk of 1 or more, got {chunk}")
        if on_bad not in ("raise", "nan"):
            raise ValueError(f"expected on_bad 'raise' or 'nan', got {on_bad!r}")
        network, own_preset = (model, None) if isinstance(model, nn.Module) else _load(model)
        masks = pruning.masks(network) if isinstance(pruning, Pruning) else dict(pruning)
        self.preset = Preset.named(preset) if isinstance(preset, str) else preset or own_preset
        if self.preset is not None:
            # Masks come first: pruning knows layers by the names they have in the caller's model.
            network = _Normalized(self.preset, network)
            masks = {f"network.{name}": mask for name, mask in masks.items()}
            example = _example_images(self.preset)
        if example is None:
            raise ValueError("expected a preset, or an example batch that shows the network's input; got neither")
        self.chunk = chunk
        self.on_bad = on_bad
        self._input_rank = example.dim()
        self._dual = dualize(network, masks, example=example, fuse=fuse)
        self._in_place = InPlace(self._dual, example, chunk=chunk)
        with torch.inference_mode():
            self._embedding_size = self.forward(example).embedding.shape[1]

    @property
    def resident_bytes(self) -> int:
        """Bytes of all tensors the scorer keeps: weights, masks, biases."""
        return sum(t.numel() * t.element_size() for t in (*self.parameters(), *self.buffers()))

    def forward(self, batch: Tensor) -> ScoreOutput:
        """One pass, all rows together, nothing checked: what is traced and exported. Call the scorer itself instead."""
        return _score_output(self._dual(batch))

    def __call__(self, batch: Tensor) -> ScoreOutput:
        """Score a batch.

        Args:
            batch: with a preset, RGB images of exactly its size: uint8 ``[N, 3, H, W]`` of 0-255, or floating of
                [0, 1]. Without, what the network takes, float32 or uint8. Any memory layout. N = 0 gives empty tensors.

        Raises:
            TypeError, ValueError: naming what was expected and what came.
        """
        self._check(batch)
        if not batch.shape[0]:
            return self._empty()
        with torch.inference_mode():
            # Read together with the result: one wait for the device, not two.
            extremes = torch.stack(batch.aminmax()) if batch.is_floating_point() else None
            chunks = torch.split(batch, self.chunk)
            outputs = [_score_output(self._in_place(self._network_input(rows))) for rows in chunks]
        if extremes is not None:
            self._check_values(batch, *extremes.tolist())
        # Joined outside inference mode, so that the results are ordinary tensors.
        output = ScoreOutput(*(torch.cat(fields) for fields in zip(*outputs, strict=True)))
        return self._check_rows(output)

    def _network_input(self, rows: Tensor) -> Tensor:
        if self.preset is None or rows.dtype == torch.uint8:
            return rows
        return rows.float().clamp(0, 1) * 255

    def _empty(self) -> ScoreOutput:
        none, no_embedding = torch.empty(0), torch.empty(0, self._embedding_size)
        return ScoreOutput(none, none.clone(), no_embedding, no_embedding.clone(), none.clone())

    def _check(self, batch: Tensor) -> None:
        if not isinstance(batch, Tensor):
            raise TypeError(f"expected a torch.Tensor, got {type(batch).__name__}")
        if batch.device.type != "cpu":
            raise ValueError(f"expected a batch on the scorer's device cpu, got {batch.device}")
        if self.preset is None:
            if batch.dtype not in (torch.float32, torch.uint8):
                raise TypeError(f"expected a float32 or uint8 batch, got {batch.dtype}")
            if batch.dim() != self._input_rank:
                raise ValueError(f"expected a batch of {self._input_rank} dimensions, got shape {list(batch.shape)}")
            return
        if batch.dtype != torch.uint8 and not batch.is_floating_point():
            raise TypeError(f"expected uint8 images of 0-255 or floating ones of [0, 1], got {batch.dtype}")
        height, width = self.preset.size
        if batch.dim() != 4 or tuple(batch.shape[1:]) != (3, height, width):
            raise ValueError(
                f"expected images [N, 3, {height}, {width}] (preset {self.preset.name!r}), got {list(batch.shape)}; "
                "align and crop them to that size first"
            )

    def _check_values(self, batch: Tensor, least: float, most: float) -> None:
        if not (isfinite(least) and isfinite(most)):
            rows = _rows(~batch.isfinite().flatten(1).all(dim=1))
            raise ValueError(f"expected finite values, got NaN or infinity in {rows}")
        if self.preset is not None and (least < -_OVERSHOOT or most > 1 + _OVERSHOOT):
            raise ValueError(
                f"expected floating images in [0, 1], got values from {least:g} to {most:g}; "
                "divide levels of 0-255 by 255, or pass them as uint8"
            )

    def _check_rows(self, output: ScoreOutput) -> ScoreOutput:
        bad = ~output.distance.isfinite() | ~output.embedding_norm.isfinite() | (output.embedding_norm == 0)
        if not bool(bad.any()):
            return output
        if self.on_bad == "raise":
            raise ValueError(
                f"expected embeddings of finite norm above 0, got none for {_rows(bad)}; check these images and the "
                "weights, or construct the Scorer with on_bad='nan'"
            )
        nan = torch.full_like(output.distance, torch.nan)
        return output._replace(
            distance=torch.where(bad, nan, output.distance), quality=torch.where(bad, nan, output.quality)
        )


class _Normalized(nn.Module):
    """The caller's network behind its preset's normalisation."""

    def __init__(self, preset: Preset, network: nn.Module) -> None:
        super().__init__()
        self.normalize = preset.normalize().eval()
        self.network = network
        self.training = network.training  # dualize refuses a network in train mode; wrapping must not hide it

    def forward(self, images: Tensor) -> Any:
        return self.network(self.normalize(images))


def _score_output(pair: Tensor) -> ScoreOutput:
    """The pair of embeddings [2N, d] -> their scores."""
    distance, embedding, pruned_embedding, norm = embedding_distance(pair)
    return ScoreOutput(distance, 1 - distance / 2, embedding, pruned_embedding, norm)


def _load(model: str | PathLike[str]) -> tuple[nn.Module, Preset | None]:
    """A built-in model with its preset, or an ONNX file, which cannot tell its preset."""
    if model in models.BUILT_IN:
        return models.load(str(model))
    if Path(model).suffix.lower() == ".onnx":
        return models.import_onnx(model), None
    built_in = ", ".join(models.BUILT_IN)
    raise ValueError(f"expected a built-in model ({built_in}), an .onnx file or a torch.nn.Module, got {str(model)!r}")


def _example_images(preset: Preset) -> Tensor:
    return torch.randint(0, 256, (1, 3, *preset.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _rows(bad: Tensor, most: int = 8) -> str:
    """'rows 3, 7' from a bool tensor [N]."""
    rows = bad.nonzero().flatten().tolist()
    return f"row{'s' * (len(rows) > 1)} " + ", ".join(map(str, rows[:most])) + (", ..." if len(rows) > most else "")


@lru_cache(maxsize=1)
def _default_scorer() -> Scorer:
    return Scorer()


def score(batch: Tensor) -> ScoreOutput:
    """Score face crops with the built-in network (SFace, 112 x 112, 128-d), pruned as in the paper.

    The first call fetches the weights (39 MB, announced on standard error) if they are not in the cache folder, and
    prepares the network; later calls only run it.

    Args:
        batch: aligned RGB face crops, uint8 ``[N, 3, 112, 112]`` of 0-255 or floating of [0, 1].

    Returns:
        :class:`ScoreOutput`: distance (lower is better), quality (higher is better), embeddings and embedding norm.

    Raises:
        TypeError, ValueError: naming what was expected and what came.
        OSError: when the weights are neither in the cache nor to be had.
    """
    return _default_scorer()(batch)
