"""Ray on this machine: the rows of one process, whatever is wrong with the images. Clusters: test_ray_cluster.py."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefiqs_ext import Scorer
from prefiqs_ext.cli import main
from prefiqs_ext.exceptions import FileAccessError, InputError
from prefiqs_ext.files import InputImages, score_images
from prefiqs_ext.integrations.output_folder import OutputFolder
from prefiqs_ext.integrations.ray import ReadCrops, ScoreCrops, score_dataset
from prefiqs_ext.integrations.ray_run import PendingUnits, list_units
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.models.template import CropTemplate
from tests.command import Command
from tests.containers import make_crops, write_parquet, write_tar
from tests.onnx_files import write_small_network

ray = pytest.importorskip("ray")
_CROPS = make_crops(24, size=32)
_OPTIONS = ("--aligned", "--model", "small.onnx", "--preset", "arcface", "--size", "32", "--embedding-column")
_PRESET = Preset.resolve("arcface").with_size((32, 32))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_small_network(Path("small.onnx"), 32)
    return tmp_path


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


def _make_scorer() -> Callable[[], Scorer]:
    file = os.path.abspath("small.onnx")
    return lambda: Scorer(file, preset=Preset.resolve("arcface").with_size((32, 32)), on_bad="nan")


def _call_stages(table: pa.Table, *, aligned: bool = True, path_column: str | None = None) -> pa.Table:
    """Both stages without Ray, on batches as it gives them."""
    crops = ReadCrops("image", path_column, _PRESET.template, aligned)(table)
    return ScoreCrops(_make_scorer(), _PRESET.template, path_column, embeddings=True)(crops)


def test_rows_of_a_dataset_are_those_of_one_process() -> None:
    write_parquet(Path("a.parquet"), [*_CROPS.values(), None, b"no image"], {"label": range(26), "score": ["own"] * 26})
    found = _call_stages(pq.read_table("a.parquet"))
    images = score_images(InputImages(["a.parquet"]), _make_scorer()(), aligned=True)
    expected = [(record, one.embeddings[row]) for one in images for row, record in enumerate(one.records)]
    assert found.num_rows == 26
    for cells, (record, embedding) in zip(found.to_pylist(), expected, strict=True):
        for name in ("face", "status", "score", "quality", "distance", "embedding_norm"):
            value = getattr(record, name)
            assert cells[name] == (np.float32(value) if isinstance(value, float) else value)
        assert cells["embedding"] is None or cells["embedding"] == embedding.tolist()
    assert found["label"].to_pylist() == list(range(26))
    assert found["input_score"].to_pylist() == ["own"] * 26
    assert found["reason"].to_pylist()[24] == "expected the bytes of an image or uint8 [H, W, 3], got nothing"


def test_a_dataset_without_other_columns_and_an_empty_one() -> None:
    table = pa.table({"image": pa.array(list(_CROPS.values())[:3], pa.binary())})
    assert _call_stages(table)["status"].to_pylist() == ["ok"] * 3
    assert _call_stages(table.slice(0, 0)).num_rows == 0


def test_paths_of_a_dataset() -> None:
    images = [_CROPS["000.png"], b"text"]
    found = _call_stages(pa.table({"image": images, "path": ["a.png", "b.png"]}), path_column="path")
    assert found["path"].to_pylist() == ["a.png", "b.png"]
    assert "input_path" not in found.column_names


def test_columns_that_are_not_there_and_another_preset() -> None:
    with pytest.raises(InputError, match="expected a column 'image', there are: jpg"):
        ReadCrops("image", None, _PRESET.template, True)(pa.table({"jpg": [b""]}))
    with pytest.raises(InputError, match=r"expected a scorer of CropTemplate\(size=\(112, 112\)"):
        ScoreCrops(_make_scorer(), CropTemplate((112, 112)))


@pytest.mark.usefixtures("cluster")
def test_decoded_images_of_different_sizes_in_a_real_dataset() -> None:
    """Ray's arrays are read-only, and of one shape or of many."""
    pixels = [cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1].copy() for data in _CROPS.values()]
    odd = [np.zeros((5, 7, 3), np.uint8), np.zeros((32, 32, 4), np.uint8)]
    dataset = ray.data.from_items([{"image": each, "label": row} for row, each in enumerate([*pixels, *odd])])
    scored = score_dataset(dataset, _make_scorer(), preset=_PRESET, aligned=True, batch_size=7)
    rows = sorted(scored.take_all(), key=lambda row: row["label"])
    expected = _make_scorer()()(np.stack(pixels))
    assert [np.float32(row["distance"]) for row in rows[:24]] == list(expected.distance.numpy())
    assert [row["status"] for row in rows[24:]] == ["not_assessable", "unreadable"]
    assert rows[25]["reason"] == "expected the bytes of an image or uint8 [H, W, 3], got uint8 [32, 32, 4]"


@pytest.mark.usefixtures("cluster")
def test_command(command: Command) -> None:
    """One output per archive, Parquet file and slice; the same table as one process; what is finished stays."""
    os.makedirs("shards/more")
    write_tar(Path("shards/0.tar"), _CROPS)
    write_tar(Path("shards/more/0.tar"), {"x.png": _CROPS["000.png"], "y.png": b"text"})
    write_parquet(Path("shards/a.parquet"), list(_CROPS.values()), {"label": range(24)})
    Path("shards/bad.tar").write_bytes(b"no tar")
    os.mkdir("crops")
    for name, data in _CROPS.items():
        Path("crops", name).write_bytes(data)
    sources = ["shards/0.tar", "shards/more/0.tar", "shards/a.parquet", "shards/bad.tar", "crops"]
    arguments = ["score", *sources, *_OPTIONS, "--engine", "ray", "-o", "out"]
    result = command(*arguments, "--workers", "1", "--concurrency", "1")
    assert result.code == 0, result.err
    said = result.err.splitlines()
    assert said[-1] == "prefiqs: 75 images: 73 ok, 2 unreadable; written to out"
    assert any(line.startswith("prefiqs: shards/more/0.tar/y.png: unreadable: ") for line in said)
    found = sorted(str(file.relative_to("out")) for file in Path("out").rglob("*.parquet"))
    (images,) = [name for name in found if name.startswith("images-000000-")]
    assert found == [images, *(f"shards/{name}.parquet" for name in ("0.tar", "a.parquet", "bad.tar", "more/0.tar"))]
    for source, name in [*((each, f"{each}.parquet") for each in sources[:4]), ("crops", images)]:
        command("score", source, *_OPTIONS, "-o", "one.parquet", "--workers", "0")
        assert pq.read_table(f"out/{name}").equals(pq.read_table("one.parquet")), source
    refused = command(*arguments)
    assert (refused.code, "out has an earlier run: go on with --resume" in refused.err) == (2, True)
    refused = command(*arguments, "--resume", "--sparsity", "0.5")
    assert (refused.code, "was made with sparsity None, not 0.5" in refused.err) == (2, True)
    os.remove("out/shards/0.tar.parquet")
    times = {name: os.stat(f"out/{name}").st_mtime_ns for name in found if name != "shards/0.tar.parquet"}
    again = command(*arguments, "--resume")
    assert again.err.splitlines()[-1] == "prefiqs: 24 images: 24 ok; 4 finished before; written to out"
    assert {name: os.stat(f"out/{name}").st_mtime_ns for name in times} == times
    Path("crops/new.png").write_bytes(_CROPS["000.png"])
    changed = command(*arguments, "--resume")
    assert f"{images} was made from other images than this run's: name another folder" in changed.err


def test_an_output_folder_that_cannot_be_written(command: Command) -> None:
    Path("file").write_text("text")
    write_tar(Path("a.tar"), _CROPS)
    result = command("score", "a.tar", *_OPTIONS, "--engine", "ray", "-o", "file/out")
    assert result.code == 1
    assert result.err.startswith("Error: cannot ")
    assert result.err.count("\n") == 1
    for more, message in [
        (["-o", "out", "--top", "3"], "--engine ray has no --top: leave it out"),
        ([], "--engine ray needs --output FOLDER, which all nodes share, or an address"),
    ]:
        result = command("score", "a.tar", *_OPTIONS, "--engine", "ray", *more)
        assert (result.code, message in result.err) == (2, True)
    result = command("score", "a.tar", *_OPTIONS, "--concurrency", "3")
    assert (result.code, "are for --engine ray: give that too" in result.err) == (2, True)


def test_a_node_that_does_not_see_the_folder(tmp_path: Path) -> None:
    folder = OutputFolder(str(tmp_path / "out"))
    run = folder.begin({"a": 1}, resume=False)
    folder.check_run(run)
    with pytest.raises(InputError, match=r"a node does not see the run in .*: name a folder that all nodes share"):
        OutputFolder(str(tmp_path / "elsewhere")).check_run(run)
    (tmp_path / "out/run.json").write_text("text")
    with pytest.raises(ValueError, match="expected JSON"):
        folder.begin({"a": 1}, resume=True)
    (tmp_path / "out/run.json").write_text(json.dumps({"run": run, "settings": 5}))
    with pytest.raises(InputError, match="was made with a None, not 1"):
        folder.begin({"a": 1}, resume=True)


def test_an_output_appears_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    folder = OutputFolder(str(tmp_path / "out"))
    Path("a").write_text("text")
    folder.publish(Path("a"), "b/c.parquet")
    assert folder.has("b/c.parquet")
    assert folder.list_finished() == {"b/c.parquet"}
    for step in ("put_file", "mv"):
        with monkeypatch.context() as patch:
            patch.setattr(LocalFileSystem, step, lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
            with pytest.raises(
                FileAccessError, match=r"cannot write .*d\.parquet \(No space left\); name another place"
            ):
                folder.publish(Path("a"), "d.parquet")
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["b"]


def test_names_of_units() -> None:
    paths = ["/data/a.tar", "a.tar", "./b/a.tar", "s3://bucket/a.tar", *(f"{index}.png" for index in range(2001))]
    units = list(list_units(paths))
    names = [unit.name for unit in units]
    assert names[:4] == ["data/a.tar.parquet", "a.tar.parquet", "b/a.tar.parquet", "bucket/a.tar.parquet"]
    assert [name[:14] for name in names[4:]] == ["images-000000-", "images-000001-", "images-000002-"]
    assert [len(unit.paths) for unit in units] == [1, 1, 1, 1, 1000, 1000, 1]
    assert not any(".." in unit.name.split("/") for unit in list_units(["../../a.tar"]))


def test_units_of_one_name_are_refused() -> None:
    """One of the two would be taken for done, and be lost."""
    with pytest.raises(InputError, match=r"a\.tar: another input has its output's name, data/a\.tar\.parquet"):
        list(PendingUnits(list_units(["/data/a.tar", "data/a.tar"]), set()))


def test_main_is_the_command() -> None:
    """The options of a cluster stand in the help."""
    from click.testing import CliRunner

    assert "--concurrency N" in CliRunner().invoke(main, ["score", "--help"]).output
