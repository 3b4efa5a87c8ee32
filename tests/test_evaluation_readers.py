"""Files as other tools write them, and files that are wrong."""

import pickle

import numpy as np
import pytest

from prefiqs_ext.evaluation.datasets.bins import read_bin
from prefiqs_ext.evaluation.datasets.crops import Encoded
from prefiqs_ext.evaluation.datasets.readers import read_folders, read_lfw_pairs, read_pair_list, read_scores


@pytest.fixture
def people(tmp_path):
    for name, count in {"Ann_A": 2, "Bo_B": 1}.items():
        (tmp_path / "faces" / name).mkdir(parents=True)
        for i in range(1, count + 1):
            (tmp_path / "faces" / name / f"{name}_{i:04d}.jpg").write_bytes(b"")
    (tmp_path / "faces" / "Bo_B" / "notes.txt").write_text("no image")
    return tmp_path / "faces"


def write(people, name, text):
    file = people.parent / name
    file.write_text(text)
    return file


def test_folders(people):
    images = read_folders(people)
    assert [path.rsplit("/", 1)[1] for path in images.images] == ["Ann_A_0001.jpg", "Ann_A_0002.jpg", "Bo_B_0001.jpg"]
    assert images.identities.tolist() == [0, 0, 1]
    (people.parent / "empty" / "Ann_A").mkdir(parents=True)
    with pytest.raises(ValueError, match="a folder a person"):
        read_folders(people.parent / "empty")


def test_lfw_pairs(people):
    pairs = read_lfw_pairs(write(people, "pairs.txt", "10\t300\nAnn_A\t1\t2\nAnn_A\t2\tBo_B\t1\n"), people)
    assert pairs.pairs.tolist() == [[0, 1], [1, 2]]
    assert pairs.mated.tolist() == [True, False]
    assert pairs.images[2].endswith("Bo_B/Bo_B_0001.jpg")


def test_pair_list(people):
    images = write(people, "image_path_list.txt", "faces/Ann_A/Ann_A_0002.jpg\nfaces/Bo_B/Bo_B_0001.jpg\n")
    text = "faces/Bo_B/Bo_B_0001.jpg faces/Ann_A/Ann_A_0002.jpg 0\n"
    pairs = read_pair_list(images, write(people, "pair_list.txt", text))
    assert pairs.pairs.tolist() == [[1, 0]]
    assert pairs.mated.tolist() == [False]


def test_scores(people):
    paths = read_folders(people).images
    file = write(people, "s.txt", "Bo_B/Bo_B_0001.jpg 3\n/x/Ann_A/Ann_A_0001.jpg 1e-1\nAnn_A/Ann_A_0002.jpg\t-2\n")
    assert read_scores(file, paths).tolist() == [0.1, -2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ann_A 1 3\n", "no image"),
        ("Cy_C 1 2\n", "no folder of 'Cy_C'"),
        ("Ann_A one 2\n", "pairs.txt:1: expected"),
        ("10 300\n", "found none"),
    ],
)
def test_bad_lfw_pairs(people, text, message):
    with pytest.raises(ValueError, match=message):
        read_lfw_pairs(write(people, "pairs.txt", text), people)


@pytest.mark.parametrize(
    ("images", "pairs", "message"),
    [
        ("\n", "", "expected images, found none"),
        ("faces/Ann_A/no.jpg\n", "", "no image"),
        ("faces/Ann_A/Ann_A_0001.jpg\n", "faces/Ann_A/Ann_A_0001.jpg other 1\n", "'other' is not in"),
        ("faces/Ann_A/Ann_A_0001.jpg\n", "a b 2\n", "expected `name name 0|1`"),
    ],
)
def test_bad_pair_lists(people, images, pairs, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        read_pair_list(write(people, "i.txt", images), write(people, "p.txt", pairs))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ann_A/Ann_A_0001.jpg 1\n", "no score of 2 images"),
        ("Ann_A/Ann_A_0001.jpg nan\n", "finite score"),
        ("Ann_A/Ann_A_0001.jpg inf\n", "finite score"),
        (
            "Ann_A/Ann_A_0001.jpg 1\nx/Ann_A/Ann_A_0001.jpg 2\n",
            "s.txt:2: another score of 'x/Ann_A/Ann_A_0001.jpg', 2 after 1",
        ),
        ("Cy/x.jpg 1\n", "none of the images"),
        ("Ann_A/Ann_A_0001.jpg high\n", "expected `path score`"),
        ("Ann_A/Ann_A_0001.jpg\n", "expected `path score`"),
    ],
)
def test_bad_scores(people, text, message):
    with pytest.raises(ValueError, match=message):
        read_scores(write(people, "s.txt", text), read_folders(people).images)


@pytest.mark.parametrize("protocol", range(1, 6))
def test_bin(tmp_path, protocol):
    file = tmp_path / "set.bin"
    if protocol < 3:  # as Python 2 wrote it: 8-bit strings
        data = b"\x80\x02]q\x00(U\x01aq\x01U\x01bq\x02U\x01cq\x03U\x01dq\x04e]q\x05(\x88\x89e\x86q\x06."
    else:
        data = pickle.dumps(([b"a", b"b", b"c", b"d"], [True, False]), protocol)
    file.write_bytes(data)
    pairs = read_bin(file)
    assert [image.data for image in pairs.images] == [b"a", b"b", b"c", b"d"]
    assert pairs.images[3].name == f"image 3 of {file}"
    assert pairs.pairs.tolist() == [[0, 1], [2, 3]]
    assert pairs.mated.tolist() == [True, False]


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_bin(tmp_path, protocol):
    file, target = tmp_path / "set.bin", tmp_path / "written"
    file.write_bytes(pickle.dumps((Hostile(str(target)), []), protocol))
    with pytest.raises(ValueError, match=r"names .*open"):
        read_bin(file)
    assert not target.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8 a jpeg",
        b"\x80\x04]r\xff\xff\xff\x7f.",  # a memo place of two thousand million
        b"\x80\x04B\xff\xff\xff\x7fabc.",  # bytes that are not there
        b"\x80\x04h\x05.",  # a memo place never filled
        pickle.dumps(([b"a"], [True])),
        pickle.dumps(([b"a", b"b"], [b"x"])),
        pickle.dumps([b"a"] * 3),
        pickle.dumps(([[], b"b"], [True])),
    ],
)
def test_broken_bin(tmp_path, data):
    (tmp_path / "set.bin").write_bytes(data)
    with pytest.raises(ValueError, match=r"set\.bin: expected"):
        read_bin(tmp_path / "set.bin")


def test_not_text(people):
    for content, message in [
        (np.arange(255, dtype=np.uint8).tobytes(), r"s\.txt:1: expected text, got NUL bytes"),
        ("Ann_A/Ann_A_0001.jpg 1\n".encode("utf-16"), r"s\.txt: expected UTF-8 text, got UTF-16; save it as UTF-8"),
        (b"x" * 70_000, r"s\.txt:1: expected text, got a line of more than 65536 bytes"),
    ]:
        (people.parent / "s.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_scores(people.parent / "s.txt", read_folders(people).images)


def test_unknown_identity(people):
    with pytest.raises(ValueError, match=r"Ann_A_0001\.jpg lies in no person's folder"):
        read_folders(people / "Ann_A")


def test_scores_of_a_bin(tmp_path):
    """Lines with the names that CR-FIQA's scripts give the images."""
    images = [Encoded(b"", f"image {i} of lfw.bin") for i in range(3)]
    file = write(tmp_path, "s.txt", "quality_data/lfw/images/00002.jpg 3\n00000.jpg 1\nimages/00001.jpg 2\n")
    assert read_scores(file, images).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"'00003\.jpg' is none of the images"):
        read_scores(write(tmp_path, "t.txt", "00003.jpg 1\n"), images)
