"""`prefiqs degrade`: a harder set from a folder of faces."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from prefiqs_ext.cli.messages import describe_number, tell
from prefiqs_ext.cli.paths import INPUT_FOLDER
from prefiqs_ext.cli.shared_options import allow_duplicates_option
from prefiqs_ext.cli.wrong_usage import refuse_usage
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.atomic_write import atomic_write, make_output_folder, write_folder
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.text import format_csv, format_csv_path, format_path

if TYPE_CHECKING:
    from prefiqs_ext.faces.degrade import Step

_COLUMNS = ("path", "kinds", "grades", "parameters")
_TABLE = "degradations.csv"


@click.command()
@click.argument("data", type=INPUT_FOLDER)
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder to write to: a new or an empty one.",
)
@click.option(
    "--seed",
    type=int,
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of the degradations. Together with an image's path below DATA it decides what is done to the image.",
)
@click.option(
    "--kinds",
    metavar="NAMES",
    help="What to draw from, separated by commas: occlusion, light, blur, down-sampling, darkness, noise, contrast, "
    "gamma, JPEG.  [default: all but light, contrast and gamma]",
)
@allow_duplicates_option
def degrade(data: Path, output: Path, seed: int, kinds: str | None, allow_duplicates: bool) -> None:
    """Make a harder set for `prefiqs evaluate` by degrading faces.

    DATA has one folder per person, with aligned crops. One image in eight stays clean, half of them get one
    degradation, and the others two or three: occlusion, blur, down-sampling, darkness, noise or JPEG (or what --kinds
    names), each in one of five grades. Only the seed and an image's path below DATA decide what it gets. The results
    are written to PERSON/NAME.png, without loss. When all of them are there, degradations.csv is written too: path,
    kinds, grades (1 to 5) and parameters of each image.

    \b
    Example:
      prefiqs degrade crops/ --output degraded --seed 0
      prefiqs evaluate degraded --output evaluation
    """
    from PIL import Image

    from prefiqs_ext.evaluation.datasets.duplicates import refuse_shared
    from prefiqs_ext.evaluation.datasets.readers import read_folders
    from prefiqs_ext.evaluation.datasets.sources import get_name
    from prefiqs_ext.evaluation.image_set import ImageSet
    from prefiqs_ext.faces import read_rgb
    from prefiqs_ext.faces.degrade import DEFAULT_KINDS, draw_steps
    from prefiqs_ext.faces.degrade import degrade as degrade_image

    drawn_from = DEFAULT_KINDS if kinds is None else tuple(kind.strip() for kind in kinds.split(","))
    with refuse_usage():
        draw_steps("", seed, 1, drawn_from)
        _refuse_used(output)
    faces = read_folders(data, tell)
    targets = _name_targets(data, list(map(get_name, faces.images)))
    if not allow_duplicates:  # each would be degraded in its own way, so that nothing could find them later
        refuse_shared(faces, ImageSet(faces.images).contents)
    rows = []
    for target, path in tqdm(targets.items(), unit="file", disable=None, leave=False):
        image = read_rgb(path)
        steps = draw_steps(target, seed, image.shape[0], drawn_from)
        if not os.path.isdir((output / target).parent):
            make_output_folder((output / target).parent)
        with atomic_write(str(output / target)) as file:
            Image.fromarray(degrade_image(image, steps)).save(file, "png")
        rows.append([format_csv_path(target), *_format_steps(steps)])
    write_folder(output, {_TABLE: format_csv(_COLUMNS, rows)})
    tell(f"{describe_number(len(targets), 'file')} degraded; written to {format_path(str(output))}")


def _refuse_used(folder: Path) -> None:
    name = format_path(str(folder))
    with explain_read_errors(name, remedy="name another folder with --output"):
        used = os.path.isdir(folder) and any(folder.iterdir())
    if used:
        raise InputError(f"{name} is not empty: name another folder with --output, or empty it")


def _name_targets(data: Path, paths: list[str]) -> dict[str, str]:
    """Return where each image goes: its path below the data with the suffix .png -> the path where it is."""
    targets: dict[str, str] = {}
    for path in paths:
        target = Path(path).relative_to(data).with_suffix(".png").as_posix()
        other = targets.setdefault(target, path)
        if other != path:
            raise InputError(
                f"{format_path(other)} and {format_path(path)} would both become {format_path(target)}: "
                "rename one of them"
            )
    return targets


def _format_steps(steps: list[Step]) -> list[str]:
    """Return kinds, grades and parameters, as in `blur+noise`, `2+3` and a JSON list with one object per kind."""
    parameters = json.dumps([step.parameters for step in steps])
    return ["+".join(step.kind for step in steps), "+".join(str(step.grade) for step in steps), parameters]
