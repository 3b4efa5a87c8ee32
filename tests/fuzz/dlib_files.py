"""Files of dlib's face recognition network, changed a record at a time or a byte at a time."""

from __future__ import annotations

import functools
import random as _random
import tempfile
from pathlib import Path

from prefiqs_ext.models import load
from tests import dlib_files
from tests.fuzz.mutations import NUMBERS, mutate_bytes


@functools.cache
def _make_records(newest: bool) -> list[dlib_files.Record]:
    return dlib_files.records(dlib_files.random_network(0), newest=newest)


class _DlibFiles:
    """Most files end after some layers: a whole one has 22 MB."""

    name = "dlib"

    def make(self, random: _random.Random) -> bytes:
        written = list(_make_records(random.random() < 0.5))
        if random.random() < 0.97:
            small = [record for record in written if len(record[1]) < 100_000]
            written = small if random.random() < 0.5 else written[: random.randrange(len(written) // 3)]
        for _ in range(random.choice((0, 1, 1, 3))):
            at = random.randrange(len(written) + 1)
            new = random.choice(
                (dlib_files.integer(random.choice(NUMBERS)), dlib_files.string("con_4"), b"1", b"", b"\xff")
            )
            written[at : at + random.choice((0, 1, 1, 1))] = [("changed", new)]
        data = b"".join(record for _, record in written)
        return mutate_bytes(data, random) if random.random() < 0.3 else data

    def run(self, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.dat"
            path.write_bytes(data)
            load(path, "dlib")


TARGETS = (_DlibFiles(),)
