"""Groups of images: against plain loops over all pairs with pandas; tables of groups that are wrong; LaTeX."""

import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from tabulate import LATEX_ESCAPE_RULES

from prefiqs_ext.evaluation import groups as module
from prefiqs_ext.evaluation.comparison import Protocol, compare
from prefiqs_ext.evaluation.datasets.group_table import ALL_IMAGES, NO_GROUP, Groups, read_groups
from prefiqs_ext.evaluation.datasets.readers import Images, PairList
from prefiqs_ext.evaluation.groups import measure_groups
from prefiqs_ext.evaluation.latex import escape_latex, format_latex
from prefiqs_ext.evaluation.results import Result
from prefiqs_ext.exceptions import FileFormatError

RNG = np.random.default_rng(3)
WHO = np.repeat(np.arange(40), 3)
GROUPS = Groups("camera", ["a", "b", NO_GROUP], RNG.integers(0, 3, len(WHO)))
EMBEDDINGS = np.eye(40)[WHO] + RNG.normal(0, 0.22, (len(WHO), 40))
EMBEDDINGS = (EMBEDDINGS / np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True)).astype(np.float32)
QUALITY = {"q": RNG.permutation(len(WHO)).astype(float)}
PAIRS = np.array(list(combinations(range(len(WHO)), 2)))
PROTOCOL = Protocol(fmrs=(1e-2,), max_discard=0.6, resamples=50)


def measure(data, protocol=PROTOCOL):
    comparison = compare(data, EMBEDDINGS, QUALITY, protocol)
    return comparison, measure_groups(GROUPS, data, EMBEDDINGS, QUALITY, comparison.curves, protocol)


@pytest.mark.parametrize("listed", [False, True])
def test_all_pairs_by_pandas(listed, monkeypatch):
    """With and without a list of the pairs: the same as a table of all pairs, sorted, cut and grouped by pandas."""
    monkeypatch.setattr(module, "MIN_PERSONS", 3)
    monkeypatch.setattr(module, "MIN_PAIRS", 3)
    mated = WHO[PAIRS[:, 0]] == WHO[PAIRS[:, 1]]
    names = [str(i) for i in range(len(WHO))]
    _, found = measure(PairList(names, PAIRS, mated) if listed else Images(names, WHO))
    q = QUALITY["q"]
    table = pd.DataFrame({"mated": mated, "worse": q[PAIRS].min(1), "better": q[PAIRS].max(1)})
    table["score"] = (EMBEDDINGS[PAIRS[:, 0]].astype(float) * EMBEDDINGS[PAIRS[:, 1]]).sum(1)
    table["group"] = np.where(np.equal(*GROUPS.of_image[PAIRS.T]), GROUPS.of_image[PAIRS[:, 0]], -1)
    table = table.sort_values(["worse", "better"])
    seen = set()
    for at, ratio in enumerate(PROTOCOL.ratios):
        kept = table.iloc[int(ratio * len(table) + 1e-9) :]
        others = kept.score[~kept.mated].nlargest(int(0.01 * (~kept.mated).sum() + 1e-9) + 1)
        own = kept[kept.mated]
        fails = own.score <= others.iloc[-1]
        rates = fails.groupby(own.group).agg(["mean", "size"])
        for curve in found.curves:
            label = GROUPS.labels.index(curve.group) if curve.group != ALL_IMAGES else None
            members = q if label is None else q[GROUPS.of_image == label]
            assert curve.discarded[at] == (members < kept.worse.min()).mean()
            mean, size = (fails.mean(), len(own)) if label is None else rates.loc[label]
            assert curve.mated[at] == size
            if curve.known[at]:
                seen.add((curve.group, at))
                assert curve.fnmr[at] == pytest.approx(mean, abs=1e-12)  # the same two whole numbers, divided
                assert curve.interval[at, 0] <= mean <= curve.interval[at, 1]
    assert len(seen) > 30
    assert max(curve.fnmr.max() for curve in found.curves) > 0.02


def test_too_few():
    """13 or so pairs within a group are no FNMR; of all images 120 pairs of 40 persons are one."""
    _, found = measure(Images([str(i) for i in range(len(WHO))], WHO))
    assert [bool(curve.known[0]) for curve in found.curves] == [True, False, False, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a heading with a column path or person"),
        (b"path;sex\n", "expected a heading with a column path or person"),
        (b"path\na/1.png\n", "expected a column with the groups beside path"),
        (b"path,sex,age\n", "a name of one"),
        (b"path,sex\n", "expected groups of the images, got no line"),
        (b"path,sex\nx/1.png,f\n", "1 lines that name none of the images, the first 'x/1.png'"),
        (b"path,sex\na/1.png,f\na/1.png,m\n", ":3: 'a/1.png' is in two groups: 'm', and 'f' before"),
        (b"path,sex\na/1.png\n", ":2: expected 2 cells, got 1"),
        (b"path,sex\na/1.png,caf\xe9\n", r":2: expected the name of a group in UTF-8"),
        (b"path,sex\na/1.png,\x1b[31m\n", ":2: expected the name of a group in UTF-8"),
        (b"path,sex\na/1.png,all images\n", "what tables call all images together"),
        (b'path,sex\n"a/1.png,f\n', "expected a CSV table"),
    ],
)
def test_bad_tables(content, message, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(FileFormatError) as caught:
        read_groups(tmp_path / "t.csv", ["d/a/1.png", "d/b/2.png"], "d")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_read_by_person_and_by_path(tmp_path):
    images = [str(tmp_path / "d" / name) for name in ("a/1.png", "a/2.png", "b/3.png")]
    (tmp_path / "d").mkdir()
    (tmp_path / "t.csv").write_text("person,age\na,+65\n")
    assert read_groups(tmp_path / "t.csv", images, tmp_path / "d")[1] == ["+65", NO_GROUP]
    (tmp_path / "t.csv").write_text("path,x,age\nb/3.png,0,-18\nc/9.png,0,+65\n")
    lines = []
    found = read_groups(tmp_path / "t.csv", images, tmp_path / "d", "age", lines.append)
    assert (found.labels, found.of_image.tolist()) == (["-18", NO_GROUP], [1, 1, 0])
    assert lines == [f"{tmp_path}/t.csv: passed over 1 lines that name none of the images, the first 'c/9.png'"]


def test_latex():
    """The same seeds give the same bytes; each line has its columns; names are escaped as tabulate escapes them."""
    texts = []
    for _ in range(2):
        comparison, _ = measure(Images([str(i) for i in range(len(WHO))], WHO))
        texts.append(format_latex([Result("a_b", "n&m", len(WHO), comparison)], PROTOCOL))
    assert texts[0] == texts[1]
    assert r"a\_b" in texts[0]
    assert r"n\&m" in texts[0]
    (number,) = re.findall(r"^q & ([\d.]+) & ", texts[0], re.MULTILINE)
    assert float(number) == pytest.approx(comparison.curves["q"][0].area(0.3), rel=5e-3)  # three digits
    for special in "&%$#_{}":
        assert escape_latex(special) == LATEX_ESCAPE_RULES[special]
    assert escape_latex("*a--b\x1b") == r"{}*a-{}-b\textbackslash{}x1b"
