"""The eight benchmarks in their published layouts, in miniature."""

import pickle

import numpy as np
import paper_benchmark_sets as sets
import pytest
import torch

from prefiqs_ext.evaluation.datasets.crfiqa import read_quality_data
from prefiqs_ext.evaluation.datasets.ijbc import Templates
from prefiqs_ext.evaluation.datasets.paper_benchmarks import BENCHMARKS, find_benchmarks
from prefiqs_ext.evaluation.datasets.readers import Images, PairList
from prefiqs_ext.evaluation.datasets.sources import SwappedCrop, read_every_crop
from prefiqs_ext.faces import CropTemplate

IDENTITIES = np.repeat(np.arange(sets.PEOPLE), sets.EACH)


def assert_like(crops, faces):
    """Equal up to JPEG, which is at quality 100."""
    assert crops.shape == faces.shape
    difference = float((crops.int() - faces.int()).abs().float().mean())
    assert difference < 1


def read(data):
    return torch.stack(list(read_every_crop(data.images, CropTemplate())))


def assert_pair_list(data, seed):
    assert isinstance(data, PairList)
    crops, faces = read(data), sets.faces(seed)
    assert data.mated.tolist() == sets.LABELS
    for side in (0, 1):
        assert_like(crops[data.pairs[:, side]], faces[[pair[side] for pair in sets.pairs(seed)]])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    sets.write_all(root)
    return root


def test_all_eight(root):
    found, absent = find_benchmarks(root)
    assert not absent
    assert [f.benchmark for f in found] == list(BENCHMARKS)
    names = ["LFW", "AgeDB-30", "CFP-FP", "CALFW", "CPLFW", "Adience", "XQLFW", "IJB-C"]
    assert [benchmark.name for benchmark in BENCHMARKS] == names
    loaded = {f.benchmark.name: f.load() for f in found}
    for seed, name in enumerate(["LFW", "AgeDB-30", "CFP-FP", "CALFW", "CPLFW", "XQLFW"]):
        assert_pair_list(loaded[name], seed)
    assert isinstance(loaded["Adience"], Images)
    assert loaded["Adience"].identities.tolist() == IDENTITIES.tolist()
    assert_like(read(loaded["Adience"]), sets.faces(6))
    assert isinstance(loaded["IJB-C"], Templates)
    assert_like(read(loaded["IJB-C"]), sets.faces(7))


def test_other_layouts(tmp_path):
    data = tmp_path / "quality_data"
    sets.write_quality_data_of_bin(data / "lfw")
    sets.write_quality_data_of_xqlfw(data / "XQLFW", 1)
    sets.write_bin(tmp_path / "cfp_fp.bin", 2)
    sets.write_ijbc(tmp_path / "IJB_release" / "IJBC", 3)
    found, absent = find_benchmarks(tmp_path)
    assert [f.benchmark.name for f in found] == ["LFW", "CFP-FP", "XQLFW", "IJB-C"]
    for place, seed in enumerate((0, 2, 1)):
        assert_pair_list(found[place].load(), seed)
    assert len(found[2].load().images) == len({i for pair in sets.pairs(1) for i in pair})
    assert [a.benchmark.name for a in absent] == ["AgeDB-30", "CALFW", "CPLFW", "Adience"]
    assert absent[0].looked == ("agedb_30.bin", "faces_emore/agedb_30.bin", "quality_data/agedb_30")


def test_half_a_layout_is_absent(tmp_path):
    sets.write_xqlfw(tmp_path / "XQLFW")
    (tmp_path / "XQLFW" / "xqlfw_pairs.txt").unlink()
    found, absent = find_benchmarks(tmp_path)
    assert not found
    assert absent[6].looked[0] == "XQLFW/xqlfw_pairs.txt + XQLFW/xqlfw_aligned_112"
    with pytest.raises(ValueError, match="expected a folder"):
        find_benchmarks(tmp_path / "none")


def test_published_pickles_of_python_2(tmp_path):
    """Protocol 2 with 8-bit strings, as lfw.bin and its like have."""
    images = [sets.jpeg(picture) for picture in sets.faces()[:2]]
    body = b"".join(b"T" + len(image).to_bytes(4, "little") + image for image in images)
    (tmp_path / "lfw.bin").write_bytes(b"\x80\x02](" + body + b"e](\x89e\x86.")
    data = find_benchmarks(tmp_path)[0][0].load()
    assert pickle.loads((tmp_path / "lfw.bin").read_bytes(), encoding="bytes") == (images, [False])
    assert_like(read(data), sets.faces()[:2])


@pytest.mark.parametrize("swapped", [True, False])
def test_colours_are_seen(tmp_path, swapped):
    folder = tmp_path / "quality_data" / "lfw"
    sets.write_quality_data_of_bin(folder, swapped=swapped)
    data = read_quality_data(folder)
    assert {type(image) for image in data.images} == {SwappedCrop if swapped else str}
    assert_pair_list(data, 0)


def test_renamed_folder(tmp_path):
    sets.write_quality_data_of_bin(tmp_path / "quality_data" / "lfw")
    (tmp_path / "quality_data").rename(tmp_path / "mine")
    assert_pair_list(read_quality_data(tmp_path / "mine" / "lfw"), 0)


def test_adience_without_all_pairs_is_a_pair_list(tmp_path):
    folder = tmp_path / "quality_data" / "adience"
    sets.write_adience(folder)
    file = folder / "pair_list.txt"
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join(rows[:-1]))
    data = read_quality_data(folder)
    assert isinstance(data, PairList)
    assert len(data.pairs) == len(rows) - 1
    assert data.mated.tolist() == (IDENTITIES[data.pairs[:, 0]] == IDENTITIES[data.pairs[:, 1]]).tolist()
    file.unlink()
    assert isinstance(read_quality_data(folder), Images)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("pair_list.txt", "00000 00001 2\n", r"pair_list.txt:1: expected `name name 0\|1`"),
        ("pair_list.txt", "00000 00001 00001\n\n00000 00001\n", "pair_list.txt:3: expected"),
        ("pair_list.txt", "00000 other 1\n", "pair_list.txt:1: 'other' is not in"),
        ("pair_list.txt", "", "expected pairs, found none"),
        ("image_path_list.txt", "", "expected images, found none"),
        ("image_path_list.txt", "quality_data/lfw/images/no.jpg\n", "image_path_list.txt:1: no image .*no.jpg"),
        (
            "image_path_list.txt",
            "quality_data/lfw/images/00000.jpg\nquality_data/lfw/other/00000.jpg\n",
            "pair_list.txt:1: '00000' may be .*images/00000.jpg or .*other/00000.jpg",
        ),
    ],
)
def test_bad_quality_data(tmp_path, file, text, message):
    folder = tmp_path / "quality_data" / "lfw"
    sets.write_quality_data_of_bin(folder)
    (folder / "other").mkdir()
    (folder / "other" / "00000.jpg").write_bytes(b"")
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_quality_data(folder)
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError):
        read_quality_data(folder)
