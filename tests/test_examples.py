"""The programs in examples/ run, on real faces."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import list_face_files
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve people with two faces or more, one folder per person."""
    folder = tmp_path_factory.mktemp("people")
    by_person: dict[str, list[Path]] = {}
    for file in list_face_files():
        by_person.setdefault(file.parent.name, []).append(file)
    chosen = [files[:3] for files in by_person.values() if len(files) > 1][:12]
    for file in (file for files in chosen for file in files):
        (folder / file.parent.name).mkdir(exist_ok=True)
        shutil.copy(file, folder / file.parent.name)
    return folder


def test_own_network(people: Path) -> None:
    crops = sorted(people.glob("*/*"))[:3]
    lines = run("own_network.py", *crops).splitlines()
    assert [line.split(":")[0] for line in lines] == [str(crop) for crop in crops]


@pytest.mark.usefixtures("sface_file")
def test_compare_methods(people: Path) -> None:
    lines = run("compare_methods.py", people).splitlines()
    assert [line.split(":")[0] for line in lines if ": FNMR" in line] == ["prefiqs", "norm", "random"]


@pytest.mark.usefixtures("sface_file")
def test_best_photos(tmp_path: Path) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image has the photo")
    (tmp_path / "photos" / "ann").mkdir(parents=True)
    photo = data.astronaut()
    dark = (photo * 0.15).astype(np.uint8)
    for name, pixels in (("dark", dark), ("good", photo), ("nobody", np.zeros_like(photo))):
        Image.fromarray(pixels).save(tmp_path / "photos" / "ann" / f"{name}.png")
    out = run("best_photos.py", tmp_path / "photos", tmp_path / "best")
    assert out.startswith(f"ann: {tmp_path}/photos/ann/good.png (score ")
    assert (tmp_path / "best" / "ann.png").read_bytes() == (tmp_path / "photos" / "ann" / "good.png").read_bytes()


@pytest.mark.usefixtures("sface_file")
def test_score_dataset(people: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    crops = sorted(people.glob("*/*"))[:5]
    table = {"image": [crop.read_bytes() for crop in crops], "person": [crop.parent.name for crop in crops]}
    pq.write_table(pa.table(table), tmp_path / "faces.parquet")
    run("score_dataset.py", tmp_path / "faces.parquet", tmp_path / "scored")
    scored = pq.read_table(tmp_path / "scored")
    assert sorted(scored["person"].to_pylist()) == sorted(table["person"])
    assert set(scored["status"].to_pylist()) == {"ok"}
