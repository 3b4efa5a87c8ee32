"""From image files to a table: which files, reading and scoring them side by side, results that outlive a crash."""

from __future__ import annotations

from prefiqs_ext.files.paths import find_paths
from prefiqs_ext.files.pipeline import Scored, score_files
from prefiqs_ext.files.rows import COLUMNS, Row
from prefiqs_ext.files.table import Pick, Results

__all__ = ["COLUMNS", "Pick", "Results", "Row", "Scored", "find_paths", "score_files"]
