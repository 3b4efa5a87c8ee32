"""InsightFace's MobileFaceNet, batch norms already folded by its publisher, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from prefiqs_ext import Scorer, models, reference


def test_embeddings_are_those_of_onnx_runtime(w600k_mbf_file: Path, crops: Tensor) -> None:
    session = onnxruntime.InferenceSession(w600k_mbf_file, providers=["CPUExecutionProvider"])
    x = (crops.numpy().astype(np.float32) - 127.5) / 127.5
    expected = np.concatenate([session.run(None, {session.get_inputs()[0].name: row[None]})[0] for row in x])
    with torch.no_grad():
        imported = models.import_onnx(w600k_mbf_file)(torch.from_numpy(x)).numpy()
    # Values reach 5; both sum in float32, in another order, and so does the Scorer.
    assert np.abs(imported - expected).max() < 1e-4
    out = Scorer("w600k_mbf")(crops)
    norms = np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(out.embedding.numpy() - expected / norms).max() < 1e-5
    np.testing.assert_allclose(out.embedding_norm.numpy(), norms[:, 0], rtol=1e-5)


def test_scores_are_those_of_two_models(w600k_mbf_file: Path, crops: Tensor) -> None:
    network, preset = models.load("w600k_mbf")
    expected = reference.score(network, crops[:8], preset=preset)  # in float64
    assert float((Scorer("w600k_mbf")(crops[:8]).distance - expected.distance).abs().max()) < 1e-5
