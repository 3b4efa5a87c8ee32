"""What a new installation must do, in seconds and without pytest: `python tests/smoke.py photo.jpg`.

The native pass is compared with torch in float64, and the command scores a photo of one face.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from torch import nn

import prefiqs_ext
from prefiqs_ext import _C, ops


def check_libraries() -> None:
    """Loads the CUDA kernels wherever torch has the CUDA that they were built with, GPU or not."""
    same = bool(_C.built_with_nvcc) and (torch.version.cuda or "").split(".")[0] == _C.built_with_nvcc.split(".")[0]
    assert same == (ops.cuda_missing is None), ops.cuda_missing


def check_operators() -> None:
    """Compares the shared pass of a small network, of every kind of layer, with two networks in float64."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 24, 3, padding=1), nn.PReLU(24), nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24)),
        *(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 40, 1), nn.Conv2d(40, 40, 3, padding=1), nn.Flatten()),
        nn.Linear(40 * 14 * 14, 64),
    ).eval()
    images = torch.rand(5, 3, 28, 28) * 2 - 1
    out = prefiqs_ext.Scorer(network, example=images[:1])(images)
    expected = prefiqs_ext.reference.score(network.double(), images.double())
    assert torch.allclose(out.embedding.double(), expected.embedding, atol=1e-5), "other embeddings than torch's"
    assert torch.allclose(out.distance.double(), expected.distance, atol=1e-5), "other distances than torch's"


def check_command(photo: Path) -> None:
    """Scores a photo by the installed command."""
    command = Path(sysconfig.get_path("scripts")) / "prefiqs"
    done = subprocess.run([command, "score", photo], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(done.stdout.splitlines())
    assert row["status"] == "ok", row
    assert 0 < float(row["quality"]) < 1, row


def main() -> None:
    cuda = ops.cuda_missing or "loaded"
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {_C.cpu_isa()}, CUDA kernels: {cuda}")
    check_libraries()
    check_operators()
    check_command(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
