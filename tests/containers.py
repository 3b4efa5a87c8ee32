"""Archives and Parquet files of images, made by other libraries than ours."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def make_crops(count: int, size: int = 112) -> dict[str, bytes]:
    """Different crops as PNG files, by name."""
    random = np.random.default_rng(3)
    crops = {}
    for index in range(count):
        pixels = random.integers(0, 40 * (index % 6 + 1), (size, size, 3), dtype=np.uint8)
        crops[f"{index:03}.png"] = cv2.imencode(".png", pixels)[1].tobytes()
    return crops


def write_tar(file: Path, members: Mapping[str, bytes], mode: str = "w") -> None:
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_zip(file: Path, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_parquet(
    file: Path, images: Sequence[bytes | None], more: Mapping[str, Sequence[object]] | None = None, group: int = 7
) -> None:
    """A column `image` as Hugging Face datasets have it, and others."""
    cells = [None if data is None else {"bytes": data, "path": None} for data in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, kind), **{name: list(values) for name, values in (more or {}).items()}})
    pq.write_table(table, file, row_group_size=group)
