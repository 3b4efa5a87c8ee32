"""Copy each person's best photo: python examples/best_photos.py PHOTOS OUTPUT.

PHOTOS has one folder per person. OUTPUT gets the photo of each person whose largest face has the highest quality.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import prefiqs_ext
from prefiqs_ext.files import find_paths, score_files


def main(photos: Path, output: Path) -> None:
    scorer = prefiqs_ext.Scorer(on_bad="nan")
    output.mkdir(parents=True, exist_ok=True)
    for person in sorted(folder for folder in photos.iterdir() if folder.is_dir()):
        best: tuple[float, str] | None = None
        for scored in score_files(find_paths([str(person)]), scorer):
            quality = scored.records[0].quality  # of the largest face; None where there is none
            if quality is not None and (best is None or quality > best[0]):
                best = quality, scored.path
        if best is not None:
            quality, path = best
            shutil.copy(path, output / f"{person.name}{Path(path).suffix}")
            print(f"{person.name}: {path} (quality {quality:.3f})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
