"""A Scorer of any network can be pickled: for spawned processes, torch.save and the workers of a DataLoader."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import calibrated, network_input, pictures
from torch import nn

from prefiqs_ext import Scorer, dualize
from prefiqs_ext.models import import_onnx

# Reads pickled pairs (scorer, images) and writes what the scorers give; a fresh process, as spawn starts one.
_PROGRAM = """
import pickle, sys
scored = [tuple(scorer(images)) for scorer, images in pickle.load(sys.stdin.buffer)]
pickle.dump(scored, sys.stdout.buffer)
"""


@pytest.fixture
def exported(tmp_path: Path) -> nn.Module:
    path = tmp_path / "exported.onnx"
    example = network_input(pictures(1, 32))
    with pytest.warns(DeprecationWarning, match="legacy TorchScript-based ONNX export"):
        torch.onnx.export(calibrated("groups"), (example,), path, dynamo=False)
    return import_onnx(path)


def test_a_spawned_process_gets_the_same_bits(exported: nn.Module, request: pytest.FixtureRequest) -> None:
    pairs = [(Scorer(exported, example=network_input(pictures(1, 32))), network_input(pictures(2, 32, seed=3)))]
    for name in ("sface", "facexzoo", "dlib", "w600k_mbf"):
        try:
            request.getfixturevalue(f"{name}_file")
        except pytest.skip.Exception:
            continue  # its weights are not in the cache folder; tests that need them say so
        scorer = Scorer(name)
        assert scorer.preset is not None
        pairs.append((scorer, pictures(2, scorer.preset.size, seed=3)))
    data = pickle.dumps(pairs)
    done = subprocess.run([sys.executable, "-c", _PROGRAM], input=data, capture_output=True, check=True)
    for (scorer, images), scored in zip(pairs, pickle.loads(done.stdout), strict=True):
        assert all(map(torch.equal, scored, scorer(images)))


def test_a_pickle_is_as_large_as_the_tensors(sface_file: Path) -> None:
    scorer = Scorer()
    scorer(pictures(16))  # which fills the kept buffers
    file = io.BytesIO()
    torch.save(scorer, file)
    # The graph is cut in two on shared modules: weights must not be written twice.
    assert file.tell() < 1.02 * scorer.resident_bytes
    file.seek(0)
    again = torch.load(file, weights_only=False)
    images = pictures(3, seed=5)
    for other in (again, copy.deepcopy(scorer), pickle.loads(pickle.dumps(again))):
        assert all(map(torch.equal, other(images), scorer(images)))


def test_a_dual_graph_can_be_pickled(exported: nn.Module) -> None:
    images = network_input(pictures(2, 32))
    graph = dualize(exported, example=images)
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(graph))(images), graph(images))
