"""The report: what it keeps of many rows, the page in a parser and in a browser, hostile names, the command."""

from __future__ import annotations

import base64
import io
import os
import random
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from onnx import helper
from PIL import Image
from torch import Tensor

from prefiqs_ext import Pruning, Scorer
from prefiqs_ext.cli import main
from prefiqs_ext.exceptions import InputError, MissingWeightsError
from prefiqs_ext.files.records import Record
from prefiqs_ext.models import PRESETS, weights
from prefiqs_ext.report import Selection, render
from prefiqs_ext.report.histogram import HEIGHT, WIDTH, build_histogram
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.text import format_path
from tests import chromium
from tests.onnx_files import floats, make_model

HOSTILE = [
    "<script>document.title='owned'</script>.jpg",
    '"><img src=x onerror=alert(1)>.jpg',
    "{{ 7 * 7 }}{% raw %}.jpg",
    "&lt;b&gt; & 'quotes' \".jpg",
    "line\nbreak\ttab\x1b[31m.jpg",
    "\u202egpj.exe.jpg",
    "</bdi></main><style>body{display:none}</style>.jpg",
    os.fsdecode(b"latin1-\xe9.jpg"),
    "名前.jpg",
    "javascript:alert(1).jpg",
]


class Parsed(HTMLParser):
    """Tags with attributes, and the text of each file name."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.names: list[str] = []
        self.text = ""
        self._in_name = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_name = tag == "bdi" and dict(attrs).get("class") == "name"
        if self._in_name:
            self.names.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_name = self._in_name and tag != "bdi"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_name:
            self.names[-1] += data

    def pictures(self) -> list[Image.Image]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


def _scored(qualities: list[float]) -> list[Record]:
    return [Record(f"/nowhere/{i}.jpg", 0, "ok", q, q, 2 - 2 * q, 10.0) for i, q in enumerate(qualities)]


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 11, 12, 13, 500])
def test_selection_keeps_what_sorting_all_would(count: int) -> None:
    rng = random.Random(count)
    rows = _scored([rng.randrange(50) / 50 for _ in range(count)])  # with many ties
    shown_rows = Selection(most=6).add(rows).pick()
    ranked = sorted(rows, key=lambda row: -(row.quality or 0))  # stable: the earlier first
    if count <= 12:
        assert shown_rows.best == ranked
        assert (shown_rows.middle, shown_rows.worst) == (0, [])
    else:
        assert shown_rows.best == ranked[:6]
        assert shown_rows.middle == count - 12
        # Of equal ones at the border the earlier are kept, as among the best.
        by_badness = sorted(rows, key=lambda row: row.quality or 0)[:6]
        assert set(shown_rows.worst) == set(by_badness)
        assert [row.quality for row in shown_rows.worst] == [row.quality for row in ranked[-6:]]


def test_selection_is_bounded_and_counts_all() -> None:
    def rows() -> list[Record]:
        return [Record(f"{i}.jpg", None, "no_face", reason="no face found") for i in range(1000)]

    selection = Selection(most=10).add(_scored([i / 4999 for i in range(5000)])).add(rows())
    chosen = selection.pick()
    assert (len(chosen.best), chosen.middle, len(chosen.worst), len(chosen.others)) == (10, 4980, 10, 10)
    assert selection.counts == {"ok": 5000, "no_face": 1000}
    assert selection.scores.counts.total() == 5000


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_quantile_is_numpys_to_a_bin(share: float) -> None:
    qualities = np.random.default_rng(3).beta(20, 9, size=1001)
    selection = Selection().add(_scored(qualities.tolist()))
    assert selection.scores.quantile(share) == pytest.approx(np.quantile(qualities, share), abs=2e-3)


@pytest.mark.parametrize("qualities", [[0.5], [0.0, 1.0], [0.7, 0.7001], np.linspace(0.4, 0.8, 997).tolist(), [1.0]])
def test_histogram_counts_every_face_inside_its_drawing(qualities: list[float]) -> None:
    drawn = build_histogram(Selection().add(_scored(qualities)).scores)
    assert sum(int(bar.hint.rpartition(": ")[2].replace(",", "")) for bar in drawn.bars) == len(qualities)
    assert max(bar.height for bar in drawn.bars) == HEIGHT
    assert len(drawn.bars) <= 40
    assert drawn.bars[-1].x + drawn.bars[-1].width == pytest.approx(WIDTH, abs=0.1)
    for bar in drawn.bars:
        low, high = map(float, re.findall(r"[\d.]+", bar.hint)[:2])
        # A quality on a border of bars may fall to either side, in floating point.
        inside = sum(low - 1e-9 <= q < high + 1e-9 or q == high == 1 for q in qualities)
        assert inside >= round(bar.height / HEIGHT * drawn.highest)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    folder = tmp_path / "a <b>folder"
    for name in HOSTILE:
        file = folder / name  # the slash of a closing tag makes a sub-folder
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (300, 200), "teal").save(file, "jpeg")
        except OSError:
            pytest.skip("this file system does not take such names")
    return folder


def _page(folder: Path) -> str:
    paths = sorted(os.path.join(folder, name) for name in HOSTILE)
    rows = [
        Record(path, 0, "ok", 0.9 - i / 50, 0.9 - i / 50, 0.2 + i / 25, 12.0, 90.0, 50.0, 60.0, 80.0, 0.9)
        if i % 2
        else Record(path, None, "not_assessable", reason="<b>because</b>")
        for i, path in enumerate(paths)
    ]
    return render(Selection().add(rows), str(folder), {"Network": "<i>none</i>"}, "quality")


def test_names_are_only_text(hostile: Path) -> None:
    page = _page(hostile)
    parsed = Parsed(page)
    harmless = Parsed(render(Selection().add(_scored([0.5])), "/nowhere", {}, "quality"))
    assert {tag for tag, _ in parsed.tags} <= {tag for tag, _ in harmless.tags} | {"img"}
    assert sorted(parsed.names) == sorted(map(format_path, HOSTILE))
    for tag, attributes in parsed.tags:
        assert tag != "script"
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "a <b>folder" in parsed.text
    assert "<b>because</b>" in parsed.text
    page.encode("utf-8")


def test_thumbnails_are_small_and_of_the_face(tmp_path: Path) -> None:
    photo = np.zeros((400, 600, 3), np.uint8)
    photo[100:200, 400:480] = (0, 255, 0)
    file = tmp_path / "photo.png"
    Image.fromarray(photo).save(file)
    box = (400.0, 100.0, 80.0, 100.0)
    rows = [
        Record(str(file), 0, "ok", 0.8, 0.8, 0.4, 9.0, *box, 0.9),
        Record(str(file), 1, "ok", 0.7, 0.7, 0.6, 9.0, 5000.0, 5000.0, 10.0, 10.0, 0.9),  # outside: the whole photo
        Record(str(tmp_path / "gone.png"), 0, "ok", 0.6, 0.6, 0.8, 9.0, *box, 0.9),
    ]
    parsed = Parsed(render(Selection().add(rows), str(tmp_path), {}, "quality"))
    face, whole = parsed.pictures()
    assert max(face.size) <= 112
    assert max(whole.size) <= 112
    green = (np.asarray(face.convert("RGB"))[..., 1] > 128).mean()
    assert green == pytest.approx(80 * 100 / 160**2, abs=0.03)
    assert "no picture" in parsed.text


def test_page_in_chromium(hostile: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(_page(hostile), encoding="utf-8")
    count = len(HOSTILE)
    visible = "[...document.querySelectorAll('{}')].filter(e => e.checkVisibility()).length"
    with chromium.opened(file, tmp_path / "profile") as page:
        assert page.evaluate("document.title") == f"Face quality: {hostile}"
        assert page.evaluate("[...document.images].filter(i => i.complete && i.naturalWidth > 0).length") == count
        assert page.evaluate(visible.format(".card")) == count
        page.evaluate("document.querySelector('#show-ok').click()")
        assert page.evaluate(visible.format(".card")) == page.evaluate(visible.format(".card.not_assessable")) == 5
        page.evaluate("document.querySelector('#show-not_assessable').click()")
        assert page.evaluate(visible.format(".card")) == 0
        page.evaluate("document.querySelector('#show-ok').click()")
        assert page.evaluate(visible.format(".card")) == page.evaluate(visible.format(".card.ok")) == 5
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.screenshot(tmp_path / "page.png")
        requests = [
            e["params"]["request"]["url"] for e in page.events if e.get("method") == "Network.requestWillBeSent"
        ]
        assert {url[:5] for url in requests} <= {"file:", "data:"}
        assert len([url for url in requests if url.startswith("file:")]) == 1
        assert not [e for e in page.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert np.asarray(Image.open(tmp_path / "page.png")).std() > 10


@pytest.fixture
def crop_folder(crops: Tensor, sface_file: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "crops"
    folder.mkdir()
    for i, crop in enumerate(crops[:6]):
        Image.fromarray(crop.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    Image.new("RGB", (50, 50)).save(folder / "small.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def test_command_agrees_with_the_scorer(crop_folder: Path, crops: Tensor, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["report", str(crop_folder), "--aligned", "--output", str(output)])
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    said = f"prefiqs: 8 images: 6 ok, 1 unreadable, 1 not assessable; written to {output}"
    assert result.stderr.splitlines()[-1] == said
    expected = Scorer()(crops[:6])
    order = expected.embedding_norm.argsort(descending=True).tolist()
    page = output.read_text(encoding="utf-8")
    parsed = Parsed(page)
    assert parsed.names == [*(f"{i}.png" for i in order), "broken.jpg", "small.png"]
    scores = re.findall(r'<div class="score">([\d.]+)</div>', page)
    assert scores == [f"{expected.embedding_norm[i]:.2f}" for i in order]  # what ranks with SFace
    for i in order:
        assert f"<dd>{expected.quality[i]:.3f}</dd>" in page
        assert f"<dd>{expected.distance[i]:.3f}</dd>" in page
        assert f"<dd>{expected.embedding_norm[i]:.2f}</dd>" in page
    for text in ("scored: 6", "not readable: 1", "not assessable: 1", "no face found: 0"):
        assert text in parsed.text
    assert list(tmp_path.glob("*.part")) == []


def test_command_with_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", strides=[8, 8]),
        helper.make_node("Flatten", ["c"], ["y"], name="flatten"),
    ]
    model = make_model(nodes, ("n", 3, 32, 24), {"w": floats(8, 3, 8, 8)})
    Path("small.onnx").write_bytes(model.SerializeToString())
    Path("crops").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 24, 3), dtype=np.uint8)
    for index, crop in enumerate(pixels):
        Image.fromarray(crop).save(f"crops/{index}.png")
    options = ["--model", "small.onnx", "--preset", "arcface", "--size", "32x24", "--pruning", "random"]
    more = ["--sparsity", "0.5", "--batch-size", "2", "--workers", "0"]
    result = CliRunner().invoke(main, ["report", "crops", "--aligned", "-o", "page.html", *options, *more])
    assert (result.exit_code, result.stderr) == (0, "prefiqs: 3 images: 3 ok; written to page.html\n")
    scorer = Scorer("small.onnx", Pruning("random", 0.5), preset=PRESETS["arcface"].with_size((32, 24)))
    qualities = scorer(torch.from_numpy(pixels).permute(0, 3, 1, 2)).quality.sort(descending=True).values
    page = Path("page.html").read_text(encoding="utf-8")
    assert re.findall(r'<div class="score">([\d.]+)</div>', page) == [f"{quality:.3f}" for quality in qualities]
    text = " ".join(Parsed(page).text.split())
    assert (
        f"small.onnx (SHA-256 of its weights {scorer.settings.model_sha256[:12]}), computed in float32 on cpu" in text
    )
    assert "random, 0.5 of the weights; scope layer, layers conv" in text
    assert "aligned crops of 24 x 32 pixels, preset arcface" in text


def test_command_finds_faces_in_photos(sface_file: Path, tmp_path: Path) -> None:
    data = pytest.importorskip("skimage.data")
    try:
        weights.find_file("yunet")
    except MissingWeightsError as error:
        pytest.skip(str(error))
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(data.astronaut()).save(folder / "sub" / "astronaut.jpg", quality=95)
    Image.fromarray(data.coffee()).save(folder / "coffee.png")
    result = CliRunner().invoke(main, ["report", str(folder), "--output", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.stderr
    parsed = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert parsed.names == ["sub/astronaut.jpg", "coffee.png"]
    assert Counter(image.size for image in parsed.pictures()) == {(112, 112): 1, (112, 75): 1}


def _refused(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["report", *arguments])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


def test_command_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Found before anything is loaded or scored.
    monkeypatch.setattr("prefiqs_ext.scorer.Scorer", lambda *_, **__: pytest.fail("loaded a network"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "found none" in _refused(str(empty), "--output", str(tmp_path / "page.html"))
    Image.new("RGB", (112, 112)).save(empty / "one.png")
    assert "No such file or directory" in _refused(str(empty), "--output", str(tmp_path / "nowhere" / "page.html"))
    assert list(tmp_path.iterdir()) == [empty]


def test_nothing_scored_is_a_failure_with_a_page(tmp_path: Path, sface_file: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "zero.jpg").touch()
    output = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["report", str(folder), "--aligned", "--output", str(output)])
    assert result.exit_code == 1
    assert "no face could be scored" in result.stderr
    assert "empty" in output.read_text(encoding="utf-8")


def test_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *_: object, **__: object) -> None:
            raise InputError("broken network")

    monkeypatch.setattr("prefiqs_ext.scorer.Scorer", Broken)
    (tmp_path / "faces").mkdir()
    Image.new("RGB", (112, 112)).save(tmp_path / "faces" / "one.png")
    output = tmp_path / "page.html"
    output.write_text("old")
    assert "broken network" in _refused(str(tmp_path / "faces"), "--output", str(output))
    assert output.read_text() == "old"
    assert list(tmp_path.glob("*.part")) == []


def test_full_disk(tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    output.write_text("old")
    Path(f"{output}.part").symlink_to("/dev/full")
    full = r"^cannot write .*page\.html \(No space left on device\); make room there, or name another place$"
    with pytest.raises(OSError, match=full), atomic_write(str(output)) as file:
        file.write(b"x" * 100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert output.read_text() == "old"
    with pytest.raises(ValueError, match="expected the name of a file to write, got an empty one"), atomic_write(""):
        pass
