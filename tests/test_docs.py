"""README.md and docs/: their Python runs as it stands there, and their links lead somewhere."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import list_face_files
from networks import calibrate, network_input, pictures
from PIL import Image
from torch import Tensor, nn

from prefiqs_ext import Scorer
from prefiqs_ext.models import PRESETS, iresnet18

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {page: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}


def make_anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have where Markdown is shown as a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in make_anchors(target), link


@pytest.fixture(scope="module")
def names(sface: nn.Module, crops: Tensor) -> dict[str, Any]:
    """What the pages call by these names: a network of one's own, faces, and what was computed of them."""
    out = Scorer("sface")(crops)
    people = [file.parent.name for file in sorted(list_face_files())[::57][: len(crops)]]
    identities = np.unique(people, return_inverse=True)[1]
    identities[1::2] = identities[::2]  # so that every person has two images
    more = torch.cat([crops, crops[:12].flip(3)])  # a calibration takes fifty
    return {
        "network": sface,
        "preset": "sface",
        "crops": crops[:2],
        "calibration_crops": more,
        "my_crops": more,
        "embeddings": out.embedding.numpy(),
        "identities": identities,
        "quality": out.quality.numpy(),
        "distance": out.distance.numpy(),
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crops: Tensor) -> Path:
    """A folder with the files that the pages name."""
    photo = pytest.importorskip("skimage.data", reason="scikit-image has the photo").astronaut()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prefiqs_ext.evaluation.cache.get_cache_folder", lambda: tmp_path / "cache")
    Image.fromarray(photo).save("photo.jpg", quality=95)
    for index, crop in enumerate(crops.permute(0, 2, 3, 1).numpy()):
        for file in (f"crops/{index + 1}.png", f"people/person {index // 4}/{index}.png"):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(crop).save(file)
    torch.manual_seed(0)
    torch.save(iresnet18().state_dict(), "backbone.pth")
    return tmp_path


def make_small_network() -> nn.Module:
    """What every method takes: batch norms at five sizes, and a dropout before the embedding."""
    sizes = (3, 8, 8, 8, 8, 8)
    blocks = [
        nn.Sequential(nn.LeakyReLU(0.1), nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b))
        for a, b in itertools.pairwise(sizes)
    ]
    network = nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(), nn.Linear(8 * 4 * 4, 16))
    return calibrate(network, network_input(pictures(4, 112)))


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore:calibrate. .* make a rough score")
@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=lambda page: page.name)
def test_python(page: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(names)
    if page.name == "methods.md":  # some two thousand passes; test_methods_*.py run the methods on SFace
        small = make_small_network(), PRESETS["sface"]
        monkeypatch.setattr("prefiqs_ext.models.load", lambda name: small)
    for block in BLOCKS[page]:
        if "cuda" in block and not torch.cuda.is_available():
            continue
        exec(compile(block, page.name, "exec"), known)


def test_this_module_finds_pages_and_examples() -> None:
    assert sum(map(len, BLOCKS.values())) > 15
    assert "where-to-go" in make_anchors(ROOT / "README.md")
