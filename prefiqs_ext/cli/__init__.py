"""The `prefiqs` command. Results go to stdout, all else to stderr; a failure is one line.

PREFIQS_DEBUG=1 shows its trace. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
from typing import Any

import click

from prefiqs_ext import __version__
from prefiqs_ext.cli import analyse as _analyse
from prefiqs_ext.cli import calibrate as _calibrate
from prefiqs_ext.cli import degrade as _degrade
from prefiqs_ext.cli import demo as _demo
from prefiqs_ext.cli import evaluate as _evaluate
from prefiqs_ext.cli import info as _info
from prefiqs_ext.cli import report as _report
from prefiqs_ext.cli import score as _score
from prefiqs_ext.cli import tune as _tune
from prefiqs_ext.cli import weights as _weights
from prefiqs_ext.utils.text import escape_unprintable

_INTERRUPTED = 130


class _Commands(click.Group):
    """Turns every exception into one line and exit code 1, but where PREFIQS_DEBUG is set."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click ends quietly, or says it
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(_INTERRUPTED)
        except Exception as error:
            if os.environ.get("PREFIQS_DEBUG"):
                raise
            line = " ".join(str(error).split())
            if not isinstance(error, (ValueError, OSError, MemoryError)):  # what the package raises for bad input
                line = f"{type(error).__name__}: {line} (a fault of prefiqs: PREFIQS_DEBUG=1 shows where)"
            raise click.ClickException(escape_unprintable(line or type(error).__name__)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="prefiqs")
def main() -> None:
    """Face image quality from pruning a recognition network (PreFIQs).

    \b
    Examples:
      prefiqs score photos/ --output qualities.csv
      prefiqs score crops/ --aligned --top 10
      prefiqs weights list
      prefiqs weights fetch sface
      prefiqs report photos/ --output report.html
      prefiqs demo

    \b
    Completion by TAB, in ~/.bashrc (zsh_source and fish_source for others):
      eval "$(_PREFIQS_COMPLETE=bash_source prefiqs)"

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. PREFIQS_DEBUG=1 shows the trace of a failure.
    """


main.add_command(_analyse.analyse)
main.add_command(_calibrate.calibrate)
main.add_command(_degrade.degrade_command)
main.add_command(_demo.demo)
main.add_command(_evaluate.evaluate)
main.add_command(_info.info)
main.add_command(_report.report)
main.add_command(_score.score)
main.add_command(_tune.tune)
main.add_command(_weights.weights)
