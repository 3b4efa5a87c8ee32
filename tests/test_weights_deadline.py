"""Sources of weights that never end: each has its time, and then it has failed."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from pathlib import Path

import pytest
from test_weights import _assert_fails as assert_fails
from test_weights import cache, server, tiny  # noqa: F401, fixtures
from weight_sources import Server

from prefiqs_ext.models import weight_sources, weights
from prefiqs_ext.models.weights import Weights

# ruff: noqa: F811


@pytest.mark.parametrize("answer", ["drips", "drips_its_head"])
def test_a_server_that_never_ends(
    answer: str, tiny: Weights, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends a byte in time for each timeout, again and again."""
    monkeypatch.setattr(weight_sources, "_GRACE_S", 0.6)
    monkeypatch.setattr(weight_sources, "_LEAST_SPEED", 1e9)
    monkeypatch.setitem(weights.KNOWN, "tiny", dataclasses.replace(tiny, url=server.url(answer)))
    started = time.monotonic()
    assert_fails("official: the download was not complete after 1 s", "official", cache)
    assert time.monotonic() - started < 5
    assert server.sent < 1000
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


def test_a_server_that_sends_in_a_circle(
    tiny: Weights, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(weights.KNOWN, "tiny", dataclasses.replace(tiny, url=server.url("redirects_for_ever")))
    assert_fails("official: HTTP status 302 .*infinite loop", "official", cache)


def test_a_pip_that_never_ends(tiny: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    monkeypatch.setattr(weight_sources, "_PIP_S", 0.2)
    assert_fails("pip: pip did not end within 0 s", "pip", cache)
