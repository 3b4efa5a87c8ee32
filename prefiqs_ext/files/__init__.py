"""From image files to a table: which files, reading and scoring them side by side, results that outlive a crash."""

from __future__ import annotations

from prefiqs_ext.files.paths import find_paths
from prefiqs_ext.files.pipeline import Scored, score_files
from prefiqs_ext.files.records import COLUMNS, Record
from prefiqs_ext.files.writer import Pick, Writer

__all__ = ["COLUMNS", "Pick", "Record", "Scored", "Writer", "find_paths", "score_files"]
