"""What several tests share: the real weights and real faces, where they are to be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prefiqs_ext import ops
from prefiqs_ext.exceptions import MissingWeightsError
from prefiqs_ext.models import import_onnx, weights

CROPS = Path(__file__).parents[2] / "shared" / "data" / "lfw112"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None:
        return
    if ops.cuda_missing is not None:
        pytest.skip(f"no CUDA: {ops.cuda_missing}")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def _weights(name: str) -> Path:
    """A verified file in the user's cache folder."""
    try:
        return weights.path(name)
    except MissingWeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def sface_file() -> Path:
    return _weights("sface")


@pytest.fixture(scope="session")
def facexzoo_file() -> Path:
    return _weights("facexzoo")


@pytest.fixture(scope="session")
def dlib_file() -> Path:
    return _weights("dlib")


@pytest.fixture(scope="session")
def w600k_mbf_file() -> Path:
    return _weights("w600k_mbf")


@pytest.fixture(scope="session")
def sface(sface_file: Path) -> nn.Module:
    return import_onnx(sface_file)


@pytest.fixture(scope="session")
def crops() -> Tensor:
    """Forty aligned faces of twenty people or more, uint8 [40, 3, 112, 112] RGB."""
    return _read(sorted(CROPS.glob("*/*.jpg"))[::57][:40])


@pytest.fixture(scope="session")
def faces() -> tuple[Tensor, list[str]]:
    """Forty aligned faces in order of their people, uint8 [40, 3, 112, 112] RGB, and whose they are."""
    files = sorted(CROPS.glob("*/*.jpg"))[:40]
    return _read(files), [file.parent.name for file in files]


def _read(files: list[Path]) -> Tensor:
    cv2 = pytest.importorskip("cv2")
    if not files:
        pytest.skip(f"no face crops in {CROPS}")
    images = [torch.from_numpy(cv2.imread(str(file))[..., ::-1].copy()) for file in files]
    return torch.stack(images).permute(0, 3, 1, 2)
