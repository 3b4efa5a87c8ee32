"""`prefiqs score --engine ray`: what the command does with a cluster."""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ParamSpec

import click
from tqdm import tqdm

from prefiqs_ext.cli.messages import describe_counts, describe_number, tell
from prefiqs_ext.cli.options import ScoringOptions, omit, pick
from prefiqs_ext.cli.throughput import Throughput
from prefiqs_ext.cli.wrong_usage import refuse_usage
from prefiqs_ext.exceptions import InputError, WorkerError
from prefiqs_ext.utils.optional_packages import require_packages
from prefiqs_ext.utils.strict_json import JSON
from prefiqs_ext.utils.suffixes import is_address
from prefiqs_ext.utils.text import format_path, format_untrusted

_P = ParamSpec("_P")
_NAMES = ("engine", "address", "concurrency")
_MOST_READERS = 16


@dataclass(frozen=True)
class Cluster:
    """Where Ray runs, and how much of it the command takes.

    Attributes:
        address: of a cluster, or of a client's server. None: RAY_ADDRESS, else one is started here.
        concurrency: actors that score. None: one per GPU, or what the CPUs have room for.
    """

    address: str | None = None
    concurrency: int | None = None


def engine_options(command: Callable[_P, None]) -> Callable[_P, None]:
    """Add --engine, --address and --concurrency; the command gets `cluster`, a :class:`Cluster` or None."""

    @functools.wraps(command)
    def with_engine(*_: _P.args, **given: _P.kwargs) -> None:
        context = click.get_current_context()
        own = pick(context.params, _NAMES)
        cluster = Cluster(own["address"], own["concurrency"]) if own["engine"] == "ray" else None
        if cluster is None and (own["address"] is not None or own["concurrency"] is not None):
            raise click.UsageError("--address and --concurrency are for --engine ray: give that too")
        context.invoke(command, **omit(given, own), cluster=cluster)

    for option in reversed(_OPTIONS):
        with_engine = option(with_engine)
    return with_engine


_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where to work: here, or on a Ray cluster; --output then names a folder that all nodes share, or an "
        "address.",
    ),
    click.option(
        "--address", metavar="ADDRESS", help="The Ray cluster. [default: RAY_ADDRESS, else one is started here]"
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(min=1),
        metavar="N",
        help="Actors that score, of --threads CPUs each. [default: one per GPU; else as the CPUs have room for]",
    ),
)


def score_on_cluster(
    paths: Iterator[str],
    output: str,
    cluster: Cluster,
    scoring: ScoringOptions,
    throughput: Throughput,
    settings: dict[str, JSON],
    *,
    aligned: bool,
    min_face: float | None,
    image_column: str,
    embedding_column: bool,
    resume: bool,
) -> None:
    """Score files on a cluster; one output per archive, Parquet file or slice of image files.

    Args:
        paths: what find_paths gives.
        output: the folder to write to, or its address.
        cluster: where Ray runs.
        scoring: which network scores.
        throughput: --workers are tasks that read for one actor, --threads are an actor's.
        settings: what the rows depend on.
        aligned: the images are ready crops.
        min_face: width in pixels from which faces in photos are found. None: 60.
        image_column: the column of Parquet files that has the images.
        embedding_column: whether the outputs have a column of embeddings.
        resume: go on with an earlier run.

    Raises:
        InputError: nothing could be scored, or the command asks for more than the cluster has.
        WorkerError: some outputs could not be made.
    """
    require_packages("ray", "ray", "pyarrow")
    from prefiqs_ext.faces.detect import MIN_FACE
    from prefiqs_ext.integrations.output_folder import OutputFolder
    from prefiqs_ext.integrations.ray_run import Job, PendingUnits, list_units, run_units

    folder = OutputFolder(output if is_address(output) else os.path.abspath(output))
    with refuse_usage(kind=InputError):
        run = folder.begin(settings, resume=resume)
    on_gpu = scoring.device == "cuda"
    threads = throughput.threads or 1
    cpus, gpus = _connect(cluster.address)
    concurrency = cluster.concurrency or (
        int(gpus) if on_gpu else max(1, int(cpus / (threads if aligned else 2 * threads)))
    )
    readers = throughput.workers
    if readers is None:
        free = int(cpus) - concurrency * threads
        readers = 0 if aligned and not on_gpu else max(0, min(_MOST_READERS, free // concurrency))
    if concurrency * threads + min(readers, 1) > cpus or (on_gpu and concurrency > gpus):
        raise InputError(
            f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs: too few for {concurrency} actors of {threads} CPUs"
            f"{' and a task that reads for them' if readers else ''}; lower --concurrency, --threads or --workers"
        )
    job = Job(
        make_scorer=scoring.make_scorer,
        output=folder,
        run=run,
        folder=os.getcwd(),
        aligned=aligned,
        min_face=min_face or MIN_FACE,
        image_column=image_column,
        embedding_column=embedding_column,
        batch_size=throughput.batch_size,
        threads=threads,
        readers=readers,
    )
    pending = PendingUnits(list_units(paths), folder.list_finished())
    counts: Counter[str] = Counter()
    images = failed = 0
    with tqdm(unit="file", disable=None, leave=False) as bar:
        for result in run_units(pending, job, concurrency=concurrency, num_gpus=1 if on_gpu else 0):
            bar.update()
            for reason in result.reasons:
                tell(reason)
            if result.error:
                tell(f"{format_path(result.name)}: not written: {result.error}")
                failed += 1
            counts.update(result.counts)
            images += result.images
    said = f"{describe_number(images, 'image')}: {describe_counts(counts.items())}"
    if pending.finished:
        said += f"; {pending.finished:,} finished before"
    if failed:
        raise WorkerError(f"{failed:,} outputs could not be written; {said}; give the same command with --resume")
    if not counts["ok"] and not pending.finished:
        raise InputError(f"nothing could be scored: {said}")
    tell(f"{said}; written to {format_path(output)}")


def _connect(address: str | None) -> tuple[float, float]:
    """Connect to a cluster, or start one, and return how many CPUs and GPUs it has."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its lines would stand between ours
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        if not ray.is_initialized():
            ray.init(
                address, include_dashboard=None if address else False, log_to_driver=False, logging_level=logging.ERROR
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise WorkerError(
            f"expected a Ray cluster at {address or 'RAY_ADDRESS'}: {format_untrusted(error, 200)}"
        ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("CPU", 0), resources.get("GPU", 0)
