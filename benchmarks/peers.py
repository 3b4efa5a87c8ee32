"""The contenders: our Scorer, and what people would run in its place: two models and one distance.

Each does the whole work of a score, with the preset's normalisation. It is opened from the files that `prepare` wrote,
so that it can also be opened in a process of its own.
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

from benchmarks.runtimes import ONNX_FILE, RUNTIMES, Contender, Opener
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.utils.text import name_dtype

OURS = "prefiqs_ext"
PEERS = {
    "float32": ("eager", "channels_last", "compile", "onnxruntime", "openvino"),
    "bfloat16": ("channels_last", "compile", "openvino", "ours_float32"),
}
"""What ours is compared with when it computes in a dtype: two models in the same one; and ours in float32."""
_MODEL_FILE = "model.pt"


class TwoModels(nn.Module):
    """Two copies of a network, dense and pruned, in `dtype`.

    Takes uint8 images, gives float32 distances [N] and the first copy's normalised embeddings [N, d].
    """

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

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute D and the embeddings of uint8 images [N, 3, H, W]."""
        x = self.normalize(images).to(self.dtype)
        dense, pruned = F.normalize(self.dense(x).float()), F.normalize(self.pruned(x).float())
        return torch.linalg.vector_norm(dense - pruned, dim=1), dense


class _TorchContender:
    """A torch module as a contender, called under inference mode."""

    def __init__(
        self,
        module: nn.Module,
        run: Callable[[Tensor], tuple[Tensor, Tensor]],
        *,
        layout: torch.memory_format,
        dtype: torch.dtype,
    ) -> None:
        self._run = run
        self._layout = layout
        self.weight_bytes = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
        self.precision = name_dtype(dtype)

    def __call__(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            distance, embedding = self._run(torch.from_numpy(batch).to(memory_format=self._layout))
        return distance.numpy(), embedding.numpy()


def _build_two_models(
    model: nn.Module,
    preset: Preset,
    dtype: torch.dtype,
    *,
    layout: torch.memory_format = torch.channels_last,
    compiled: bool = False,
) -> Contender:
    pair = TwoModels(model, preset, dtype=dtype).to(memory_format=layout)  # type: ignore[call-overload]  # missing in torch's stubs
    # Freezing folds batch norm and packs weights ahead: the fastest that torch.compile offers for inference.
    run = torch.compile(pair, options={"freezing": True}) if compiled else pair
    return _TorchContender(pair, run, layout=layout, dtype=dtype)


def _build_ours(model: nn.Module, preset: Preset, dtype: torch.dtype) -> Contender:
    scorer = Scorer(model, Pruning(), preset=preset, dtype=dtype)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        output = scorer(images)
        return output.distance, output.embedding

    return _TorchContender(scorer, run, layout=torch.contiguous_format, dtype=scorer.dtype)


def _make_opener(build: Callable[[nn.Module, Preset, torch.dtype], Contender]) -> Opener:
    def open_contender(folder: Path, threads: int, dtype: str) -> Contender:
        torch.set_num_threads(threads)
        return build(*_read_network(folder), getattr(torch, dtype))

    return open_contender


CONTENDERS: dict[str, Opener] = {
    OURS: _make_opener(_build_ours),
    "ours_float32": _make_opener(lambda model, preset, _: _build_ours(model, preset, torch.float32)),
    "eager": _make_opener(partial(_build_two_models, layout=torch.contiguous_format)),
    "channels_last": _make_opener(_build_two_models),
    "compile": _make_opener(partial(_build_two_models, compiled=True)),
    **RUNTIMES,
}


def is_installed(name: str) -> bool:
    """Tell whether the package that a contender runs on can be imported here."""
    return name not in RUNTIMES or importlib.util.find_spec(name) is not None


def prepare(folder: Path, model: nn.Module, preset: Preset, batch: np.ndarray, *, export: bool) -> None:
    """Write what contenders are opened from: the network and, with `export`, the pair exported for this batch size."""
    torch.save((model, preset), folder / _MODEL_FILE)
    if export:
        pair = TwoModels(*_read_network(folder)).eval()
        with warnings.catch_warnings():
            # The older exporter needs no package beside torch; it warns that it is the older one.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                pair,
                (torch.from_numpy(batch),),
                folder / ONNX_FILE,
                input_names=["batch"],
                output_names=["distance", "embedding"],
                dynamo=False,
            )


def _read_network(folder: Path) -> tuple[nn.Module, Preset]:
    model, preset = torch.load(folder / _MODEL_FILE, weights_only=False)  # our own file, written a moment ago
    return model, preset
