"""The `prefiqs` command in this process: its exit code and what it prints. tests/conftest.py has it as a fixture."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from prefiqs_ext.cli import main


class Result(NamedTuple):
    code: object
    out: str
    err: str


class Command:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Result:
        with pytest.raises(SystemExit) as end:
            main(list(arguments), prog_name="prefiqs")
        return Result(end.value.code, *self._capsys.readouterr())
