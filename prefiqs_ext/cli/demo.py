"""`prefiqs demo`: one face and twelve worse versions of it, scored and drawn."""

from __future__ import annotations

from pathlib import Path

import click

from prefiqs_ext.cli.messages import print_result, tell
from prefiqs_ext.exceptions import MissingPackageError
from prefiqs_ext.utils.atomic_write import atomic_write, make_output_folder
from prefiqs_ext.utils.text import format_path

_SHEET = "demo.png"
_TITLE = "One face, thirteen ways, sorted by quality (0 to 1, higher is better)"


@click.command()
@click.option(
    "--output",
    "-o",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    show_default="the working directory",
    help=f"The folder that gets {_SHEET}; it is made if it does not exist.",
)
def demo(output: Path) -> None:
    """Score one face and twelve worse versions of it.

    Prints a table and draws a picture, both sorted by quality. The network is the built-in one, SFace.

    The photo is NASA's portrait of Eileen Collins. It is in the public domain and comes with scikit-image. It is made
    worse by blur, noise, down-sampling, occlusion, darkness and JPEG compression, each in a mild and a strong dose. The
    same version always gives the same picture.

    \b
    Example:
      prefiqs demo --output /tmp/demo
    """
    try:
        from prefiqs_ext.demo import find_astronaut, format_table, rank_faces
    except ModuleNotFoundError as error:
        if error.name != "skimage":
            raise
        raise MissingPackageError("the demo's photo comes with scikit-image: pip install scikit-image") from error
    from prefiqs_ext.demo.sheet import draw_sheet

    make_output_folder(output)
    path = output / _SHEET
    with atomic_write(str(path)) as file:
        faces = rank_faces(find_astronaut())
        draw_sheet(faces, _TITLE).save(file, "png", optimize=True)
    print_result(format_table(faces))
    tell(f"{len(faces)} faces; the picture is in {format_path(str(path))}")
