"""Revisions of the code that computes what the evaluation's cache keeps.

Raise one if any number may come out differently, however little. What was computed before is then computed again.
tests/test_revisions.py knows which code belongs to which revision. It fails if the code changed, and says what to do.
"""

from __future__ import annotations

ENGINE = 1
"""Revision of reading images, and of computing embeddings, D and norms."""

METHODS = {"calibrated": 1, "grafiqs": 1, "froq": 1, "serfiq": 1, "random": 1, "sharpness": 1, "brightness": 1}
"""Revisions of the methods that compute something themselves. The others use what the engine gives."""
