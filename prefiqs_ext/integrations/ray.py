"""Ray Data: a dataset of images in, the same rows with scores out.

    dataset -> ReadCrops (tasks on CPUs) -> ScoreCrops (actors, each with a Scorer of its own) -> dataset

Whatever is wrong with an image becomes the status of its row; nothing is raised. A row has the same bits as in
`prefiqs score`, whatever the cluster and its batches.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.faces import Detector
from prefiqs_ext.faces.detect import MIN_FACE
from prefiqs_ext.files.arrow_table import ArrowTable
from prefiqs_ext.files.batches import stack_crops
from prefiqs_ext.files.crops import CropReader, FileCrops
from prefiqs_ext.files.image import CarriedRow, EncodedImage
from prefiqs_ext.files.pipeline import make_no_embedding, score_batch
from prefiqs_ext.integrations.ray_nodes import hold_node
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.models.template import CropTemplate
from prefiqs_ext.scorer import Scorer, get_template
from prefiqs_ext.utils.check_arguments import check_count
from prefiqs_ext.utils.optional_packages import require_packages

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_CROPS = "prefiqs_crops"
"""The column between the two stages: pickled FileCrops."""


def make_default_scorer() -> Scorer:
    """Makes a scorer of the built-in network that gives NaN for a face that it cannot assess."""
    return Scorer(on_bad="nan")


def score_dataset(
    dataset: Dataset,
    make_scorer: Callable[[], Scorer] = make_default_scorer,
    *,
    preset: str | Preset = "sface",
    image_column: str = "image",
    path_column: str | None = None,
    aligned: bool = False,
    min_face: float = MIN_FACE,
    embeddings: bool = False,
    batch_size: int = 32,
    concurrency: int | tuple[int, int] = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> Dataset:
    """Scores the images of a Ray dataset.

    For example: ``score_dataset(ray.data.read_parquet("s3://bucket/faces/"), aligned=True, num_gpus=1)``.

    Args:
        dataset: Its images are encoded (bytes, or a struct with `bytes`) or decoded (uint8 [H, W, 3], RGB, also of
            different sizes).
        make_scorer: Makes the Scorer of an actor, in the actor. It should have ``on_bad="nan"``.
        preset: The preset of that scorer, which says how crops are cut.
        image_column: The column with the images. It is left out of the result; all others are in it.
        path_column: A column that names the images in errors and in `path`. None: they are called by no name.
        aligned: The images are ready crops of exactly the preset's size. Otherwise they are photos, in which faces are
            found and aligned.
        min_face: Width in pixels from which faces in photos are found.
        embeddings: Whether the result has a column `embedding`.
        batch_size: Images that a stage takes at a time.
        concurrency: Actors that score: their number, or the least and the most of them.
        num_cpus: CPUs of each actor; its Scorer uses as many threads.
        num_gpus: GPUs of each actor.

    Returns:
        One row per face, the largest of a photo first, and one row for an image without any. The columns are those of
        a .parquet table of `prefiqs score`: a column of the dataset that has the name of another one becomes
        ``input_NAME``.

    Raises:
        MissingPackageError: Ray or pyarrow is not installed.
        InputError: batch_size is below 1.
    """
    require_packages("ray", "ray", "pyarrow")
    from ray.data import ActorPoolStrategy

    check_count(batch_size, "batch_size")
    template = Preset.resolve(preset).template
    least, most = (concurrency, concurrency) if isinstance(concurrency, int) else concurrency
    reading = (image_column, path_column, template, aligned, min_face)
    scoring = (make_scorer, template, path_column, embeddings, num_cpus)
    crops = dataset.map_batches(
        ReadCrops(*reading), batch_size=batch_size, batch_format="pyarrow", zero_copy_batch=True
    )
    return crops.map_batches(
        ScoreCrops,
        fn_constructor_args=scoring,
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
    )


class ReadCrops:
    """The stage for CPUs: decodes images, finds the faces of photos and aligns them. It runs as tasks or as actors.

    Args:
        image_column: The column with the images.
        path_column: The column that names them; None for none.
        template: What a crop is like.
        aligned: The images are ready crops.
        min_face: Width in pixels from which faces in photos are found.
    """

    def __init__(
        self,
        image_column: str,
        path_column: str | None,
        template: CropTemplate,
        aligned: bool = False,
        min_face: float = MIN_FACE,
    ) -> None:
        self._image_column = image_column
        self._path_column = path_column
        self._template = template
        self._aligned = aligned
        self._min_face = min_face
        self._reader: CropReader | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Gives the batch with crops in place of images."""
        import pyarrow as pa

        if self._image_column not in batch.column_names:
            raise InputError(f"expected a column {self._image_column!r}, there are: {', '.join(batch.column_names)}")
        if self._reader is None:
            with hold_node():  # one process of a node fetches the detector's weights, if need be
                detector = None if self._aligned else Detector(min_face=self._min_face)
            self._reader = CropReader(self._template, detector)
        paths = [""] * len(batch) if self._path_column is None else batch[self._path_column].to_pylist()
        crops = [
            pickle.dumps(self._read(self._reader, str(path or ""), cell))
            for path, cell in zip(paths, _list_cells(batch[self._image_column]), strict=True)
        ]
        others = batch.drop_columns([self._image_column])
        return others.append_column(_CROPS, pa.array(crops, pa.large_binary()))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_reader": None}  # made where it is used

    def _read(self, reader: CropReader, path: str, cell: object) -> FileCrops:
        if isinstance(cell, dict):
            cell = cell.get("bytes")
        if isinstance(cell, bytes):
            return reader(EncodedImage(path, cell))
        if isinstance(cell, np.ndarray):
            if cell.dtype == np.uint8 and cell.ndim == 3 and cell.shape[2] == 3 and cell.size:
                return reader.find_crops(path, np.array(cell))  # Ray's arrays are read-only
            got = f"{cell.dtype} {list(cell.shape)}"
        else:
            got = "nothing" if cell is None else type(cell).__name__
        reason = f"expected the bytes of an image or uint8 [H, W, 3], got {got}"
        return FileCrops(path, status="unreadable", reason=reason)


class ScoreCrops:
    """The stage with a network: scores what :class:`ReadCrops` gives. It runs as actors.

    Args:
        make_scorer: Makes the Scorer; called once, in the actor.
        template: What the crops are like.
        path_column: The column that names the images; it is not in the result, where `path` has it. None for none.
        embeddings: Whether the result has a column `embedding`.
        num_cpus: How many threads the Scorer uses on a CPU.
    """

    def __init__(
        self,
        make_scorer: Callable[[], Scorer],
        template: CropTemplate,
        path_column: str | None = None,
        embeddings: bool = False,
        num_cpus: float = 1,
    ) -> None:
        import torch

        torch.set_num_threads(max(1, int(num_cpus)))
        with hold_node():  # one process of a node fetches the weights, if need be
            self._scorer = make_scorer()
        if get_template(self._scorer) != template:
            raise InputError(f"expected a scorer of {template}, the preset's, got one of {get_template(self._scorer)}")
        self._path_column = path_column
        self._embeddings = embeddings
        self._no_embedding = make_no_embedding(self._scorer, template.size)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Gives one row per face, or per image without any."""
        import pyarrow as pa

        others = batch.drop_columns([_CROPS, *([self._path_column] if self._path_column else [])])
        carried = others.combine_chunks().to_batches()[0] if others.num_columns and others.num_rows else None
        files: list[FileCrops] = [pickle.loads(cell.as_buffer()) for cell in batch[_CROPS]]
        size = max(len(files), 1)
        stacks = stack_crops(files, size)
        images = [part.to(self._scorer.device) for part in stacks.images]
        scored = score_batch(stacks._replace(images=images), self._scorer, self._no_embedding)
        rows = [
            each._replace(carried=None if carried is None else CarriedRow(carried, row))
            for row, each in enumerate(scored)
        ]
        table = ArrowTable(others.schema.remove_metadata(), with_embeddings=self._embeddings)
        return pa.Table.from_batches([table.build(rows, len(self._no_embedding))])


def _list_cells(column: pa.ChunkedArray) -> Iterator[object]:
    """Lists the cells of a column: bytes, dictionaries, None, or arrays where it has tensors of Ray's."""
    import pyarrow as pa

    for chunk in column.chunks:
        if isinstance(chunk.type, pa.BaseExtensionType):
            yield from chunk.to_numpy(zero_copy_only=False)
        else:
            for cell in chunk:
                yield cell.as_py()
