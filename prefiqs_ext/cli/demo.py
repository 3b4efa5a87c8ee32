"""`prefiqs demo`: one face and twelve worse versions of it, scored and drawn."""

from __future__ import annotations

from pathlib import Path

import click

from prefiqs_ext.cli.messages import print_result, tell
from prefiqs_ext.cli.shared_options import output_folder_option
from prefiqs_ext.ranking import NAMES
from prefiqs_ext.utils.atomic_write import atomic_write, make_output_folder
from prefiqs_ext.utils.optional_packages import require_packages
from prefiqs_ext.utils.text import format_path

_SHEET = "demo.png"
_TITLE = "One face, thirteen ways, sorted by {} (higher is better)"


@click.command()
@output_folder_option(".", shown="the working directory", gets=f"The folder that gets {_SHEET}")
def demo(output: Path) -> None:
    """Score one face and twelve worse versions of it.

    Prints a table and draws a picture, both sorted by the score. The network is the built-in one, SFace, whose score
    is the norm of the embedding.

    The photo is NASA's portrait of Eileen Collins. It is in the public domain and comes with scikit-image. It is made
    worse by blur, noise, down-sampling, occlusion, darkness and JPEG compression, each in a mild and a strong dose. The
    same version always gives the same picture.

    \b
    Example:
      prefiqs demo --output /tmp/demo
    """
    require_packages("demo", "skimage")  # its photo
    from prefiqs_ext.default_scorer import get_default_scorer
    from prefiqs_ext.demo import find_astronaut, format_faces, rank_faces
    from prefiqs_ext.demo.sheet import draw_sheet

    make_output_folder(output)
    path = output / _SHEET
    with atomic_write(str(path)) as file:
        faces = rank_faces(find_astronaut())
        rank_by = get_default_scorer().rank_by
        draw_sheet(faces, _TITLE.format(NAMES[rank_by]), rank_by).save(file, "png", optimize=True)
    for line in format_faces(faces):
        print_result(line)
    tell(f"{len(faces)} faces; the picture is in {format_path(str(path))}")
