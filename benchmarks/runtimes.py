"""What a contender is, and the runtimes that can run an exported pair of networks. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

ONNX_FILE = "pair.onnx"


class Contender(Protocol):
    """Anything that turns uint8 RGB images [N, 3, H, W] into distances [N].

    Attributes:
        weight_bytes: How many bytes of weights it keeps between calls; for a runtime, the size of its model file.
    """

    weight_bytes: int

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Score a batch."""


class OnnxRuntime:
    """ONNX Runtime on the CPU, all graph optimisations, float32."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        file = folder / ONNX_FILE
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.weight_bytes = file.stat().st_size

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Score a batch."""
        distance: np.ndarray = self._session.run(None, {"batch": batch})[0]
        return distance


class OpenVino:
    """OpenVINO on the CPU, one stream that uses all threads, float32."""

    def __init__(self, folder: Path, threads: int) -> None:
        import openvino

        file = folder / ONNX_FILE
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._model = openvino.compile_model(file, "CPU", settings)
        self.weight_bytes = file.stat().st_size

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Score a batch."""
        # The result is a view of the request's own memory, which the next call overwrites.
        distance: np.ndarray = self._model(batch)[0].copy()
        return distance


RUNTIMES: dict[str, Callable[[Path, int], Contender]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
