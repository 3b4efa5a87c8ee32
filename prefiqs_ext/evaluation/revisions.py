"""Revisions of the code that computes what the evaluation's cache keeps.

Raise one where a number may come out differently, however little: what was computed before is then computed again.
tests/test_revisions.py knows which code is whose, fails where it changed, and says what to do.
"""

from __future__ import annotations

ENGINE = 1
"""Of reading images, and of embeddings and D."""

METHODS = {"grafiqs": 1, "froq": 1, "serfiq": 1, "random": 1, "sharpness": 1, "brightness": 1}
"""Of the methods that compute something themselves; the others read what the engine gives."""
