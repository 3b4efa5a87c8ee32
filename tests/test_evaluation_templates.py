"""IJB-C's files, and templates made of images."""

import numpy as np
import paper_benchmark_sets as sets
import pytest
from photos import TEMPLATE

from prefiqs_ext.evaluation.datasets import ijbc as module
from prefiqs_ext.evaluation.datasets.ijbc import Templates, pool_embeddings, pool_qualities, read_ijbc


@pytest.fixture
def ijbc(tmp_path):
    sets.write_ijbc(tmp_path)
    return tmp_path


def read(root):
    return read_ijbc(root / "meta", root / "loose_crop")


def test_files(ijbc):
    data = read(ijbc)
    n = sets.PEOPLE * sets.EACH
    assert [image.path for image in data.images] == [str(ijbc / "loose_crop" / f"{k + 1}.jpg") for k in range(n)]
    np.testing.assert_allclose(data.images[5].landmarks, TEMPLATE + np.array([8, 35]), atol=5e-4)  # three decimals
    assert data.ids[data.template].tolist() == [sets.ijbc_template(k) for k in range(n)]
    assert data.media[:4].tolist() == [500, 500, 502, 503]
    assert data.pairs.shape == (12 * 11 // 2, 2)
    first, second = data.ids[data.pairs].T
    assert data.mated.tolist() == (first // 10 == second // 10).tolist()
    assert data.mated.sum() == sets.PEOPLE


def test_byte_order_marks(ijbc):
    expected = read(ijbc)
    for file in (ijbc / "meta").iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    found = read(ijbc)
    assert found.pairs.tolist() == expected.pairs.tolist()
    assert found.ids.tolist() == expected.ids.tolist()
    assert [image.path for image in found.images] == [image.path for image in expected.images]


def made(seed=0, images=300, templates=40):
    """Templates of several images and media, in no order; media numbers come again in other templates."""
    random = np.random.default_rng(seed)
    template = random.permutation(np.r_[np.arange(templates), random.integers(0, templates, images - templates)])
    media = random.integers(1, 5, images)
    ids = np.sort(random.choice(10_000, templates, replace=False))
    nothing = np.empty((0, 2), np.int32)
    embeddings = random.standard_normal((images, 17)).astype(np.float32)
    return Templates([], template, media, ids, nothing, np.empty(0, bool)), embeddings


@pytest.mark.parametrize("block", [1, 7, 50, 20_000])
def test_embeddings_one_by_one(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    data, embeddings = made()
    wanted = []
    for t in range(len(data.ids)):
        mine = data.template == t
        means = [embeddings[mine & (data.media == m)].astype(np.float64).mean(0) for m in set(data.media[mine])]
        wanted.append(sum(means) / np.linalg.norm(sum(means)))
    result = pool_embeddings(embeddings, data)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, wanted, atol=1e-6)


def test_quality_is_the_worst_images():
    data, embeddings = made(1)
    quality = embeddings[:, 0]
    wanted = [quality[data.template == t].min() for t in range(len(data.ids))]
    assert pool_qualities(quality, data).tolist() == wanted


def test_embeddings_without_a_direction():
    data, embeddings = made(2)
    embeddings[data.template == 7] = 0
    with pytest.raises(ValueError, match=f"template {data.ids[7]}: .* 0 or are not finite"):
        pool_embeddings(embeddings, data)
    embeddings[np.flatnonzero(data.template == 3)[0]] = np.nan
    with pytest.raises(ValueError, match=f"template {data.ids[3]}:"):
        pool_embeddings(embeddings, data)
    with pytest.raises(ValueError, match=r"expected embeddings \[300, d\], got \[299, 17\]"):
        pool_embeddings(embeddings[1:], data)
    with pytest.raises(ValueError, match=r"expected 300 qualities, got \[299\]"):
        pool_qualities(embeddings[1:, 0], data)


FACES, POINTS, PAIRS = "ijbc_face_tid_mid.txt", "ijbc_name_5pts_score.txt", "ijbc_template_pair_label.txt"
NUMBERS = " ".join(["1.5"] * 11)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (FACES, "3.jpg 10", "expected `name template media`"),
        (FACES, "3.jpg 10 -1", "expected `name template media`"),
        (FACES, "3.jpg 1e3 5", "expected `name template media`"),
        (FACES, f"3.jpg {'9' * 5000} 5", "expected `name template media`"),
        (FACES, "99.jpg 10 5", "no image .*99.jpg"),
        (FACES, "../meta/x.jpg 10 5", "no image"),
        (POINTS, f"4.jpg {NUMBERS}", "expected the order of ijbc_face_tid_mid.txt, got '4.jpg'"),
        (POINTS, f"3.jpg {NUMBERS} 1", "expected `name x1 y1"),
        (POINTS, "3.jpg 1 2", "expected `name x1 y1"),
        (POINTS, f"3.jpg one {NUMBERS[4:]}", "expected `name x1 y1"),
        (PAIRS, "10 11", r"expected `template template 0\|1`"),
        (PAIRS, "10 11 1 1", r"expected `template template 0\|1`"),
        (PAIRS, "10 11 2", r"expected `template template 0\|1`"),
        (PAIRS, "10 11 -1", r"expected `template template 0\|1`"),
        (PAIRS, "10 11.0 1", r"expected `template template 0\|1`"),
        (PAIRS, "10 nan 1", r"expected `template template 0\|1`"),
        (PAIRS, "10 -11 1", r"expected `template template 0\|1`"),
        (PAIRS, f"10 {'9' * 5000} 1", r"expected `template template 0\|1`"),
        (PAIRS, "10 12 1", "no image is of template 12"),
        (PAIRS, "10 9999999 1", "no image is of template 9999999"),
    ],
)
def test_bad_line(ijbc, file, line, message):
    path = ijbc / "meta" / file
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:2], "", line, *rows[3:]]) + "\n")
    with pytest.raises(ValueError, match=rf"{file}:4: {message}") as caught:
        read(ijbc)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (FACES, lambda rows: [], "expected images, found none"),
        (FACES, lambda rows: [*rows, rows[3]], "expected every image once, got 1 repeated"),
        (POINTS, lambda rows: rows[:-1], "expected 24 images, got 23"),
        (POINTS, lambda rows: [*rows, rows[-1]], "25: expected the order"),
        (POINTS, lambda rows: ["1.jpg nan " + rows[0].split(" ", 2)[2], *rows[1:]], "expected finite .* for '1.jpg'"),
        (PAIRS, lambda rows: [], "expected lines"),
        (PAIRS, lambda rows: [""], "expected lines"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_file(ijbc, file, change, message):
    path = ijbc / "meta" / file
    path.write_text("".join(f"{row}\n" for row in change(path.read_text().splitlines())))
    with pytest.raises(ValueError, match=f"{file}.*{message}"):
        read(ijbc)
    path.write_bytes(b"\xff\xfe\x00" * 50)
    with pytest.raises(ValueError, match=f"{file}: expected UTF-8 text"):
        read(ijbc)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=file):
        read(ijbc)
