"""`prefiqs degrade`: a harder set from a folder of faces."""

from __future__ import annotations

import json
from pathlib import Path

import click
from PIL import Image
from tqdm import tqdm

from prefiqs_ext.cli.messages import tell
from prefiqs_ext.cli.people import allow_duplicates_option
from prefiqs_ext.evaluation.datasets.crops import get_name
from prefiqs_ext.evaluation.datasets.duplicates import refuse_shared
from prefiqs_ext.evaluation.datasets.readers import read_folders
from prefiqs_ext.evaluation.inference import ImageSet
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.faces import read_rgb
from prefiqs_ext.faces.degrade import Step, degrade, draw_steps
from prefiqs_ext.utils.atomic_write import atomic_write, write_folder
from prefiqs_ext.utils.text import format_csv, format_path

_COLUMNS = ("path", "kinds", "grades", "parameters")
_TABLE = "degradations.csv"


@click.command("degrade")
@click.argument("data", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="A new or empty folder.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@allow_duplicates_option
def degrade_command(data: Path, output: Path, seed: int, allow_duplicates: bool) -> None:
    """Make a harder set for `prefiqs evaluate` by degrading faces.

    DATA has a folder a person, of aligned crops. One image in eight stays clean, half get one degradation, the others
    two or three: occlusion, blur, down-sampling, darkness, noise, JPEG, each in one of five grades. What an image gets
    depends on the seed, and its name and its folders' below DATA, alone. Writes PERSON/NAME.png, without loss, folders
    in PERSON as they are, and when all are there degradations.csv: path, kinds, grades (1 to 5) and parameters of each
    image.

    \b
    Example:
      prefiqs degrade crops/ --output degraded --seed 0
      prefiqs evaluate degraded --output evaluation
    """
    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"{format_path(str(output))} is not empty: name another folder with --output, or empty it")
    faces = read_folders(data, tell)
    targets = _targets(data, list(map(get_name, faces.images)))
    if not allow_duplicates:  # once degraded, each in its own way, they could not be told
        refuse_shared(faces, ImageSet(faces.images).contents)
    rows = []
    for target, path in tqdm(targets.items(), unit="file", disable=None, leave=False):
        image = read_rgb(path)
        steps = draw_steps(target, seed, image.shape[0])
        (output / target).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(str(output / target)) as file:
            Image.fromarray(degrade(image, steps)).save(file, "png")
        rows.append([target, *_cells(steps)])
    write_folder(output, {_TABLE: format_csv(_COLUMNS, rows)})
    click.echo(f"{len(targets)} images: {format_path(str(output))}", err=True)


def _targets(data: Path, paths: list[str]) -> dict[str, str]:
    """Where each image goes, its path below the data with the suffix .png -> its path."""
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


def _cells(steps: list[Step]) -> list[str]:
    """kinds, grades, parameters; several are joined by +, parameters are JSON: a list with an object a kind."""
    parameters = json.dumps([step.parameters for step in steps])
    return ["+".join(step.kind for step in steps), "+".join(str(step.grade) for step in steps), parameters]
