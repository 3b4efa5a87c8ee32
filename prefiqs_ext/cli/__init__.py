"""The `prefiqs` command. Results go to stdout, all else to stderr; a failure is one line, never a traceback.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

from typing import Any

import click

from .. import __version__
from . import analyse as _analyse
from . import calibrate as _calibrate
from . import degrade as _degrade
from . import demo as _demo
from . import evaluate as _evaluate
from . import info as _info
from . import report as _report
from . import score as _score
from . import tune as _tune
from . import weights as _weights

_INTERRUPTED = 130


class _Commands(click.Group):
    """Turns what the package raises for bad input and bad files into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly
        except (ValueError, OSError, MemoryError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(_INTERRUPTED)


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

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
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
