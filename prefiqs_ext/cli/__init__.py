"""The `prefiqs` command, one file per subcommand.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage (refused
before the work begins), 130 interrupted. A subcommand's file is imported when it is used, and imports torch only when
it runs: `prefiqs --version`, `--help` and completion take no longer than Python itself.
"""

from __future__ import annotations

import importlib
import traceback

import click
from click.shell_completion import CompletionItem

from prefiqs_ext.cli.messages import open_closed_descriptors
from prefiqs_ext.exceptions import PrefiqsError
from prefiqs_ext.utils.text import describe_error, escape_unprintable
from prefiqs_ext.version import __version__

_INTERRUPTED = 130

COMMANDS = {
    "analyse": "Show what pruning does to a network's scores on your own faces, and what it costs.",
    "calibrate": "Fit a score of 0 to 100 to your own faces and your network.",
    "degrade": "Make a harder set for `prefiqs evaluate` by degrading faces.",
    "demo": "Score one face and twelve worse versions of it.",
    "evaluate": "Measure how well a quality predicts recognition errors on your own faces.",
    "export": "Write the pair of networks as one ONNX file for other runtimes.",
    "info": "Show what is installed, what it uses on this machine, and the weights.",
    "report": "Score a folder and show it as one HTML page.",
    "score": "Score the faces in photos, or ready crops with --aligned.",
    "select": "Keep the best faces of each person, of tables that `prefiqs score` has written.",
    "tune": "Find the pruning that serves your network best.",
    "weights": "List, fetch and find the weights of the built-in networks.",
}
"""Each subcommand and the first line of its help. Its function has the same name as its module in this package."""


class _LazyGroup(click.Group):
    """Imports a subcommand when it is used, and says in one line what a user can do about an error."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"{__name__}.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> object:
        open_closed_descriptors()
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click ends quietly, or says it
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(_INTERRUPTED)
        except Exception as error:
            if ctx.params["debug"]:
                raise
            line = escape_unprintable(describe_error(error))
            if isinstance(error, PrefiqsError):
                raise click.ClickException(line) from error
            if _is_out_of_memory(error):
                what = f"out of memory: {line}" if str(error) else "out of memory"
                raise click.ClickException(f"{what}; use fewer images, or allow more memory") from error
            traceback.print_exc()
            what = f"{type(error).__name__}: {line}" if str(error) else line
            raise click.ClickException(
                f"{what} (this is a fault of prefiqs: please report it with the lines above and `prefiqs info`)"
            ) from error


def _is_out_of_memory(error: Exception) -> bool:
    if not isinstance(error, RuntimeError):  # that is how torch says it
        return isinstance(error, MemoryError)
    from prefiqs_ext.dual.runtime.cuda_graphs import is_out_of_memory

    return is_out_of_memory(error)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="prefiqs")
@click.option(
    "--debug",
    is_flag=True,
    envvar="PREFIQS_DEBUG",
    help="Show the traceback of an error; PREFIQS_DEBUG=1 does the same.  [default: one line]",
)
def main(debug: bool) -> None:
    """Score face images by how well a recognition network can use them (PreFIQs).

    \b
    Examples:
      prefiqs score photo.jpg
      prefiqs score photos/ --output qualities.csv
      prefiqs report photos/ --output report.html
      prefiqs score crops/ --aligned --model backbone.pth --preset arcface
      prefiqs weights list
      prefiqs demo

    \b
    Completion by TAB: put this line into ~/.bashrc (or use zsh_source, fish_source):
      eval "$(_PREFIQS_COMPLETE=bash_source prefiqs)"

    Exit codes: 0 done, 1 failed, 2 wrong usage, found before the work begins, 130 interrupted.
    """
