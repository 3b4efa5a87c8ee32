"""A scorer as one ONNX file, for runtimes that know nothing of this package."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from prefiqs_ext.dual.branches import SeparateBranches
from prefiqs_ext.exceptions import InputError, InputTypeError, UnsupportedNetworkError
from prefiqs_ext.inputs import make_example_images, scale_to_levels
from prefiqs_ext.ranking import NAMES, compute_score
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.text import describe_error, name_dtype
from prefiqs_ext.utils.torch_defaults import torch_defaults
from prefiqs_ext.version import __version__

if TYPE_CHECKING:
    from prefiqs_ext.models.preset import Preset

OUTPUTS = ("score", "distance", "quality", "embedding", "embedding_norm")
"""The names of the graph's outputs, in order."""
_OPSET = 17
_INPUT = "images"
_LARGEST = 2_000_000_000  # bytes of tensors; a protobuf message has less than 2^31 in all
_LEAST_NORM = 1e-30
_REFUSED = "cannot export this network to ONNX"
_TOLERANCE = 1e-4  # of the self-check, absolute and relative; rounding is below 1e-5


class OnnxSize(NamedTuple):
    """How large an exported pair is.

    Attributes:
        file: Bytes of the file: each weight once, and a byte for each weight that pruning touches.
        weights: Bytes of weights in a runtime that applies the masks when it loads the file, as most do.
    """

    file: int
    weights: int


def export_onnx(scorer: Scorer, path: str | os.PathLike[str], *, input_dtype: torch.dtype = torch.uint8) -> OnnxSize:
    """Write a scorer as one ordinary ONNX graph, for ONNX Runtime, OpenVINO and others.

    >>> prefiqs_ext.export_onnx(prefiqs_ext.Scorer("sface"), "pair.onnx").file < 50e6
    True

    The graph holds both networks and the distance of their normalised embeddings, in standard operators of opset 17.
    Its input `images` is [N, 3, H, W] RGB of the preset's size, for any N of 1 or more. Its outputs are `score`,
    `distance`, `quality` and `embedding_norm` [N] and `embedding` [N, d], float32, as :class:`ScoreOutput` describes
    them. Where an embedding has no direction (its norm is 0 or not finite), score, distance and quality are NaN. The
    graph checks nothing else.

    Args:
        scorer: In float32 on the CPU, with a preset.
        path: The file to write. If this fails, no file appears, and an older one stays as it is.
        input_dtype: Of the images: torch.uint8 for levels of 0-255, torch.float32 for levels of 0 to 1.

    Returns:
        :class:`OnnxSize`.

    Raises:
        InputTypeError, InputError: An argument that is not what was expected.
        UnsupportedNetworkError: ONNX has no operator for a part of the network, which is named; or the file would be
            larger than 2 GB.
        FileAccessError: The file cannot be written.
    """
    preset = _check(scorer, input_dtype)
    example = make_example_images(preset)
    example = torch.cat([example, example.flip(0)])  # a batch of one would pass for a constant
    if input_dtype == torch.float32:
        example = example / 255
    with atomic_write(os.fspath(path)) as file, torch_defaults(), torch.no_grad():
        pair = _Pair(scorer, preset).eval()
        tensors = [*pair.parameters(), *pair.buffers()]
        needed = sum(tensor.nbytes for tensor in tensors)
        if needed > _LARGEST:
            raise UnsupportedNetworkError(
                f"{_REFUSED}: a file holds {_LARGEST:,} bytes of weights and masks at most, these have {needed:,}"
            )
        model = _export(pair, example)
        model.producer_name, model.producer_version = "prefiqs_ext", __version__
        model.doc_string = (
            f"Face image quality by two networks, a dense and a pruned one. {_INPUT}: RGB, {preset.size[0]} x "
            f"{preset.size[1]} pixels, levels of {'0 to 255' if input_dtype == torch.uint8 else '0 to 1'}, faces "
            f"aligned as in {preset.alignment} crops. score, HIGHER is better: the {NAMES[scorer.rank_by]}."
        )
        onnx.checker.check_model(model, full_check=True)
        _verify(model, scorer, example[:1])
        content = model.SerializeToString()
        file.write(content)
    masked = sum(tensor.numel() for tensor in tensors if tensor.dtype == torch.bool)
    floats = sum(tensor.nbytes for tensor in tensors if tensor.dtype != torch.bool)
    return OnnxSize(len(content), floats + 4 * masked)


class _Pair(nn.Module):
    """What the exported graph computes."""

    def __init__(self, scorer: Scorer, preset: Preset) -> None:
        super().__init__()
        self.branches = SeparateBranches(scorer._dual)
        self.preset, self.rank_by = preset, scorer.rank_by
        self.calibration = None
        if scorer.rank_by == "calibrated" and scorer.settings.calibration is not None:
            # TensorRT has no float64.
            self.calibration = partial(scorer.settings.calibration, dtype=torch.float32)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Give `OUTPUTS` for images [N, 3, H, W], uint8 or floating."""
        raw, raw_pruned, layer_norms = self.branches(scale_to_levels(images, self.preset))
        norm, pruned_norm = (torch.linalg.vector_norm(rows, dim=1) for rows in (raw, raw_pruned))
        embedding, pruned = (
            rows / length.clamp_min(_LEAST_NORM)[:, None] for rows, length in ((raw, norm), (raw_pruned, pruned_norm))
        )
        distance = torch.linalg.vector_norm(embedding - pruned, dim=1)
        score = compute_score(self.rank_by, distance, norm, layer_norms, self.calibration)
        # Comparisons with NaN are false.
        known = (norm > 0) & (norm < torch.inf) & (distance >= 0)
        numbers = (torch.where(known, number, torch.nan) for number in (score, distance, 1 - distance / 2))
        return (*numbers, embedding, norm)


def _export(pair: _Pair, example: Tensor) -> onnx.ModelProto:
    """Trace the pair by torch's exporter."""
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), _silent_log():
            # That this exporter is the older one (the newer one needs onnxscript), and that sizes become constants.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                pair,
                (example,),
                buffer,  # type: ignore[arg-type]  # which this exporter takes
                dynamo=False,
                opset_version=_OPSET,
                input_names=[_INPUT],
                output_names=list(OUTPUTS),
                dynamic_axes={name: {0: "N"} for name in (_INPUT, *OUTPUTS)},
                do_constant_folding=False,  # would store the masked weights beside the dense ones
            )
    except torch.onnx.errors.OnnxExporterError as error:
        why = describe_error(error).partition(". Please feel free")[0]
        raise UnsupportedNetworkError(f"{_REFUSED}: {why}") from error
    return onnx.load_from_string(buffer.getvalue())


@contextmanager
def _silent_log() -> Iterator[None]:
    """Keep torch's exporter from printing a whole graph where it fails, which it does although nobody asked for it."""
    log = getattr(torch._C, "_jit_onnx_log", None)
    if log is None:
        yield
        return
    torch._C._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log


def _verify(model: onnx.ModelProto, scorer: Scorer, image: Tensor) -> None:
    """Run the graph by onnx's own reference on one image, and compare it with the scorer."""
    expected = scorer(image)
    try:
        found = ReferenceEvaluator(model).run(None, {_INPUT: image.numpy()})
    except MemoryError:
        raise
    except Exception as error:
        raise UnsupportedNetworkError(
            f"{_REFUSED}: the graph does not run on one image ({describe_error(error)})"
        ) from error
    for name, value in zip(OUTPUTS, found, strict=True):
        if not np.allclose(value, getattr(expected, name), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
            raise UnsupportedNetworkError(f"{_REFUSED}: the graph gives another {name} than the scorer")


def _check(scorer: Scorer, input_dtype: torch.dtype) -> Preset:
    """Check the arguments; return the scorer's preset."""
    if not isinstance(scorer, Scorer):
        remedy = f": Scorer({scorer!r})" if isinstance(scorer, str) else ""
        raise InputTypeError(f"expected a Scorer to export, got {type(scorer).__name__}{remedy}")
    if input_dtype not in (torch.uint8, torch.float32):
        raise InputError(f"expected input_dtype torch.uint8 or torch.float32, got {input_dtype!r}")
    if (scorer.device.type, scorer.dtype) != ("cpu", torch.float32):
        raise InputError(
            f"expected a scorer in float32 on the CPU to export, got {name_dtype(scorer.dtype)} on {scorer.device}"
        )
    if scorer.preset is None:
        raise InputError("expected a scorer with a preset, which says how large an image is; got none")
    return scorer.preset
