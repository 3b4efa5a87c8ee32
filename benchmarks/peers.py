"""The contenders: our Scorer, and what people would run in its place, two models and one distance.

Each does the whole work of a score, preset included, and is opened from the files that `prepare` wrote, so that it can
also be opened in a process of its own.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.runtimes import ONNX_FILE, RUNTIMES, Contender
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer

OURS = "prefiqs_ext"
REDUCED_PRECISION = ("bfloat16",)
_MODEL_FILE = "model.pt"


class TwoModels(nn.Module):
    """uint8 images -> distances, by two copies of a network, both in `dtype`; distances always in float32."""

    def __init__(self, model: nn.Module, preset: Preset, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.normalize = preset.normalize()
        self.dense = model
        self.pruned = copy.deepcopy(model)
        with torch.no_grad():
            for name, mask in Pruning().make_masks(model).items():
                self.pruned.get_parameter(f"{name}.weight").mul_(mask)
        self.dense.to(dtype)
        self.pruned.to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        x = self.normalize(images).to(self.dtype)
        dense, pruned = F.normalize(self.dense(x).float()), F.normalize(self.pruned(x).float())
        distance: Tensor = torch.linalg.vector_norm(dense - pruned, dim=1)
        return distance


class _Torch:
    """A module that takes images, called under inference mode."""

    def __init__(self, module: nn.Module, run: Callable[[Tensor], Tensor], *, layout: torch.memory_format) -> None:
        self._run = run
        self._layout = layout
        self.weight_bytes = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self._run(torch.from_numpy(batch).to(memory_format=self._layout)).numpy()


def _two_models(
    model: nn.Module,
    preset: Preset,
    *,
    layout: torch.memory_format = torch.channels_last,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Contender:
    pair = TwoModels(model, preset, dtype=dtype).to(memory_format=layout)  # type: ignore[call-overload]  # missing in torch's stubs
    # Freezing folds batch norm and packs weights ahead: the fastest that torch.compile offers for inference.
    run = torch.compile(pair, options={"freezing": True}) if compiled else pair
    return _Torch(pair, run, layout=layout)


def _ours(model: nn.Module, preset: Preset) -> Contender:
    scorer = Scorer(model, Pruning(), preset=preset)
    return _Torch(scorer, lambda images: scorer(images).distance, layout=torch.contiguous_format)


def _opener(build: Callable[[nn.Module, Preset], Contender]) -> Callable[[Path, int], Contender]:
    def opened(folder: Path, threads: int) -> Contender:
        torch.set_num_threads(threads)
        return build(*_read(folder))

    return opened


CONTENDERS: dict[str, Callable[[Path, int], Contender]] = {
    OURS: _opener(_ours),
    "eager": _opener(partial(_two_models, layout=torch.contiguous_format)),
    "channels_last": _opener(_two_models),
    "compile": _opener(partial(_two_models, compiled=True)),
    "bfloat16": _opener(partial(_two_models, dtype=torch.bfloat16)),
    **RUNTIMES,
}


def installed(name: str) -> bool:
    """Whether the package that a contender runs on can be imported here."""
    return name not in RUNTIMES or importlib.util.find_spec(name) is not None


def prepare(folder: Path, model: nn.Module, preset: Preset, batch: np.ndarray, *, export: bool) -> None:
    """Writes what contenders are opened from: the network, and with `export` the exported pair for this batch size."""
    torch.save((model, preset), folder / _MODEL_FILE)
    if export:
        pair = TwoModels(*_read(folder)).eval()
        with warnings.catch_warnings():
            # The older exporter needs no package beside torch; it warns that it is the older one.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                pair,
                (torch.from_numpy(batch),),
                folder / ONNX_FILE,
                input_names=["batch"],
                output_names=["distance"],
                dynamo=False,
            )


def _read(folder: Path) -> tuple[nn.Module, Preset]:
    model, preset = torch.load(folder / _MODEL_FILE, weights_only=False)  # our own file, written a moment ago
    return model, preset
