"""Degraded sets: the draw, the grades, the command; and the demo's doses, which share the operations."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from prefiqs_ext.cli import main
from prefiqs_ext.demo.degradations import DEGRADATIONS
from prefiqs_ext.evaluation.datasets import read_data
from prefiqs_ext.faces import degrade as degradations
from prefiqs_ext.faces.degrade import DEFAULT_KINDS, KINDS, SHARES, Step, degrade, draw_step, draw_steps

data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """The astronaut's face, 112 x 112."""
    return np.asarray(Image.fromarray(data.astronaut()[30:180, 150:300]).resize((112, 112)))


def old_formula(kind: str, dose: str, image: np.ndarray) -> np.ndarray:
    """The demo's degradations, written out a second time."""
    strong = dose == "strong"
    height, width, _ = image.shape
    match kind:
        case "blur":
            return cv2.GaussianBlur(image, (0, 0), 4 if strong else 2)
        case "noise":
            grain = np.random.default_rng(0).standard_normal(image.shape)
            return np.rint(image + (60 if strong else 30) * grain).clip(0, 255).astype(np.uint8)
        case "down-sampling":
            small = Image.fromarray(image).reduce(8 if strong else 4)
            return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        case "occlusion":
            rows = np.arange(height)[:, None, None]
            top, bottom = (36, 65) if strong else (81, 112)
            return np.where((top <= rows) & (rows < bottom), np.uint8(127), image)
        case "darkness":
            grain = np.random.default_rng(1).standard_normal(image.shape)
            return np.rint(image / (8 if strong else 4) + 4 * grain).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=5 if strong else 20)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("way", DEGRADATIONS, ids=lambda way: f"{way.kind}-{way.dose}")
def test_the_demo_has_the_pixels_it_always_had(way, face):
    random = np.random.default_rng(5).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    for image in (face, random):
        assert np.array_equal(way.apply(image), old_formula(way.kind, way.dose, image))


@pytest.mark.parametrize("kind", KINDS)
def test_each_grade_is_worse_than_the_one_before(kind, face):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    def quality(grade: int) -> tuple[float, float]:
        # Over eight places or grains: one patch may lie on the background.
        worse = [degrade(face, [draw_step(kind, grade, np.random.default_rng(seed), 112)]) for seed in range(8)]
        psnr = np.mean([peak_signal_noise_ratio(face, image) for image in worse])
        return float(psnr), float(np.mean([structural_similarity(face, image, channel_axis=2) for image in worse]))

    psnr, ssim = zip(*(quality(grade) for grade in range(1, 6)), strict=True)
    assert list(psnr) == sorted(psnr, reverse=True)
    assert list(ssim) == sorted(ssim, reverse=True)
    assert len(set(psnr)) == len(set(ssim)) == 5


def test_the_shares_are_those_stated():
    drawn = [draw_steps(f"p{i // 7}/{i}.png", 0, 112) for i in range(8000)]
    counts = Counter(len(steps) for steps in drawn)
    # Four standard deviations of a binomial share of 8000.
    for count, share in enumerate(SHARES):
        assert counts[count] / 8000 == pytest.approx(share, abs=4 * (share * (1 - share) / 8000) ** 0.5)
    for count, grades in ((1, 5), (2, 4), (3, 3)):
        of_grade = Counter((step.kind, step.grade) for steps in drawn if len(steps) == count for step in steps)
        assert set(of_grade) == {(kind, grade) for kind in DEFAULT_KINDS for grade in range(1, grades + 1)}
        share, total = 1 / (6 * grades), sum(of_grade.values())
        tolerance = 4 * (share * (1 - share) / total) ** 0.5
        assert all(found / total == pytest.approx(share, abs=tolerance) for found in of_grade.values())
    order = list(KINDS)
    for steps in drawn:
        places = [order.index(step.kind) for step in steps]
        assert places == sorted(set(places))


def test_a_draw_depends_on_seed_and_name_alone():
    assert draw_steps("a/b.png", 3, 112) == draw_steps("a/b.png", 3, 112)
    names = [f"p/{i}.png" for i in range(40)]
    assert [draw_steps(name, 0, 112) for name in names] != [draw_steps(name, 1, 112) for name in names]
    # Written down when made: another version of NumPy or of this code that draws otherwise must be noticed.
    text = json.dumps([draw_steps(name, 0, 112) for name in names])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "d7ac284ba2668301"


def test_other_kinds():
    names = [f"p/{i}.png" for i in range(200)]
    drawn = [step.kind for name in names for step in draw_steps(name, 0, 112, ("gamma", "light"))]
    assert set(drawn) == {"light", "gamma"}
    assert {len(draw_steps(name, 0, 112, ("JPEG",))) for name in names} == {0, 1}
    for bad in ((), ("rain",), ("blur", "blur")):
        with pytest.raises(ValueError, match="expected different kinds of occlusion, light, blur"):
            draw_steps("a/b.png", 0, 112, bad)


def test_light_contrast_and_gamma_against_scikit_image(face):
    from skimage.exposure import adjust_gamma
    from skimage.metrics import structural_similarity

    for gamma in (0.2, 0.7, 1, 1.5, 4):  # levels; scikit-image rounds down where we round to the nearest
        assert np.abs(degradations.apply_gamma(face, gamma).astype(int) - adjust_gamma(face, gamma)).max() <= 1
    assert np.array_equal(degradations.reduce_contrast(face, 1), face)
    flat = degradations.reduce_contrast(face, 0)
    assert flat.std() == 0
    assert flat[0, 0, 0] == pytest.approx(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).mean(), abs=1)
    grey = np.full((112, 90, 3), 100, np.uint8)
    right, top = (degradations.shade(grey, 0.8, angle)[:, :, 0] for angle in (0, np.pi / 2))
    assert np.array_equal(right[0], np.linspace(20, 180, 90).round())
    assert (right == right[:1]).all()
    assert np.array_equal(top[:, 0], np.linspace(180, 20, 112).round())
    assert structural_similarity(face, degradations.shade(face, 0, 1), channel_axis=2) == 1


@pytest.mark.parametrize("size", [(56, 56), (112, 96), (160, 160), (224, 224), (113, 90)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_size(kind, size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    image.setflags(write=False)
    for grade in range(1, 6):
        one = draw_step(kind, grade, np.random.default_rng(grade), size[0])
        worse = degrade(image, [one])
        assert (worse.shape, worse.dtype) == (image.shape, np.uint8)
        assert worse.flags.writeable
        assert not np.array_equal(worse, image)
        if kind == "blur":
            assert one.parameters["sigma"] / size[0] == pytest.approx(KINDS[kind].grades[grade - 1] / 112)
        if kind == "occlusion":
            place = one.parameters
            assert 0 <= place["top"] < place["bottom"] <= 1
            assert 0 <= place["left"] < place["right"] <= 1
            side = KINDS[kind].grades[grade - 1]
            covered = (worse == 127).all(axis=2).mean()
            # Edges are rounded to pixels, each by up to a half.
            assert covered == pytest.approx(side**2, abs=2 * side / min(size) + 1e-3)


@pytest.mark.parametrize(
    ("operation", "bad", "message"),
    [
        (degradations.blur, {"sigma": 0}, "expected sigma of 1e-09 to 10000, got 0"),
        (degradations.blur, {"sigma": float("nan")}, "expected sigma"),
        (degradations.add_noise, {"sigma": -1, "seed": 0}, "expected sigma of 0 to inf, got -1"),
        (degradations.down_sample, {"factor": 0}, "expected factor of 1"),
        (degradations.occlude, {"top": -0.5, "bottom": 0.2}, r"expected top, bottom .* in \[0, 1\], got -0.5, 0.2"),
        (degradations.occlude, {"top": 0, "bottom": 1, "left": 0.6, "right": 0.5}, "expected left, right in ascending"),
        (degradations.darken, {"exposure": -1, "seed": 0}, "expected exposure"),
        (degradations.shade, {"contrast": 1.5, "angle": 0}, "expected contrast of 0 to 1, got 1.5"),
        (degradations.reduce_contrast, {"share": -0.1}, "expected share of 0 to 1"),
        (degradations.apply_gamma, {"gamma": 0}, "expected gamma of 1e-09"),
        (degradations.compress_jpeg, {"quality": 100}, "expected quality of 1 to 95, got 100"),
    ],
)
def test_parameters_out_of_range(operation, bad, message, face):
    with pytest.raises(ValueError, match=message):
        operation(face, **bad)


def test_blur_and_down_sampling_suit_the_size():
    """A face twice as large suffers the same: shrunk again, it looks like the smaller one degraded."""

    def halved(image: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize((112, 112), Image.Resampling.BOX))

    large = data.astronaut()[:224, 112:336]
    for kind in ("blur", "down-sampling"):
        for grade in (3, 4, 5):
            random = np.random.default_rng(0)
            expected = degrade(halved(large), [draw_step(kind, grade, random, 112)])
            again = halved(degrade(large, [draw_step(kind, grade, random, 224)]))
            # Levels. At half the strength or twice it is 5 and more.
            assert np.abs(again.astype(float) - expected).mean() < 1, (kind, grade)


def test_down_sampling_keeps_the_face_where_it_is():
    """A ramp stays the same ramp, also where the factor does not divide the size."""
    ramp = np.repeat(np.arange(112, dtype=np.uint8)[None, :, None] * 2, 112, axis=0).repeat(3, axis=2)
    for factor in (2, 3, 4, 6, 8):
        worse = degradations.down_sample(ramp, factor).astype(int)
        middle = slice(2 * factor, -2 * factor)
        assert np.abs(worse - ramp)[:, middle].max() <= 1, factor


@pytest.fixture
def crops(tmp_path, face) -> Path:
    for index, name in enumerate(("ann/1.jpg", "ann/2.png", "bob/1.jpg", "bob/2.bmp", "bob/3.jpeg", "eve/x.y.webp")):
        file = tmp_path / "crops" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(face, 5 * index, axis=1)).save(file)
    (tmp_path / "crops" / "ann" / "notes.txt").write_text("no image")
    return tmp_path / "crops"


def run(data: Path, output: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["degrade", str(data), "--output", str(output), *arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_command_writes_images_and_what_was_done(crops, tmp_path):
    output = tmp_path / "new" / "out"
    result = run(crops, output, "--seed", "5")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    with (output / "degradations.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["path"] for row in rows] == [
        *("ann/1.png", "ann/2.png", "bob/1.png", "bob/2.png", "bob/3.png", "eve/x.y.png")
    ]
    assert set(contents(output)) == {"degradations.csv", *(row["path"] for row in rows)}
    sources = sorted(file for file in crops.rglob("*") if file.suffix != ".txt" and file.is_file())
    assert any(row["kinds"] for row in rows)
    for row, source in zip(rows, sources, strict=True):
        # The table alone says how to make the pixels again.
        image = np.asarray(Image.open(source).convert("RGB"))
        kinds, grades = row["kinds"].split("+"), row["grades"].split("+")
        parameters = json.loads(row["parameters"])
        assert len(parameters) == (len(kinds) if row["kinds"] else 0)
        for kind, grade, values in zip(kinds, grades, parameters, strict=False):
            assert int(grade) in range(1, 6)
            image = degrade(image, [Step(kind, int(grade), values)])
        with Image.open(output / row["path"]) as written:
            assert written.format == "PNG"
            assert np.array_equal(np.asarray(written), image)


def test_same_seed_same_bytes_and_other_images_do_not_matter(crops, tmp_path):
    first, again, other, fewer = (tmp_path / name for name in ("first", "again", "other", "fewer"))
    for output, arguments in ((first, ()), (again, ("--seed", "0")), (other, ("--seed", "1"))):
        assert run(crops, output, *arguments).exit_code == 0
    whole = contents(first)
    assert whole == contents(again) != contents(other)
    for name in ("ann/1.jpg", "bob/2.bmp"):
        (crops / name).unlink()
    assert run(crops, fewer).exit_code == 0
    kept = contents(fewer)
    table = kept.pop("degradations.csv").splitlines()
    assert len(kept) == 4
    assert kept.items() <= whole.items()
    assert set(table) <= set(whole["degradations.csv"].splitlines())


def test_kinds(crops, tmp_path):
    result = run(crops, tmp_path / "out", "--kinds", "contrast, gamma")
    assert result.exit_code == 0, result.output
    with (tmp_path / "out" / "degradations.csv").open() as table:
        found = {kind for row in csv.DictReader(table) for kind in row["kinds"].split("+") if kind}
    assert found == {"contrast", "gamma"}
    result = run(crops, tmp_path / "other", "--kinds", "rain")
    assert (result.exit_code, (tmp_path / "other").exists()) == (2, False)
    assert "got rain" in result.stderr


def test_nested_folders_and_hidden_ones(crops, tmp_path):
    for name in ("ann/2020/1.jpg", "ann/2021/1.jpg", ".ipynb_checkpoints/1.jpg", "bob/._1.jpg", "__MACOSX/bob/._1.jpg"):
        (crops / name).parent.mkdir(parents=True, exist_ok=True)
        (crops / name).write_bytes((crops / "ann" / "1.jpg").read_bytes())
    assert run(crops, tmp_path / "out").exit_code == 0
    written = set(contents(tmp_path / "out")) - {"degradations.csv"}
    assert written == {
        *("ann/1.png", "ann/2.png", "ann/2020/1.png", "ann/2021/1.png"),
        *("bob/1.png", "bob/2.png", "bob/3.png", "eve/x.y.png"),
    }


def test_the_same_file_of_two_people(crops, tmp_path):
    """It could not be told any more once both are degraded."""
    (crops / "eve" / "twin.jpg").write_bytes((crops / "ann" / "1.jpg").read_bytes())
    result = run(crops, tmp_path / "out")
    assert result.exit_code == 1
    assert f"{crops}/ann/1.jpg and {crops}/eve/twin.jpg are the same file, of two people" in result.stderr
    assert not (tmp_path / "out").exists()
    assert run(crops, tmp_path / "out", "--allow-duplicates").exit_code == 0


def test_lfw_pairs_find_degraded_images(crops, tmp_path):
    for file in list(crops.glob("[ab]*/[123].*")):
        file.rename(file.with_name(f"{file.parent.name}_000{file.name}"))
    (tmp_path / "pairs.txt").write_text("ann 1 2\nann 1 bob 3\n")
    before = read_data(crops, tmp_path / "pairs.txt")
    assert run(crops, tmp_path / "out").exit_code == 0
    after = read_data(tmp_path / "out", tmp_path / "pairs.txt")
    assert after.pairs.tolist() == before.pairs.tolist()
    names = [Path(path).relative_to(crops).with_suffix(".png") for path in before.images]
    assert list(map(Path, after.images)) == [tmp_path / "out" / name for name in names]


def test_refusals(crops, tmp_path):
    output = tmp_path / "out"

    def refused(*parts: str, code: int = 1) -> None:
        result = run(crops, output)
        assert (result.exit_code, result.stdout) == (code, "")
        *said, line = result.stderr.strip().splitlines()
        if code == 1:
            assert said in ([], ["prefiqs: 1 file passed over: .txt 1"])
        assert all(part in line for part in parts), line

    output.mkdir()
    (output / "kept.txt").write_text("mine")
    refused("is not empty", "--output", code=2)
    assert contents(output) == {"kept.txt": b"mine"}
    (output / "kept.txt").unlink()

    twin = crops / "bob" / "1.png"
    twin.write_bytes((crops / "ann" / "2.png").read_bytes())
    refused("bob/1.jpg", "bob/1.png", "rename")
    assert contents(output) == {}
    twin.unlink()

    (crops / "bob" / "2.bmp").write_bytes(b"no image")
    refused("cannot read", "bob/2.bmp")
    # What is there is whole, and without the table it is no set.
    assert set(contents(output)) == {"ann/1.png", "ann/2.png", "bob/1.png"}
    for file in output.rglob("*.png"):
        Image.open(file).load()
    refused("is not empty", code=2)

    empty = tmp_path / "empty"
    empty.mkdir()
    result = run(empty, tmp_path / "other")
    assert result.exit_code == 1
    assert "one folder per person" in result.stderr
    assert not (tmp_path / "other").exists()
    assert CliRunner().invoke(main, ["degrade", str(crops)]).exit_code == 2
