"""What a contender is, and the runtimes that can run an exported pair of networks. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

ONNX_FILE = "pair.onnx"


class Contender(Protocol):
    """Anything that turns uint8 RGB images [N, 3, H, W] into distances [N] and unpruned, normalised embeddings [N, d].

    Attributes:
        weight_bytes: How many bytes of weights it keeps between calls; for a runtime, the size of its model file, which
            is in float32.
        precision: The dtype that it computes in, which need not be the one that it was asked for.
    """

    weight_bytes: int
    precision: str

    def __call__(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score a batch."""


Opener = Callable[[Path, int, str], Contender]
"""Opens a contender from a folder of files, with a number of threads, to compute in a dtype as torch names it."""


class OnnxRuntime:
    """ONNX Runtime on the CPU, all graph optimisations, float32: its CPU kernels multiply no bfloat16."""

    precision = "float32"

    def __init__(self, folder: Path, threads: int, _: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        file = folder / ONNX_FILE
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.weight_bytes = file.stat().st_size

    def __call__(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score a batch."""
        distance, embedding = self._session.run(None, {"batch": batch})
        return distance, embedding


class OpenVino:
    """OpenVINO on the CPU, one stream that uses all threads.

    Asked for bfloat16, it computes in float32 where it has no kernels for it on this CPU, and says so.
    """

    def __init__(self, folder: Path, threads: int, dtype: str) -> None:
        import openvino

        file = folder / ONNX_FILE
        hint = "INFERENCE_PRECISION_HINT"
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            hint: {"float32": "f32", "bfloat16": "bf16"}[dtype],
        }
        self._model = openvino.compile_model(file, "CPU", settings)
        used = self._model.get_property(hint).get_type_name()
        self.precision = {"f32": "float32", "bf16": "bfloat16"}.get(used, used)
        self.weight_bytes = file.stat().st_size

    def __call__(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score a batch."""
        found = self._model(batch)
        # The results are views of the request's own memory, which the next call overwrites.
        return found["distance"].copy(), found["embedding"].copy()


RUNTIMES: dict[str, Opener] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
