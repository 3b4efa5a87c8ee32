"""How many processes read files, and how many crops are scored together."""

from __future__ import annotations

import pytest
import torch

from prefiqs_ext.cli.throughput import Throughput
from prefiqs_ext.device import choose_batch_size


@pytest.mark.parametrize(
    ("given", "files", "cores", "expected"),
    [
        (None, 1, 8, 0),
        (None, 15, 8, 0),
        (None, 16, 8, 1),
        (None, 10_000, 8, 4),
        (None, 10_000, 64, 8),
        (None, 10_000, 1, 1),
        (3, 1, 1, 3),
        (0, 10_000, 64, 0),
    ],
)
def test_how_many_processes_read_files(
    given: int | None, files: int, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefiqs_ext.cli.throughput.count_cores", lambda: cores)
    assert Throughput(workers=given).choose_workers(files) == expected


def test_how_many_crops_are_scored_together() -> None:
    assert [choose_batch_size(torch.device(device)) for device in ("cpu", "cuda")] == [32, 256]
