"""The demo: what its degradations do, the order that the qualities give, the picture and the command."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from prefiqs_ext.cli import main
from prefiqs_ext.demo import DemoFace, degradations
from prefiqs_ext.exceptions import MissingWeightsError
from prefiqs_ext.models import weights

pytest.importorskip("skimage")

KINDS = ("blur", "noise", "down-sampling", "occlusion", "darkness", "JPEG")


@pytest.fixture(scope="module")
def faces(sface_file: Path) -> list[DemoFace]:
    from prefiqs_ext import demo

    try:
        weights.find_file("yunet")
    except MissingWeightsError as error:
        pytest.skip(str(error))
    return demo.rank_faces(demo.find_astronaut())


def test_the_untouched_face_is_among_the_best(faces: list[DemoFace]) -> None:
    assert [face.score for face in faces] == sorted((face.score for face in faces), reverse=True)
    assert "untouched" in [face.kind for face in faces[:3]]


@pytest.mark.parametrize("kind", ["blur", "noise", "down-sampling"])
def test_strong_is_below_mild_is_below_untouched(kind: str, faces: list[DemoFace]) -> None:
    for number in ("score", "quality"):
        of = {(face.kind, face.dose): getattr(face, number) for face in faces}
        assert of[kind, "strong"] < of[kind, "mild"] < of["untouched", ""]


def test_numbers_belong_together(faces: list[DemoFace]) -> None:
    for face in faces:
        assert face.quality == pytest.approx(1 - face.distance / 2, abs=1e-6)
        assert face.score == face.embedding_norm > 0  # what ranks with SFace
        assert -1 <= face.similarity <= 1 + 1e-6
    (untouched,) = (face for face in faces if face.kind == "untouched")
    assert untouched.similarity == pytest.approx(1, abs=1e-6)


def test_every_degradation_twice(faces: list[DemoFace]) -> None:
    ways = [(way.kind, way.dose) for way in degradations.DEGRADATIONS]
    assert ways == [(kind, dose) for kind in KINDS for dose in ("mild", "strong")]
    assert {(face.kind, face.dose) for face in faces} == {("untouched", ""), *ways}
    assert len({face.label for face in faces}) == len(faces)


def test_degradations_repeat_and_leave_their_input_alone() -> None:
    image = np.random.default_rng(5).integers(0, 256, (113, 90, 3), dtype=np.uint8)
    image.setflags(write=False)
    for way in degradations.DEGRADATIONS:
        worse = way.apply(image)
        assert (worse.shape, worse.dtype) == (image.shape, np.uint8)
        assert np.array_equal(worse, way.apply(image))
        assert not np.array_equal(worse, image)


@pytest.mark.parametrize("sigma", [2, 4])
def test_blur_is_a_gaussian(sigma: int) -> None:
    from scipy import ndimage

    point = np.zeros((61, 61, 3), np.uint8)
    point[28:33, 28:33] = 255
    (way,) = (way for way in degradations.DEGRADATIONS if way.label == f"blur, sigma {sigma} px")
    expected = ndimage.gaussian_filter(point.astype(float), (sigma, sigma, 0), truncate=3)
    # OpenCV's filter for levels ends at 3 sigma too. Its coefficients are rounded to 1/256 and its result to a level,
    # together 1.1 levels here; a sigma wrong by 5 % would be 4 levels and more.
    assert np.abs(way.apply(point) - expected).max() < 1.5


@pytest.mark.parametrize("sigma", [30, 60])
def test_noise_has_its_sigma(sigma: int) -> None:
    grey = np.full((112, 112, 3), 127, np.uint8)
    (way,) = (way for way in degradations.DEGRADATIONS if way.label == f"noise, sigma {sigma}")
    # Levels end at 0 and 255, 2.1 sigma away where sigma is 60: the deviation shrinks by up to 4 %.
    assert way.apply(grey).std() == pytest.approx(sigma, rel=0.05)


def test_command_prints_the_table_and_draws_the_sheet(faces: list[DemoFace], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    result = CliRunner().invoke(main, ["demo", "--output", str(folder)])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line[:22].rstrip() for line in lines] == ["face", *(face.label for face in faces)]
    assert [line.split()[-4] for line in lines[1:]] == [f"{face.quality:.3f}" for face in faces]
    assert [file.name for file in folder.iterdir()] == ["demo.png"]
    sheet = Image.open(folder / "demo.png").convert("RGB")
    # The first face of the sheet is the best one, enlarged.
    best = Image.fromarray(faces[0].image).resize((168, 168), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(sheet)[60 : 60 + 168, 20 : 20 + 168], np.asarray(best))
    # The margins are empty: no face and no label runs out of its place.
    pixels = np.asarray(sheet)
    assert (pixels[:, :20] == 255).all()
    assert (pixels[:, -20:] == 255).all()
    for gap in range(188, sheet.width - 20, 188):
        assert (pixels[60:, gap : gap + 20] == 255).all()


def test_command_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for folder, reason in ((tmp_path / "file" / "sub", "Not a directory"), (Path("/proc/no"), "No such file")):
        result = CliRunner().invoke(main, ["demo", "--output", str(folder)])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: ")
        assert reason in result.stderr
    monkeypatch.setitem(sys.modules, "skimage", None)
    for name in list(sys.modules):
        if name == "prefiqs_ext.demo":
            monkeypatch.delitem(sys.modules, name)
    result = CliRunner().invoke(main, ["demo", "--output", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr == "Error: skimage is missing: pip install 'prefiqs_ext[demo]'\n"
