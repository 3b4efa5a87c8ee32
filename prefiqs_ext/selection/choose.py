"""Finds the rows to keep. DuckDB sorts them, on disk where they do not fit in memory.

DuckDB gets Arrow batches of the few columns that decide, and gives places of rows. It opens no file of the user and no
connection. No name of a file or a column comes into its SQL.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefiqs_ext.exceptions import OutOfMemoryError
from prefiqs_ext.selection.groups import Group, walk_groups
from prefiqs_ext.utils.os_errors import explain_write_errors
from prefiqs_ext.utils.text import format_untrusted

_MEMORY = "2GiB"  # of DuckDB's sorts; what does not fit goes to the temporary folder
_MOST_THREADS = 8  # each needs a part of the memory
_BATCH = 1 << 14  # rows

_SETTINGS = {
    "memory_limit": _MEMORY,
    "preserve_insertion_order": "false",
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_persistent_secrets": "false",
    "lock_configuration": "true",
}

# The first by path of the faces that have one content and one place in the picture.
_DIFFERENT = """
    create table different as select * exclude (content) from faces
    qualify row_number() over (partition by content, face order by path, place) = 1
"""
_GROUPED = "from different where person is not null and score >= ?"
_BEST_FIRST = "order by score desc, path, face, place"
_BEST = f"""
    select place, row_number() over (partition by person {_BEST_FIRST}) as rank {_GROUPED} qualify rank <= ?
"""
_ALL_IN_ORDER = (
    f"select place, person, score, embedding {_GROUPED} order by person, {_BEST_FIRST.removeprefix('order by ')}"
)


class Choice(NamedTuple):
    """What was chosen.

    Attributes:
        kept: [rows] whether each row of the tables is kept.
        duplicates: How many faces were dropped as the same content.
        ungrouped: How many of the others have no group.
        groups: How many groups have a row that is kept.
    """

    kept: NDArray[np.bool_]
    duplicates: int
    ungrouped: int
    groups: int


class FaceStore:
    """The faces to choose from, in DuckDB. It is a context manager.

    Args:
        dimensions: The length of the embeddings; None without them.

    Raises:
        FileAccessError: There is no temporary folder that can be written.
        OutOfMemoryError: From any method: the memory and the temporary folder are too small.
    """

    def __init__(self, dimensions: int | None = None) -> None:
        with ExitStack() as stack:
            with explain_write_errors("a temporary folder", remedy="point TMPDIR to another folder"):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="prefiqs-"))
            threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
            settings: dict[str, str | bool | int | float | list[str]] = {
                **_SETTINGS,
                "threads": threads,
                "temp_directory": folder,
            }
            self._database = stack.enter_context(duckdb.connect(":memory:", config=settings))
            embedding = "" if dimensions is None else f", embedding float[{int(dimensions)}]"
            self._database.execute(
                "create table faces "
                f"(place bigint, person blob, content blob, face bigint, path blob, score float{embedding})"
            )
            self._dimensions = dimensions
            self._resources = stack.pop_all()

    def __enter__(self) -> FaceStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._resources.close()
        if isinstance(error, (duckdb.OutOfMemoryException, duckdb.IOException)):
            raise OutOfMemoryError(
                f"expected room for sorting in {_MEMORY} of memory and on the disk of {tempfile.gettempdir()} "
                f"({format_untrusted(error, 120)}); point TMPDIR to a larger disk, or give fewer tables"
            ) from error

    def add(self, faces: pa.Table) -> None:
        """Adds faces with the columns place, person, content, face, path, score and, where there are some, embedding.

        Args:
            faces: `place` is the number of the row in all tables together. `person` is what is grouped by; null for
                none. Faces of equal `content` and `face` are duplicates. All texts are bytes.
        """
        self._database.register("batch", faces)
        self._database.execute("insert into faces by name select * from batch")
        self._database.unregister("batch")

    def choose(
        self,
        rows: int,
        best: int,
        least_score: float,
        near: float | None = None,
        add_template: Callable[[Group], None] | None = None,
    ) -> Choice:
        """Chooses the rows of highest score of each group, after the duplicates are dropped.

        Equal scores are in the order of path, face and place.

        Args:
            rows: How many rows the tables have.
            best: How many are kept of a group.
            least_score: Faces below this are left out.
            near: Faces whose embedding has at least this cosine with one that is kept, of the same group and better,
                are left out. None: no face is left out for that. It needs embeddings.
            add_template: Takes each group that is kept, with its template. It needs embeddings.
        """
        self._database.execute(_DIFFERENT)
        faces, different, ungrouped = self._database.execute(
            "select (select count(*) from faces), count(*), count(*) filter (person is null) from different"
        ).fetchall()[0]
        self._database.execute("drop table faces")
        kept = np.zeros(rows, np.bool_)
        groups = 0
        least = float(np.float32(least_score))  # scores are float32, and .7 of the two types differ
        if self._dimensions is None:
            for batch in self._read(_BEST, [least, best]):
                kept[batch["place"].to_numpy()] = True
                groups += int(np.count_nonzero(batch["rank"].to_numpy() == 1))
        else:
            for group in walk_groups(self._read(_ALL_IN_ORDER, [least]), best, near):
                kept[group.places] = True
                groups += 1
                if add_template is not None:
                    add_template(group)
        return Choice(kept, faces - different, ungrouped, groups)

    def _read(self, query: str, parameters: list[float]) -> Iterator[pa.RecordBatch]:
        return iter(self._database.sql(query, params=parameters).to_arrow_reader(_BATCH))
