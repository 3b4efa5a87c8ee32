"""Copy each person's best photo: python examples/best_photos.py PHOTOS OUTPUT.

PHOTOS has one folder per person. OUTPUT gets the photo of each person whose largest face has the highest score.
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
            score = scored.records[0].score  # of the largest face; None where there is none
            if score is not None and (best is None or score > best[0]):
                best = score, scored.path
        if best is not None:
            score, path = best
            shutil.copy(path, output / f"{person.name}{Path(path).suffix}")
            print(f"{person.name}: {path} (score {score:.2f})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
