"""The eight benchmarks in miniature, in their published layouts, with the properties of the published files: padded
labels, repeated lines, exchanged colours, numbers of templates with gaps."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import torch
from networks import pictures
from photos import TEMPLATE
from PIL import Image
from torch import Tensor

BINS = ("lfw", "agedb_30", "cfp_fp", "calfw", "cplfw")
PEOPLE, EACH = 6, 4
LABELS = [k % 2 == 0 for k in range(40)]
"""Of the pairs in a list: mated, non-mated, ..."""


def faces(seed: int = 0) -> Tensor:
    """uint8 [PEOPLE * EACH, 3, 112, 112]: pictures, EACH of a kind with noise that grows, more red than blue."""
    generator = torch.Generator().manual_seed(seed)
    base = pictures(PEOPLE, seed=seed).float().repeat_interleave(EACH, 0)
    strength = torch.linspace(0, 30, EACH).repeat(PEOPLE).view(-1, 1, 1, 1)
    tint = torch.tensor([20.0, 0.0, -20.0]).view(3, 1, 1)
    noisy = base + tint + strength * torch.randn(base.shape, generator=generator)
    return noisy.round().clamp(0, 255).to(torch.uint8)


def pairs(seed: int = 0) -> list[tuple[int, int]]:
    """Of indices into faces(), as LABELS say."""
    random = np.random.default_rng(seed)
    found = []
    for mated in LABELS:
        first, second = random.choice(PEOPLE, 2, replace=False)
        i, j = random.choice(EACH, 2, replace=False)
        found.append((int(first) * EACH + int(i), int(first if mated else second) * EACH + int(j)))
    return found


def jpeg(picture: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=100, subsampling=0)
    return file.getvalue()


def write_bin(file: Path, seed: int = 0) -> None:
    """InsightFace's: the images of pair k at 2k and 2k + 1."""
    images = [jpeg(picture) for picture in faces(seed)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(([images[i] for pair in pairs(seed) for i in pair], LABELS), 4))


def write_xqlfw(root: Path, seed: int = 0) -> None:
    """xqlfw_aligned_112/Person/Person_0001.jpg and xqlfw_pairs.txt in LFW's form."""
    for k, picture in enumerate(faces(seed)):
        file = root / "xqlfw_aligned_112" / _person(k) / f"{_person(k)}_{k % EACH + 1:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(picture))
    rows = ["10\t2"]
    for (a, b), mated in zip(pairs(seed), LABELS, strict=True):
        second = [] if mated else [_person(b)]
        rows.append("\t".join([_person(a), str(a % EACH + 1), *second, str(b % EACH + 1)]))
    (root / "xqlfw_pairs.txt").write_text("\n".join(rows) + "\n")


def write_quality_data_of_bin(folder: Path, seed: int = 0, *, swapped: bool = True) -> None:
    """As extract_bin.py: an image a place in the .bin, names without suffix, labels padded."""
    order = [i for pair in pairs(seed) for i in pair]
    _write_images(folder, [f"{k:05d}" for k in range(len(order))], faces(seed)[order], swapped=swapped)
    rows = [f"{2 * k:05d} {2 * k + 1:05d} {mated:05d}\n" for k, mated in enumerate(LABELS)]
    (folder / "pair_list.txt").write_text("".join(rows))


def write_quality_data_of_xqlfw(folder: Path, seed: int = 0) -> None:
    """As extract_xqlfw.py: an image is listed as often as it is used, names with suffix."""
    names = [f"{_person(k)}_{k % EACH + 1:04d}" for k in range(PEOPLE * EACH)]
    _write_images(folder, names, faces(seed))
    rows = [f"{names[a]}.jpg {names[b]}.jpg {mated:d}\n" for (a, b), mated in zip(pairs(seed), LABELS, strict=True)]
    (folder / "pair_list.txt").write_text("".join(rows))
    listed = [f"quality_data/{folder.name}/images/{names[i]}.jpg\n" for pair in pairs(seed) for i in pair]
    (folder / "image_path_list.txt").write_text("".join(listed))


def write_adience(folder: Path, seed: int = 0) -> None:
    """As extract_adience.py: all pairs, the person in the name."""
    names = [f"p_{100 + k // EACH}_img_{7 * k}" for k in range(PEOPLE * EACH)]
    _write_images(folder, names, faces(seed))
    rows = [
        f"{a} {b} {int(i // EACH == j // EACH)}\n" for i, a in enumerate(names) for j, b in enumerate(names) if i < j
    ]
    (folder / "pair_list.txt").write_text("".join(rows))


def write_ijbc(root: Path, seed: int = 0) -> None:
    """A template a person of images 0, 1 (one medium) and 2, another of image 3; every template against every other."""
    for folder in ("meta", "loose_crop"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    faces_rows, landmark_rows = [], []
    for k, picture in enumerate(faces(seed)):
        x, y = 3 + k, 40 - k
        photo = torch.full((3, 160, 150), 90, dtype=torch.uint8)
        photo[:, y : y + 112, x : x + 112] = picture
        (root / "loose_crop" / f"{k + 1}.jpg").write_bytes(jpeg(photo))
        faces_rows.append(f"{k + 1}.jpg {ijbc_template(k)} {500 + k - (k % EACH == 1)}\n")
        points = " ".join(f"{value:.3f}" for value in (TEMPLATE + np.array([x, y])).ravel())
        landmark_rows.append(f"{k + 1}.jpg {points} 0.999\n")
    templates = sorted({ijbc_template(k) for k in range(PEOPLE * EACH)})
    pair_rows = [f"{a} {b} {int(a // 10 == b // 10)}\n" for a in templates for b in templates if a < b]
    (root / "meta" / "ijbc_face_tid_mid.txt").write_text("".join(faces_rows))
    (root / "meta" / "ijbc_name_5pts_score.txt").write_text("".join(landmark_rows))
    (root / "meta" / "ijbc_template_pair_label.txt").write_text("".join(pair_rows))


def ijbc_template(k: int) -> int:
    """The number of the template of image k: tens are the person."""
    return 10 * (k // EACH + 1) + (k % EACH == 3)


def write_all(root: Path) -> None:
    for seed, name in enumerate(BINS):
        write_bin(root / "faces_emore" / f"{name}.bin", seed)
    write_xqlfw(root / "XQLFW", 5)
    write_adience(root / "quality_data" / "adience", 6)
    write_ijbc(root / "IJBC", 7)


def _person(k: int) -> str:
    return f"Ann_{chr(ord('A') + k // EACH)}"


def _write_images(folder: Path, names: list[str], images: Tensor, *, swapped: bool = True) -> None:
    """images/, red and blue exchanged as the scripts do, and image_path_list.txt."""
    (folder / "images").mkdir(parents=True)
    for name, picture in zip(names, images, strict=True):
        (folder / "images" / f"{name}.jpg").write_bytes(jpeg(picture.flip(0) if swapped else picture))
    (folder / "image_path_list.txt").write_text("".join(f"quality_data/{folder.name}/images/{n}.jpg\n" for n in names))
