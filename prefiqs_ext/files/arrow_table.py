"""Scored images as Arrow tables, and as Parquet files.

While a run lasts its table is an Arrow stream, to which rows can be appended. At the end it becomes the Parquet file,
row group by row group.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING

from prefiqs_ext.files.image import HASH_BYTES
from prefiqs_ext.files.records import COLUMNS
from prefiqs_ext.files.select_rows import Pick
from prefiqs_ext.utils.optional_packages import require_packages

if TYPE_CHECKING:
    import pyarrow as pa

    from prefiqs_ext.files.image import CarriedRow
    from prefiqs_ext.files.pipeline import ScoredFile

_GROUP_BYTES = 32 << 20  # of a row group in memory; with embeddings of 512 numbers, some 15,000 rows
HASH, EMBEDDING = "content_hash", "embedding"
"""Columns of .parquet tables alone: the same for the same bytes of an image; and, where asked for, the embedding."""
_OWN = (*COLUMNS, "reason", HASH, EMBEDDING)


class ArrowTable:
    """Makes rows of scored images, and encodes them as messages of an Arrow stream.

    The columns are those of csv, `reason`, `content_hash` (BLAKE2b of the encoded image, 16 bytes), if asked for
    `embedding` (a list of fixed size), and what is carried over from the input. A carried column that has the name of
    another one is called ``input_NAME``.

    Args:
        carried: The columns of the input that are carried over.
        with_embeddings: Whether there is a column for embeddings.
    """

    def __init__(self, carried: pa.Schema | None, *, with_embeddings: bool) -> None:
        require_packages("parquet", "pyarrow")
        import pyarrow as pa

        self._carried = carried if carried is not None else pa.schema([])
        self._with_embeddings = with_embeddings

    def encode_schema(self, columns: int) -> bytes:
        """Encodes what stands before the first row.

        Args:
            columns: Numbers per embedding.
        """
        return bytes(self._make_schema(columns).serialize())

    def encode(self, scored: Sequence[ScoredFile], columns: int) -> bytes:
        """Encodes the rows of some images; the arguments are those of `build`."""
        return bytes(self.build(scored, columns).serialize())

    def build(self, scored: Sequence[ScoredFile], columns: int) -> pa.RecordBatch:
        """Makes the rows of some images.

        Args:
            scored: The images.
            columns: Numbers per embedding.
        """
        import pyarrow as pa

        schema = self._make_schema(columns)
        pairs = [(record, image) for image in scored for record in image.records]
        values: list[pa.Array] = []
        for place, name in enumerate((*COLUMNS, "reason")):
            cells = [record[place] for record, _ in pairs]
            values.append(
                pa.array(map(_show, cells) if name in ("path", "reason") else cells, schema.field(place).type)
            )
        hashes = [image.content_hash for _, image in pairs]
        values.append(pa.array(hashes, schema.field(HASH).type))
        if self._with_embeddings:
            values.append(_build_embeddings(scored, columns))
        values += self._take_carried([image.carried for _, image in pairs])
        return pa.RecordBatch.from_arrays(values, schema=schema)

    def _make_schema(self, columns: int) -> pa.Schema:
        import pyarrow as pa

        kinds = {"path": pa.string(), "face": pa.int32(), "status": pa.string()}
        fields = [pa.field(name, kinds.get(name, pa.float32())) for name in COLUMNS]
        fields += [pa.field("reason", pa.string()), pa.field(HASH, pa.binary(HASH_BYTES))]
        if self._with_embeddings:
            fields.append(pa.field(EMBEDDING, pa.list_(pa.float32(), columns)))
        taken = {*_OWN, *self._carried.names}
        for field in self._carried:
            name = field.name
            while name in _OWN or (name != field.name and name in taken):
                name = f"input_{name}"
            taken.add(name)
            fields.append(field.with_name(name).with_nullable(True))
        return pa.schema(fields)

    def _take_carried(self, rows: Sequence[CarriedRow | None]) -> list[pa.Array]:
        """Takes the carried columns of rows that come batch by batch; null where there is no row."""
        import pyarrow as pa

        parts: list[pa.Table] = []
        begin = 0
        for end in range(1, len(rows) + 1):
            first = rows[begin]
            if end < len(rows) and _get_batch(rows[end]) is _get_batch(first):
                continue
            if first is None:
                nothing = [pa.nulls(end - begin, field.type) for field in self._carried]
                parts.append(pa.Table.from_arrays(nothing, schema=_make_nullable(self._carried)))
            else:
                places = pa.array([row.row for row in rows[begin:end] if row is not None])
                taken = first.batch.take(places)
                parts.append(pa.Table.from_batches([taken]).cast(_make_nullable(self._carried)))
            begin = end
        if not len(self._carried):
            return []
        table = pa.concat_tables(parts)
        return [_combine(column) for column in table.columns]


def write_parquet(stream: IO[bytes], to: IO[bytes], pick: Pick | None) -> int:
    """Writes the rows of an Arrow stream as a Parquet file.

    Args:
        stream: What :class:`ArrowTable` has encoded, from its start to its end.
        to: An empty file.
        pick: The rows to keep; None keeps them all.

    Returns:
        The number of rows that were kept.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    reader = pa.ipc.open_stream(stream)
    batches: Iterator[pa.RecordBatch] = iter(reader)
    if pick is not None:
        batches = _pick(batches, reader.schema, pick)
    count = 0
    with pq.ParquetWriter(to, reader.schema, compression="zstd") as writer:
        for table in _group(batches):
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
            count += table.num_rows
    return count


def _group(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        waiting.append(batch)
        size += batch.nbytes
        if size > _GROUP_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting, size = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _pick(batches: Iterable[pa.RecordBatch], schema: pa.Schema, pick: Pick) -> Iterator[pa.RecordBatch]:
    """Keeps the rows that Pick.choose keeps of a text table, in the same order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    best = schema.empty_table()
    for batch in batches:
        batch = batch.filter(pc.is_valid(batch.column("score")))
        if pick.below is not None:
            batch = batch.filter(pc.less(pc.cast(batch.column("score"), pa.float64()), pick.below))
        if pick.top is None:
            yield batch
            continue
        # The sort is stable, so that equal scores stay in the order of the table.
        best = pa.concat_tables([best, pa.Table.from_batches([batch])])
        best = best.take(pc.sort_indices(best, [("score", "descending")])[: pick.top]).combine_chunks()
    if pick.top is not None:
        yield from best.to_batches()


def _build_embeddings(scored: Sequence[ScoredFile], columns: int) -> pa.Array:
    """Builds the embeddings of all rows; null where a face has none."""
    import numpy as np
    import pyarrow as pa
    import torch

    vectors = [image.embeddings for image in scored] or [torch.empty(0, columns)]
    numbers = torch.cat(vectors).numpy().astype(np.float32, copy=False)
    missing = pa.array(np.isnan(numbers).any(axis=1))
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), columns, mask=missing)


def _show(text: object) -> str:
    r"""Gives a path as UTF-8, which Parquet wants: bytes of a name that are none are escaped, as in caf\xe9.jpg."""
    return os.fsencode(str(text)).decode("utf-8", "backslashreplace")


def _get_batch(row: CarriedRow | None) -> object:
    return None if row is None else row.batch


def _make_nullable(schema: pa.Schema) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([field.with_nullable(True) for field in schema])


def _combine(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if hasattr(combined, "chunk") else combined
