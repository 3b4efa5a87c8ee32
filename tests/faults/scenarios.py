"""What a user lets write files: `prefiqs score` with each kind of output, settings, the evaluation's cache, weights."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from onnx import helper

from prefiqs_ext import Scorer
from prefiqs_ext.cli import main
from prefiqs_ext.cli.options import ScoringOptions
from prefiqs_ext.evaluation.cache import FileCache
from prefiqs_ext.exceptions import PrefiqsError
from prefiqs_ext.models import weights
from tests.onnx_files import floats, make_model


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Something that writes files into the working directory.

    Attributes:
        run: Does it. Returns the exit code.
        resume: Does it where `run` was ended before; another function than `run` where users give other options.
        prepare: Makes what is in the folder before, which is what an earlier run has left.
        is_result: Whether a name is that of a result, which others read.
        may_ignore: Whether a full disk need not end it.
    """

    run: Callable[[], int]
    resume: Callable[[], int]
    prepare: Callable[[Path], object] = lambda folder: None
    is_result: Callable[[str], bool] = lambda name: ".part" not in name and ".final" not in name
    may_ignore: bool = False

    def read(self, folder: Path) -> dict[str, bytes]:
        """Reads all results that are there, at any depth, by their paths below the folder."""
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        return {
            str(file.relative_to(folder)): file.read_bytes()
            for file in files
            if self.is_result(str(file.relative_to(folder)))
        }


@cache
def make_network(folder: Path) -> str:
    """Makes a small network; blank images have no direction in it."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", strides=[16, 16]),
        helper.make_node("Flatten", ["c"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "g"], ["y"], name="gemm"),
    ]
    constants = {"w": floats(4, 3, 16, 16), "g": floats(4 * 7 * 7, 5, seed=1)}
    file = folder / "small.onnx"
    file.write_bytes(make_model(nodes, ("n", 3, 112, 112), constants).SerializeToString())
    return str(file)


@cache
def make_crops(folder: Path) -> Path:
    """Makes a crop and a file that is no image: a row with numbers and one without."""
    crops = folder / "crops"
    crops.mkdir()
    cv2.imwrite(str(crops / "a.png"), np.random.default_rng(3).integers(0, 256, (112, 112, 3), dtype=np.uint8))
    (crops / "text.jpg").write_text("text")
    return crops


@cache
def make_scorer(network: str) -> Scorer:
    """Makes the scorer once, for all forks."""
    torch.set_num_threads(1)
    return Scorer(network, preset="sface", on_bad="nan", rank_by="quality")


def run_command(*arguments: str) -> int:
    """Runs the command line in this process; returns the exit code."""
    try:
        main(arguments, prog_name="prefiqs")
    except SystemExit as end:
        sys.stdout.flush()
        return int(end.code or 0)
    return 97


def _score(*more: str) -> Callable[[Path], Scenario]:
    def make(inputs: Path) -> Scenario:
        network = make_network(inputs)
        scorer = make_scorer(network)
        ScoringOptions.make_scorer = lambda _: scorer  # type: ignore[method-assign]
        arguments = ["score", str(make_crops(inputs)), "--aligned", "--model", network, "--preset", "sface"]
        arguments += ["--batch-size", "1", "--workers", "0", *more]
        return Scenario(lambda: run_command(*arguments), lambda: run_command(*arguments, "--resume"))

    return make


def _save_settings(inputs: Path) -> Scenario:
    settings = make_scorer(make_network(inputs)).settings
    older = dataclasses.replace(settings, rank_by=None)

    def save() -> int:
        return _say_errors(lambda: settings.save("settings.json"))

    return Scenario(save, save, lambda folder: older.save(folder / "settings.json"))


def _keep_in_cache(inputs: Path) -> Scenario:
    arrays = {name: np.arange(12, dtype=np.float32).reshape(4, 3) + at for at, name in enumerate(("a", "b"))}

    def compute() -> int:
        os.environ["PREFIQS_HOME"] = os.getcwd()
        cache = FileCache()
        found = cache.load({"of": "a test"}, ("a", "b"), 4)
        if found is None:
            cache.keep({"of": "a test"}, arrays)
        return int(found is not None and any((found[name] != arrays[name]).any() for name in arrays))

    return Scenario(compute, compute, is_result=lambda name: name.endswith(".npy"), may_ignore=True)


def _fetch_weights(inputs: Path) -> Scenario:
    network = Path(make_network(inputs))
    entry = weights.KNOWN["sface"]
    data = network.read_bytes()
    weights.KNOWN["sface"] = dataclasses.replace(
        entry, size=len(data), sha256=hashlib.sha256(data).hexdigest(), file="sface.onnx"
    )

    def fetch() -> int:
        os.environ["PREFIQS_HOME"] = os.getcwd()
        return run_command("weights", "fetch", "sface", "--source", str(network))

    return Scenario(fetch, fetch, is_result=lambda name: name == "sface.onnx")


def _say_errors(run: Callable[[], object]) -> int:
    try:
        run()
    except PrefiqsError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


SCENARIOS: dict[str, Callable[[Path], Scenario]] = {
    "csv": _score("-o", "t.csv"),
    "csv and embeddings": _score("-o", "t.csv", "--embeddings", "e.npy"),
    "jsonl and embeddings": _score("-o", "t.jsonl", "--embeddings", "e.npy"),
    "txt": _score("-o", "t.txt"),
    "parquet": _score("-o", "t.parquet", "--embedding-column"),
    "top, csv and embeddings": _score("-o", "t.csv", "--embeddings", "e.npy", "--top", "1"),
    "below, jsonl": _score("-o", "t.jsonl", "--below", "2"),
    "settings": _save_settings,
    "cache": _keep_in_cache,
    "weights": _fetch_weights,
}
