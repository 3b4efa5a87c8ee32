"""Targets: tar and zip archives and Parquet files of images."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from prefiqs_ext.files import InputImages
from prefiqs_ext.files.parquet import read_carried_schema
from tests.containers import make_crops, write_parquet, write_tar, write_zip
from tests.fuzz.mutations import mutate_bytes


class ContainerTarget:
    """Everything that holds many images: each of these is read, or is one line that says why not.

    Args:
        name: What it reads.
        suffix: How such files end.
        write: Writes a file that is right.
    """

    def __init__(self, name: str, suffix: str, write: Callable[[Path], None]) -> None:
        self.name = name
        self._suffix = suffix
        self._seed = cache(lambda: self._write(write))

    def _write(self, write: Callable[[Path], None]) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"a{self._suffix}")
            write(file)
            return file.read_bytes()

    def make(self, random: random.Random) -> bytes:
        return mutate_bytes(self._seed(), random)

    def run(self, data: bytes) -> None:
        file = Path(tempfile.gettempdir(), f"a{self._suffix}")
        file.write_bytes(data)
        for image in InputImages([str(file)]):
            encoded = image.encode()
            assert (encoded.data is None) == bool(encoded.problem)
            assert len(encoded.problem) < 1000
            assert encoded.problem.isprintable()
        if self._suffix == ".parquet":
            read_carried_schema(str(file), "image")


_CROPS = make_crops(6, size=8)
TARGETS = (
    ContainerTarget("tar", ".tar", lambda file: write_tar(file, _CROPS)),
    ContainerTarget("tar-gz", ".tgz", lambda file: write_tar(file, _CROPS, "w:gz")),
    ContainerTarget("zip", ".zip", lambda file: write_zip(file, _CROPS)),
    ContainerTarget(
        "parquet",
        ".parquet",
        lambda file: write_parquet(file, list(_CROPS.values()), {"label": range(6), "tags": [["a"]] * 6}, group=3),
    ),
)
