"""A Ray cluster of several nodes on this machine, from which processes and nodes are taken; an object store.

It takes minutes, so `make test-ray` runs it, and `make test` does not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.containers import make_crops, write_tar

pytestmark = pytest.mark.cluster
ray = pytest.importorskip("ray")
_SHARDS, _CROPS = 12, 40


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    crops = make_crops(_CROPS)
    os.mkdir("shards")
    for index in range(_SHARDS):
        write_tar(Path(f"shards/{index:02}.tar"), {f"{index}-{name}": data for name, data in crops.items()})
    return tmp_path


@pytest.fixture
def cluster() -> Iterator[object]:
    """A head without CPUs, and three nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 100 << 20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
    for _ in range(3):
        made.add_node(num_cpus=1, **memory)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def _prefiqs(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from prefiqs_ext.cli import main; main(sys.argv[1:])", *arguments]


def _begin(*more: str) -> subprocess.Popen[str]:
    shards = sorted(map(str, Path("shards").glob("*.tar")))
    command = _prefiqs("score", *shards, "--aligned", "--embedding-column", "--engine", "ray", *more)
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def _list_outputs() -> list[Path]:
    return sorted(Path("out").rglob("*.parquet"))


def _wait_for_outputs(count: int, run: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while len(_list_outputs()) < count:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)


def _end(run: subprocess.Popen[str]) -> str:
    _, err = run.communicate(timeout=400)
    assert run.returncode == 0, err
    return err.splitlines()[-1]


def _check_outputs() -> None:
    """Nothing is lost, nothing is there twice, and the rows are those of one process."""
    rows = pa.concat_tables([pq.read_table(file) for file in _list_outputs()])
    assert len(_list_outputs()) == _SHARDS
    assert len(set(rows["path"].to_pylist())) == rows.num_rows == _SHARDS * _CROPS
    command = _prefiqs("score", "shards/03.tar", "--aligned", "--embedding-column", "-o", "one.parquet")
    subprocess.run([*command, "--workers", "0"], check=True, capture_output=True)
    assert pq.read_table("out/shards/03.tar.parquet").equals(pq.read_table("one.parquet"))
    assert not list(Path("out").rglob("*.part"))


def test_a_worker_that_is_killed_halfway(cluster: object) -> None:
    run = _begin("-o", "out", "--address", cluster.address, "--concurrency", "2")  # type: ignore[attr-defined]
    _wait_for_outputs(3, run)
    actors = [
        each for each in psutil.process_iter(["name", "cmdline"]) if "MapWorker" in " ".join(each.cmdline() or [])
    ]
    assert actors
    actors[0].send_signal(signal.SIGKILL)
    assert "480 images: 480 ok" in _end(run)
    _check_outputs()


def test_a_node_that_is_lost_halfway(cluster: object) -> None:
    run = _begin("-o", "out", "--address", cluster.address, "--concurrency", "2")  # type: ignore[attr-defined]
    _wait_for_outputs(3, run)
    for node in list(cluster.worker_nodes):  # type: ignore[attr-defined]
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        if any("MapWorker" in " ".join(each.cmdline()) for each in raylet.children(recursive=True)):
            cluster.remove_node(node, allow_graceful=False)  # type: ignore[attr-defined]
            break
    else:
        pytest.fail("no node has an actor")
    assert "480 images: 480 ok" in _end(run)
    _check_outputs()


def test_an_interrupted_run_is_resumed(cluster: object) -> None:
    arguments = ("-o", "out", "--address", cluster.address, "--concurrency", "2")  # type: ignore[attr-defined]
    run = _begin(*arguments)
    _wait_for_outputs(3, run)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130
    before = {file: file.stat().st_mtime_ns for file in _list_outputs()}
    assert 3 <= len(before) < _SHARDS
    Path("out/shards/99.tar.parquet.0123.part").write_bytes(b"half an output")
    said = _end(_begin(*arguments, "--resume"))
    assert f"; {len(before)} finished before; " in said
    assert {file: file.stat().st_mtime_ns for file in before} == before
    os.remove("out/shards/99.tar.parquet.0123.part")
    _check_outputs()


def test_photos_are_read_by_tasks_on_other_nodes(cluster: object) -> None:
    """And one that ends its process costs nothing but itself."""
    skimage = pytest.importorskip("skimage.data")
    import cv2

    os.mkdir("photos")
    for index in range(20):
        photo = skimage.astronaut()[:256, 100 - index : 356 - index]
        cv2.imwrite(f"photos/{index:02}.png", photo[..., ::-1])
    Path("photos/20.png").write_bytes(b"text")
    command = _prefiqs("score", "photos", "-o")
    more = ["--engine", "ray", "--address", cluster.address, "--concurrency", "1", "--workers", "2"]  # type: ignore[attr-defined]
    subprocess.run([*command, "out", *more], check=True, capture_output=True)
    subprocess.run([*command, "one.parquet", "--workers", "0"], check=True, capture_output=True)
    (output,) = _list_outputs()
    assert pq.read_table(output).equals(pq.read_table("one.parquet"))


def test_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are read from a server that speaks S3, and outputs written to it, by a cluster that the command starts."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in [("ENDPOINT_URL", f"http://{host}:{port}"), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")]:
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        store.mkdir("faces")
        for file in sorted(Path("shards").glob("*.tar"))[:3]:
            store.put_file(str(file), f"faces/shards/{file.name}")
        command = _prefiqs("score", "s3://faces/shards/*.tar", "--aligned", "--engine", "ray", "-o", "s3://faces/out")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        store.invalidate_cache()
        found = store.find("faces/out")
        names = [f"faces/out/faces/shards/{index:02}.tar.parquet" for index in range(3)]
        assert found == [*names, "faces/out/run.json"]
        one = ("score", "s3://faces/shards/01.tar", "--aligned", "-o", "one.parquet")
        subprocess.run(_prefiqs(*one), check=True, capture_output=True)
        with store.open(names[1]) as file:
            assert pq.read_table(file).equals(pq.read_table("one.parquet"))
        missing = _prefiqs("score", "s3://faces/shards/*.tar", "--engine", "ray", "-o", "s3://none/out")
        done = subprocess.run(missing, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("Error: cannot ")
    finally:
        server.stop()
