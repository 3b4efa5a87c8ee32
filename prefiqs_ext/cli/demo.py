"""`prefiqs demo`: a table and a picture of one face made worse."""

from __future__ import annotations

import os

import click

from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.text import format_path

_SHEET = "demo.png"
_TITLE = "One face, thirteen ways, sorted by quality (0 to 1, higher is better)"


@click.command()
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False),
    default=".",
    show_default="the working directory",
    help=f"The folder that gets {_SHEET}; made if it does not exist.",
)
def demo(output: str) -> None:
    """Score one face and twelve worse versions of it.

    Prints a table and draws a picture, both sorted by quality.

    The photo is NASA's portrait of Eileen Collins, public domain, which comes with scikit-image. Blur, noise,
    down-sampling, occlusion, darkness and JPEG compression, each mild and strong. Nothing is drawn at random: the same
    version gives the same picture.

    \b
    Example:
      prefiqs demo --output /tmp/demo
    """
    try:
        from prefiqs_ext.demo import astronaut, ranked, table
    except ModuleNotFoundError as error:
        if error.name != "skimage":
            raise
        raise click.ClickException("the demo's photo comes with scikit-image: pip install scikit-image") from error
    from prefiqs_ext.demo.sheet import contact_sheet

    try:
        os.makedirs(output, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make the folder {format_path(output)} ({error.strerror})") from error
    path = os.path.join(output, _SHEET)
    with atomic_write(path) as file:
        faces = ranked(astronaut())
        contact_sheet(faces, _TITLE).save(file, "png", optimize=True)
    click.echo(table(faces))
    click.echo(f"Picture: {format_path(path)}", err=True)
