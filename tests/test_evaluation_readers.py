"""Files as other tools write them, and files that are wrong."""

import numpy as np
import pytest

from prefiqs_ext.evaluation.datasets import read_data
from prefiqs_ext.evaluation.datasets.duplicates import refuse_shared
from prefiqs_ext.evaluation.datasets.ijbc import read_ijbc
from prefiqs_ext.evaluation.datasets.image_names import Names
from prefiqs_ext.evaluation.datasets.insightface_bin import read_bin
from prefiqs_ext.evaluation.datasets.readers import read_folders, read_lfw_pairs, read_pair_list, read_scores
from prefiqs_ext.evaluation.datasets.sources import EncodedCrop
from prefiqs_ext.exceptions import FileAccessError, MissingFileError


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


def test_paths_as_text(people):
    assert read_data(str(people)).images == read_data(people).images
    pairs = write(people, "pairs.txt", "Ann_A 1 2\nAnn_A 1 Bo_B 1\n")
    assert read_data(str(people), str(pairs)).mated.tolist() == [True, False]


def test_what_cannot_be_read_is_told_by_its_kind(people):
    """A missing file is a MissingFileError, also below a file that is no folder; a folder is there, but no file."""
    file = write(people, "note", "")
    for kind, path in [(MissingFileError, "none.bin"), (MissingFileError, "note/none.bin"), (FileAccessError, "a.bin")]:
        (people.parent / "a.bin").mkdir(exist_ok=True)
        with pytest.raises(kind, match=r"^cannot read ") as caught:
            read_bin(people.parent / path)
        assert type(caught.value) is kind
    with pytest.raises(MissingFileError, match="note/sub"):
        read_ijbc(people.parent, file / "sub")


def test_folders(people):
    images = read_folders(people)
    assert [path.rsplit("/", 1)[1] for path in images.images] == ["Ann_A_0001.jpg", "Ann_A_0002.jpg", "Bo_B_0001.jpg"]
    assert images.identities.tolist() == [0, 0, 1]
    (people.parent / "empty" / "Ann_A").mkdir(parents=True)
    with pytest.raises(ValueError, match="one folder per person"):
        read_folders(people.parent / "empty")


HIDDEN = ("._Ann_A_0001.jpg", ".x/1.jpg", "@eaDir/1.jpg/thumb.jpg", "__MACOSX/1.jpg", "Thumbs.db", "#recycle/1.jpg")


@pytest.mark.parametrize(
    "hidden", [".ipynb_checkpoints/Ann_A_0001.jpg", *HIDDEN, *(f"Ann_A/{name}" for name in HIDDEN)]
)
def test_hidden_and_system_files_and_folders_are_nobody(people, hidden):
    before = read_folders(people)
    (people / hidden).parent.mkdir(parents=True, exist_ok=True)
    (people / hidden).write_bytes(b"")
    said = []
    found = read_folders(people, said.append)
    assert found.images == before.images
    assert found.identities.tolist() == before.identities.tolist()
    assert said == ["1 file passed over: .txt 1"]
    text = "Ann_A 1 2\nAnn_A 2 Bo_B 1\n"
    assert read_lfw_pairs(write(people, "pairs.txt", text), people).pairs.tolist() == [[0, 1], [1, 2]]


def test_nested_folders_are_of_the_person_at_the_top(people):
    for name in ("Ann_A/b/Ann_A_0003.png", "Ann_A/a/c/Ann_A_0004.mpo", "Cy_C/2020/Cy_C_0001.jpg"):
        (people / name).parent.mkdir(parents=True, exist_ok=True)
        (people / name).write_bytes(b"")
    found = read_folders(people)
    assert [path.removeprefix(f"{people}/") for path in found.images] == [
        *("Ann_A/Ann_A_0001.jpg", "Ann_A/Ann_A_0002.jpg", "Ann_A/a/c/Ann_A_0004.mpo", "Ann_A/b/Ann_A_0003.png"),
        *("Bo_B/Bo_B_0001.jpg", "Cy_C/2020/Cy_C_0001.jpg"),
    ]
    assert found.identities.tolist() == [0, 0, 0, 0, 1, 2]
    pairs = read_lfw_pairs(write(people, "pairs.txt", "Ann_A 3 4\nAnn_A 1 Cy_C 1\n"), people)
    assert [path.rsplit("/", 1)[1][:-4] for path in pairs.images] == [
        *("Ann_A_0003", "Ann_A_0004", "Ann_A_0001", "Cy_C_0001")
    ]
    text = "".join(f"{path.removeprefix(str(people.parent))} {i}\n" for i, path in enumerate(found.images))
    assert read_scores(write(people, "s.txt", text), found.images).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_link_to_the_folder_above_is_refused(people):
    (people / "Ann_A" / "up").symlink_to("..")
    with pytest.raises(ValueError, match=r"Ann_A/up/Ann_A: folder met before, read once; take it out of the set"):
        read_folders(people)


@pytest.mark.parametrize("inside", ["Ann_A/", ""])
def test_what_is_passed_over_is_said_where_nothing_is_left(tmp_path, inside):
    for i in range(12):
        (tmp_path / "faces" / "Ann_A").mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / inside / f"{i}.HEIC").write_bytes(b"")
    with pytest.raises(ValueError, match=r"found none; 12 files passed over: \.heic 12; convert photos to JPEG or PNG"):
        read_folders(tmp_path / "faces")


def test_the_same_file_of_two_people(people):
    """Of one person too often is no fault of that kind."""
    images = read_folders(people)
    refuse_shared(images, np.array([0, 0, 1]))
    with pytest.raises(ValueError, match=r"Ann_A_0002\.jpg and .*Bo_B_0001\.jpg are the same file, of two people:"):
        refuse_shared(images, np.array([0, 1, 1]))
    pairs = read_lfw_pairs(write(people, "pairs.txt", "Ann_A 1 2\nAnn_A 2 Bo_B 1\n"), people)
    refuse_shared(pairs, np.array([0, 0, 1]))
    with pytest.raises(ValueError, match=r"Ann_A_0002\.jpg and .*Bo_B_0001\.jpg are the same file, of a non-mated"):
        refuse_shared(pairs, np.array([0, 1, 1]))
    many = read_folders(people)._replace(images=["a", "b", "c", "d", "e"], identities=np.array([0, 1, 2, 3, 3]))
    with pytest.raises(ValueError, match=r"a and c are the same file, of two people, and so is 1 more pair"):
        refuse_shared(many, np.array([5, 7, 5, 7, 7]))


def test_lfw_pairs_find_any_suffix(people):
    """As `prefiqs degrade` writes them."""
    for file in people.glob("*/*.jpg"):
        file.rename(file.with_suffix(".png"))
    text = "Ann_A 1 2\nAnn_A 2 Bo_B 1\n"
    pairs = read_lfw_pairs(write(people, "pairs.txt", text), people)
    assert pairs.images[2].endswith("Bo_B/Bo_B_0001.png")
    (people / "Bo_B" / "Bo_B_0001.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"txt:2: 'Bo_B_0001' may be .*Bo_B_0001\.jpg or .*Bo_B_0001\.png"):
        read_lfw_pairs(write(people, "pairs.txt", text), people)


def test_byte_order_marks_and_crlf(people):
    def marked(name, text):
        file = people.parent / name
        file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        return file

    assert read_lfw_pairs(marked("pairs.txt", "Ann_A 1 2\nAnn_A 2 Bo_B 1\n"), people).pairs.tolist() == [[0, 1], [1, 2]]
    listed = marked("list.txt", "faces/Ann_A/Ann_A_0001.jpg\nfaces/Bo_B/Bo_B_0001.jpg\n")
    text = "faces/Ann_A/Ann_A_0001.jpg faces/Bo_B/Bo_B_0001.jpg 0\n"
    pairs = read_pair_list(listed, marked("pair_list.txt", text))
    assert pairs.pairs.tolist() == [[0, 1]]
    scores = marked("s.txt", "Ann_A/Ann_A_0001.jpg 1\nBo_B/Bo_B_0001.jpg 2\n")
    assert read_scores(scores, pairs.images).tolist() == [1, 2]


def test_repeated_scores_agree_or_are_refused(people):
    """Up to what a GPU makes of one image in two batches."""
    paths = read_folders(people).images[:2]
    text = "Ann_A/Ann_A_0001.jpg 0.36241477\nAnn_A/Ann_A_0002.jpg 2\n"
    file = write(people, "s.txt", text + "Ann_A/Ann_A_0001.jpg 0.36241480\nAnn_A/Ann_A_0002.jpg 2\n")
    assert read_scores(file, paths).tolist() == [0.36241477, 2]
    with pytest.raises(
        ValueError, match=r"s\.txt:3: another score of 'Ann_A/Ann_A_0001\.jpg', 0\.3625 after 0\.362415"
    ):
        read_scores(write(people, "s.txt", text + "Ann_A/Ann_A_0001.jpg 0.3625\n"), paths)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("Ann/1.jpg", 0),
        ("/elsewhere/faces/Ann/1.jpg", 0),
        ("Ann/1.png", 0),  # no other is called so
        ("Bo/1", "may be .*Bo/1.jpg or .*Bo/1.png"),
        ("Bo/1.png", 2),
        ("Bo/s/2.jpg", 3),
        ("s/2.jpg", "may be .*Bo/s/2.jpg or .*Cy/s/2.jpg"),
        ("Cy/s/2.jpg", 4),
        ("images/3.jpg", 5),  # CR-FIQA's folder says nothing of who is shown
        ("3.jpg", 5),
        ("Dee/3.jpg", None),
        ("1.jpg", "may be .*Ann/1.jpg or .*Bo/1.jpg"),
        ("Dee/1.jpg", None),
        ("", None),
        ("/", None),
    ],
)
def test_names(path, place):
    images = [f"data/{name}" for name in ("Ann/1.jpg", "Bo/1.jpg", "Bo/1.png", "Bo/s/2.jpg", "Cy/s/2.jpg", "Cy/3.jpg")]
    if isinstance(place, str):
        with pytest.raises(ValueError, match=f"{path!r} {place}"):
            Names(images).find(path)
    else:
        assert Names(images).find(path) == place


def test_names_of_sessions_are_not_names_of_people():
    names = Names(["data/ann/2020/1.jpg", "data/bob/1.jpg", "data/carl/2021/3.jpg"])
    found = [names.find(path) for path in ("ann/2020/1.jpg", "x/data/bob/1.png", "bob/2020/1.jpg", "dora/2021/3.jpg")]
    assert found == [0, 1, None, None]


def test_names_where_all_are_in_one_folder():
    """Another's image of that name is another."""
    names = Names(["data/Ann/1.jpg", "data/Ann/2.jpg"])
    assert [names.find(path) for path in ("Ann/2.jpg", "2.jpg", "images/2.jpg", "Bo/2.jpg")] == [1, 1, 1, None]
    scripts = Names(["quality_data/lfw/images/00001.jpg"])
    assert scripts.find("aligned/Ann/00001.jpg") == 0


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
    images = [EncodedCrop(b"", f"image {i} of lfw.bin") for i in range(3)]
    file = write(tmp_path, "s.txt", "quality_data/lfw/images/00002.jpg 3\n00000.jpg 1\nimages/00001.jpg 2\n")
    assert read_scores(file, images).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"'00003\.jpg' is none of the images"):
        read_scores(write(tmp_path, "t.txt", "00003.jpg 1\n"), images)
