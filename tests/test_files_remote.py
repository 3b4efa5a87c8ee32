"""Addresses: fsspec's store in memory stands for an object store; a server that speaks S3 is in test_s3.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from prefiqs_ext.exceptions import FileAccessError, InputError, MissingFileError, MissingPackageError
from prefiqs_ext.files import InputImages, find_paths
from prefiqs_ext.files.crops import CropReader
from prefiqs_ext.files.image import EncodedImage
from prefiqs_ext.models.template import CropTemplate
from tests.containers import make_crops, write_parquet, write_tar

_CROPS = make_crops(4)


@pytest.fixture(autouse=True)
def store(tmp_path: Path) -> Iterator[None]:
    memory = fsspec.filesystem("memory")
    write_tar(tmp_path / "a.tar", _CROPS)
    write_parquet(tmp_path / "a.parquet", list(_CROPS.values()))
    files = {"photos/b/1.png": _CROPS["000.png"], "photos/2.PNG": _CROPS["001.png"], "photos/.hidden/3.png": b""}
    files |= {"photos/notes.txt": b"", "cut.png": _CROPS["000.png"][:50]}
    files |= {f"shards/{name}": (tmp_path / name).read_bytes() for name in ("a.tar", "a.parquet")}
    for name, data in files.items():
        memory.pipe(f"/bucket/{name}", data)
    yield
    memory.rm("/bucket", recursive=True)


def _find(*arguments: str) -> list[str]:
    return list(find_paths(arguments, containers=True))


def test_folders_and_wildcards() -> None:
    assert _find("memory://bucket/photos") == ["memory://bucket/photos/2.PNG", "memory://bucket/photos/b/1.png"]
    assert _find("memory://bucket/photos/b/") == ["memory://bucket/photos/b/1.png"]
    assert _find("memory://bucket/shards/a.*") == [f"memory:///bucket/shards/a.{kind}" for kind in ("parquet", "tar")]
    again = _find("memory://bucket/photos/b", "memory://bucket/photos/b/1.png", "memory://bucket/photos")
    assert again == ["memory://bucket/photos/b/1.png", "memory://bucket/photos/2.PNG"]
    with pytest.raises(InputError, match="expected images, nothing matches memory://bucket/none"):
        _find("memory://bucket/none*.tar")


def test_addresses_in_a_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        "memory://bucket/photos/2.PNG\nmemory://bucket/photos/b/\nmemory://bucket/none\n"
    )
    found = ["memory://bucket/photos/2.PNG", "memory://bucket/photos/b/1.png", "memory://bucket/none"]
    assert _find(f"@{tmp_path}/list.txt") == found


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_containers(name: str) -> None:
    images = [image.encode() for image in InputImages([f"memory://bucket/shards/{name}"])]
    assert [image.data for image in images] == list(_CROPS.values())
    (missing,) = InputImages([f"memory://bucket/none/{name}"])
    assert missing.problem.startswith(f"cannot read memory://bucket/none/{name} (")


def test_images() -> None:
    reader = CropReader(CropTemplate((112, 112)), None)
    (good,) = [reader(EncodedImage("memory://bucket/photos/2.PNG"))]
    assert (good.status, len(good.crops)) == ("ok", 1)
    for path, reason in [("cut.png", "truncated"), ("none.png", "bucket/none.png")]:
        bad = reader(EncodedImage(f"memory://bucket/{path}"))
        assert bad.status == "unreadable"
        assert reason in bad.reason
        assert "\n" not in bad.reason


def test_what_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cannot read nosuch://bucket/a\.tar: Protocol not known: nosuch"):
        _find("nosuch://bucket/a.tar")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'prefiqs_ext\[s3\]'"):
        _find("s3://bucket/a.tar")
    reader = CropReader(CropTemplate((112, 112)), None)
    assert "prefiqs_ext[s3]" in reader(EncodedImage("s3://bucket/a.png")).reason

    def fail(*_: object, **__: object) -> bool:
        raise RuntimeError("the client\nhas its own errors")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "isdir", fail)
    with pytest.raises(
        FileAccessError, match=r"cannot read memory://bucket \(the client has its own errors\)"
    ) as caught:
        _find("memory://bucket")
    assert not isinstance(caught.value, MissingFileError)
