"""What a contender is, and the runtimes that run an exported pair of networks. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

ONNX_FILE = "pair.onnx"


class Contender(Protocol):
    """uint8 images [N, 3, H, W], RGB -> distances [N].

    weight_bytes: what it keeps of weights between calls; for a runtime, the size of its model file.
    """

    weight_bytes: int

    def __call__(self, batch: np.ndarray) -> np.ndarray: ...


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
        # The result is a view of the request's own memory, which the next call overwrites.
        distance: np.ndarray = self._model(batch)[0].copy()
        return distance


RUNTIMES: dict[str, Callable[[Path, int], Contender]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
