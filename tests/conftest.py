"""What several tests share: real weights, real faces, the CPU's instruction sets. Tests that need what is missing are
skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prefiqs_ext import _C, ScoreOutput, ops, reference
from prefiqs_ext.exceptions import MissingWeightsError
from prefiqs_ext.models import import_onnx, weights
from tests.command import Command

FACES_VARIABLE = "PREFIQS_TEST_FACES"
FACES = Path(os.environ.get(FACES_VARIABLE) or Path(__file__).parents[2] / "shared" / "data" / "lfw112")
"""Aligned faces of 112 x 112 pixels, JPEG, one folder per person."""

ISAS = ("avx512", "avx2", "scalar")


def list_face_files(*, least: int = 40) -> list[Path]:
    """Lists all real faces, sorted by person; skips the test where there are fewer than `least`."""
    files = sorted(FACES.glob("*/*.jpg"))
    if len(files) < least:
        pytest.skip(
            f"expected {least} face crops or more in {FACES}, found {len(files)}: name another folder in "
            f"{FACES_VARIABLE}, with one folder of 112 x 112 JPEGs per person"
        )
    return files


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None:
        return
    if ops.cuda_missing is not None:
        pytest.skip(f"no CUDA: {ops.cuda_missing}")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set in turn, in use, or those that a test names itself (`indirect=True`); skips those that this
    CPU does not have."""
    monkeypatch.setenv("PREFIQS_CPU_ISA", request.param)
    try:
        _C.cpu_isa()
    except RuntimeError:
        pytest.skip(f"this CPU has no {request.param}")
    return str(request.param)


def _find_weights(name: str) -> Path:
    """Finds a verified file in the user's cache folder; skips the test without it."""
    try:
        return weights.find_file(name)
    except MissingWeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def sface_file() -> Path:
    return _find_weights("sface")


@pytest.fixture(scope="session")
def facexzoo_file() -> Path:
    return _find_weights("facexzoo")


@pytest.fixture(scope="session")
def dlib_file() -> Path:
    return _find_weights("dlib")


@pytest.fixture(scope="session")
def w600k_mbf_file() -> Path:
    return _find_weights("w600k_mbf")


@pytest.fixture(scope="session")
def sface(sface_file: Path) -> nn.Module:
    return import_onnx(sface_file)


@pytest.fixture(scope="session")
def crops() -> Tensor:
    """Forty aligned faces of many people, evenly spread over the files, uint8 [40, 3, 112, 112] RGB."""
    files = list_face_files()
    return _read(files[:: len(files) // 40][:40])


@pytest.fixture(scope="session")
def sface_reference(sface: nn.Module, crops: Tensor) -> ScoreOutput:
    """What two models in float64 make of the crops."""
    return reference.score(sface, crops, preset="sface")


@pytest.fixture(scope="session")
def faces() -> tuple[Tensor, list[str]]:
    """The first forty aligned faces, sorted by person, uint8 [40, 3, 112, 112] RGB, and whose they are."""
    files = list_face_files()[:40]
    return _read(files), [file.parent.name for file in files]


def _read(files: list[Path]) -> Tensor:
    cv2 = pytest.importorskip("cv2")
    images = [torch.from_numpy(cv2.imread(str(file))[..., ::-1].copy()) for file in files]
    return torch.stack(images).permute(0, 3, 1, 2)
