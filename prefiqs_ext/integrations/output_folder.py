"""The folder of a run on many machines: shared by all nodes, or the address of an object store.

It holds `run.json`, which says what the run is, and one file per finished unit. A file is written under another name
and then renamed, so that whatever has its name is complete.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from prefiqs_ext.exceptions import FileAccessError, FileFormatError, InputError, PrefiqsError
from prefiqs_ext.files.remote import explain_remote_errors, find_file_system
from prefiqs_ext.utils.strict_json import JSON
from prefiqs_ext.utils.suffixes import is_address
from prefiqs_ext.utils.text import format_path, format_untrusted

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_RUN = "run.json"
_PART = ".part"
_MOST_BYTES = 1 << 25


@dataclass(frozen=True)
class OutputFolder:
    """A folder that all machines of a run write to.

    Attributes:
        path: An absolute path, or an address.
    """

    path: str

    def begin(self, settings: Mapping[str, JSON], *, resume: bool) -> str:
        """Begins a run, or goes on with one, and finds out whether the folder can be written.

        Args:
            settings: What the rows are made with.
            resume: Whether to go on with an earlier run, if there is one.

        Returns:
            What the run is called.

        Raises:
            InputError: There is an earlier run that is not to be resumed, or that had other settings.
            FileAccessError: The folder cannot be read or written.
        """
        name = format_path(self.path)
        earlier = self._read_run()
        if earlier is not None:
            if not resume:
                raise InputError(f"{name} has an earlier run: go on with --resume, or name another folder")
            stored = earlier.get("settings")
            made = stored if isinstance(stored, dict) else {}
            for key, value in settings.items():
                if made.get(key) != value:
                    was, given = (format_untrusted(repr(each)) for each in (made.get(key), value))
                    remedy = "go on with the same, or name another folder"
                    raise InputError(f"{name} was made with {key} {was}, not {given}: {remedy}")
        run = earlier.get("run") if earlier is not None else None
        run = run if isinstance(run, str) else uuid.uuid4().hex
        # Written again by a run that goes on: so a folder that is full or locked is found before the work.
        data = json.dumps({"run": run, "settings": dict(settings)}).encode()
        self._put(_RUN, lambda file_system, part: file_system.pipe_file(part, data))
        return run

    def check_run(self, run: str) -> None:
        """Checks that this machine sees the folder of the run.

        Raises:
            InputError: It does not.
        """
        seen = self._read_run()
        if seen is None or seen.get("run") != run:
            raise InputError(
                f"a node does not see the run in {format_path(self.path)}: name a folder that all nodes share, or an "
                "address such as s3://bucket/folder"
            )

    def list_finished(self) -> set[str]:
        """Lists the names of the finished files, relative to the folder."""
        file_system, place = find_file_system(self._address)
        with explain_remote_errors(self.path):
            file_system.invalidate_cache()
            found = file_system.find(place) if file_system.exists(place) else []
        place = place.rstrip("/") + "/"
        names = (str(each).removeprefix(place) for each in found)
        return {name for name in names if name.endswith(".parquet")}

    def get_address(self, name: str) -> str:
        """Gives the path or address of a file in the folder."""
        return f"{self._address.rstrip('/')}/{name}"

    def has(self, name: str) -> bool:
        """Whether a file is finished."""
        file_system, place = find_file_system(self.get_address(name))
        with explain_remote_errors(self.get_address(name)):
            file_system.invalidate_cache()
            return bool(file_system.exists(place))

    def publish(self, file: Path, name: str) -> None:
        """Copies a file into the folder, where it appears complete.

        Raises:
            FileAccessError: It cannot be written.
        """
        self._put(name, lambda file_system, part: file_system.put_file(str(file), part))

    def _put(self, name: str, write: Callable[[AbstractFileSystem, str], object]) -> None:
        """Has a file written under another name, and renames it."""
        file_system, place = find_file_system(self.get_address(name))
        part = f"{place}.{uuid.uuid4().hex}{_PART}"
        with self._explain_write_errors(name):
            self._make_parent(place)
            try:
                write(file_system, part)
                file_system.mv(part, place)
            except BaseException:
                self._remove(part)
                raise

    def _make_parent(self, place: str) -> None:
        if not is_address(self.path):  # a store has no folders, and must not get a bucket by mistake
            Path(place).parent.mkdir(parents=True, exist_ok=True)

    def _remove(self, place: str) -> None:
        file_system, _ = find_file_system(self._address)
        try:
            file_system.rm_file(place)
        except Exception:  # it was not written, or cannot be reached any more; the first error is the one to tell
            return

    def _read_run(self) -> dict[str, JSON] | None:
        file_system, place = find_file_system(self.get_address(_RUN))
        with explain_remote_errors(self.get_address(_RUN)):
            file_system.invalidate_cache()
            if not file_system.exists(place):
                return None
            data = file_system.cat_file(place, end=_MOST_BYTES)
        try:
            values = json.loads(data)
        except ValueError as error:
            raise FileFormatError(f"{format_path(self.get_address(_RUN))}: expected JSON; {error}") from error
        if not isinstance(values, dict):
            raise FileFormatError(f"{format_path(self.get_address(_RUN))}: expected an object of JSON")
        return cast(dict[str, JSON], values)

    @property
    def _address(self) -> str:
        return self.path if is_address(self.path) else f"file://{self.path}"

    @contextmanager
    def _explain_write_errors(self, name: str) -> Iterator[None]:
        """Turns whatever a store raises into one line."""
        try:
            yield
        except PrefiqsError:
            raise
        except Exception as error:
            text = error.strerror if isinstance(error, OSError) and error.strerror else format_untrusted(error, 200)
            raise FileAccessError(
                f"cannot write {format_path(self.get_address(name))} ({text or type(error).__name__}); name another "
                "place, or check your credentials"
            ) from error
