"""InsightFace's .bin: as every pickle protocol and NumPy writes it, and pickles that are something else."""

import io
import pickle
import re
import struct
from contextlib import suppress

import numpy as np
import pytest

from prefiqs_ext.evaluation.datasets.insightface_bin import read_bin

IMAGES = [b"a\xff\x00", b"bb", b"\x80", b"dd\n"]
LABELS = [True, False]


def as_arrays(images):
    return [np.frombuffer(image, np.uint8).copy() for image in images]


FORMS = {
    "bytes": (IMAGES, LABELS),
    "arrays": (as_arrays(IMAGES), LABELS),
    "read-only arrays": ([np.frombuffer(image, np.uint8) for image in IMAGES], LABELS),
    "columns, as cv2.imencode gives": ([image[:, None] for image in as_arrays(IMAGES)], LABELS),
    "an array of labels": (IMAGES, np.array(LABELS)),
    "labels of Fortran's order": (IMAGES, np.asfortranarray(LABELS)),
    "NumPy's scalars": (as_arrays(IMAGES), [np.bool_(label) for label in LABELS]),
    "numbers": (IMAGES, [1, 0]),
    "NumPy's numbers": (IMAGES, [np.int64(1), np.int64(0)]),
    "an array of numbers": (IMAGES, np.array([1, 0])),
    "an array of numbers, most significant byte first": (IMAGES, np.array([1, 0], ">i4")),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form, protocol):
    data = pickle.dumps(FORMS[form], protocol)
    assert_read(tmp_path, data)
    if protocol < 4:  # names are lines; before NumPy 2 they were these
        assert_read(tmp_path, data.replace(b"numpy._core", b"numpy.core"))


def assert_read(folder, data):
    (folder / "set.bin").write_bytes(data)
    found = read_bin(folder / "set.bin")
    assert [image.data for image in found.images] == IMAGES
    assert all(type(image.data) is bytes for image in found.images)
    assert found.pairs.tolist() == [[0, 1], [2, 3]]
    assert found.mated.tolist() == LABELS


def test_arrays_of_python_2(tmp_path):
    """8-bit strings in place of bytes and of text."""

    def array(kind, data):
        return (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K"
            + bytes([len(data)])
            + b"\x85cnumpy\ndtype\nU\x02"
            + kind
            + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
            + bytes([len(data)])
            + data
            + b"tb"
        )

    images = b"](" + b"".join(array(b"u1", image) for image in IMAGES) + b"e"
    data = b"\x80\x02" + images + array(b"b1", b"\x01\x00") + b"\x86."
    theirs = pickle.loads(data, encoding="bytes")
    assert [image.tobytes() for image in theirs[0]] == IMAGES
    assert theirs[1].tolist() == LABELS
    assert_read(tmp_path, data)


def test_bytes_of_python_2(tmp_path):
    data = b"\x80\x02]q\x00(U\x01aq\x01U\x01bq\x02U\x01cq\x03U\x01dq\x04e]q\x05(\x88\x89e\x86q\x06."
    (tmp_path / "set.bin").write_bytes(data)
    found = read_bin(tmp_path / "set.bin")
    assert [image.data for image in found.images] == [b"a", b"b", b"c", b"d"]
    assert found.images[3].name == f"image 3 of {tmp_path / 'set.bin'}"


class Calls:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.array([*IMAGES, None], object)[:4], LABELS, "arrays of 'O8', not of plain numbers"),
        (np.array(IMAGES), LABELS, "arrays of 'S3', not of plain numbers"),
        ([np.zeros((2, 3, 3), np.uint8)] * 4, LABELS, r"an array \[2, 3, 3\]: encode it first"),
        ([np.zeros(3, np.float32)] * 4, LABELS, "arrays of 'f4', not of plain numbers"),
        ([np.zeros(3, np.int16)] * 4, LABELS, "images are bytes, or arrays of them"),
        (IMAGES, [2, 0], "labels are true or false"),
        (IMAGES, [b"1", b"0"], "labels are true or false"),
        (IMAGES, np.array([[True], [False]]), "two lists are needed"),
        (IMAGES, [True], "it has 4 and 1"),
        (np.random.default_rng(0), LABELS, "which is not loaded|do not need"),
        (Calls(bytes, 1 << 20), LABELS, "takes 0 positional arguments but 1 was given"),
    ],
)
def test_something_else(tmp_path, images, labels, message, protocol):
    file = tmp_path / "set.bin"
    file.write_bytes(pickle.dumps((images, labels), protocol))
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}: expected InsightFace's .*") as caught:
        read_bin(file)
    said = str(caught.value)
    assert re.search(message, said), said
    assert "\n" not in said
    assert "save it with pickle.dump(([bytes(x) for x in images]" in said


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(tmp_path, protocol):
    file, target = tmp_path / "set.bin", tmp_path / "written"
    file.write_bytes(pickle.dumps(([Calls(open, str(target), "w")], []), protocol))
    with pytest.raises(ValueError, match=r"it names \w+\.open, which is not loaded"):
        read_bin(file)
    assert not target.exists()


HEAD = b"\x80\x04"
BUFFER = HEAD + b"cnumpy.core.numeric\n_frombuffer\n(C\x01acnumpy\ndtype\n\x8c\x02u1\x85R"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected InsightFace's"),
        (b"\xff\xd8 a jpeg", "expected InsightFace's"),
        (HEAD + b"]r\xff\xff\xff\x7f.", "LONG_BINPUT"),  # a memo place of two thousand million
        (HEAD + b"B\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (HEAD + b"h\x05.", "Memo value not found"),
        (pickle.dumps([b"a"] * 3), "too many values"),
        (pickle.dumps(([], [])), "expected pairs, found none"),
        # One string of 10 kB, copied ten thousand times.
        (
            HEAD
            + b"](X"
            + struct.pack("<I", 10_000)
            + b"x" * 10_000
            + b"q\x01\x8c\x06latin1q\x02"
            + b"c_codecs\nencode\nh\x01h\x02\x86R" * 10_000
            + b"e]\x86.",
            "copies more bytes than it has",
        ),
        (BUFFER + b"M\xff\xff\x85\x8c\x01CtR.", r"\[65535\] has 1 bytes"),
        (BUFFER + b"J\xff\xff\xff\xff\x85\x8c\x01CtR.", r"\[-1\] has 1 bytes"),
        (BUFFER + b"K\x00K\x07\x86\x8c\x01CtR.", r"\[0, 7\] has 1 bytes"),
        # What stands for a NumPy function is no object to change.
        (HEAD + b"c_codecs\nencode\n}\x8c\x01xK\x01sb.", "EMPTY_DICT"),
        (HEAD + b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01tb.", "values to unpack"),
        (HEAD + b"cos\nsystem\n.", "names os.system"),
        (HEAD + b"\x8c\x05numpy\x8c\x09core.load\x93.", "names numpy.core.load"),
        (b"p999999999999\n.", "do not need|expected"),
        (HEAD + b"cnumpy\ndtype\n(lp0\ng0\na.", "expected"),
        (HEAD + b"\x96" + struct.pack("<Q", 1 << 40) + b"x.", "expected"),
    ],
)
def test_hostile(tmp_path, data, message):
    (tmp_path / "set.bin").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_bin(tmp_path / "set.bin")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # of pickletools, over a text of protocol 0
def test_damaged(tmp_path):
    """Cut off anywhere, or one byte changed: images or a ValueError, no other; seeded."""
    random = np.random.default_rng(0)
    whole = [pickle.dumps(FORMS[form], protocol) for form in ("arrays", "NumPy's scalars") for protocol in (0, 2, 5)]
    for data in whole:
        for _ in range(150):
            changed = bytearray(data[: random.integers(len(data))] if random.random() < 0.3 else data)
            if changed:
                changed[random.integers(len(changed))] = random.integers(256)
            (tmp_path / "set.bin").write_bytes(changed)
            with suppress(ValueError):
                found = read_bin(tmp_path / "set.bin")
                assert all(isinstance(image.data, bytes) for image in found.images)


def test_numpy_itself_reads_what_was_written_as_advised(tmp_path):
    images, labels = FORMS["columns, as cv2.imencode gives"]
    file = io.BytesIO()
    pickle.dump(([bytes(x) for x in images], [bool(x) for x in labels]), file)
    assert_read(tmp_path, file.getvalue())
