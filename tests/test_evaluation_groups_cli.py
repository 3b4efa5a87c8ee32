"""`prefiqs evaluate --groups --latex` from files to files, and the tables as pandas DataFrames."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from prefiqs_ext.cli import main
from prefiqs_ext.evaluation import EvaluationOptions, make_dataframe, run_evaluation
from prefiqs_ext.evaluation.score_files import ScoreFile
from prefiqs_ext.exceptions import InputError, MissingPackageError
from prefiqs_ext.utils import optional_packages

PERSONS, EACH = 48, 3
WHO = np.repeat(np.arange(PERSONS), EACH)


@pytest.fixture
def people(tmp_path):
    """Folders of persons, embeddings that err on some, scores, and a table of cameras: two for every second person."""
    rng = np.random.default_rng(5)
    names = [f"p{person:02}/{image}.png" for person in range(PERSONS) for image in range(EACH)]
    for level, name in enumerate(names):
        (tmp_path / "people" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((112, 112, 3), level, np.uint8)).save(tmp_path / "people" / name)
    noise = rng.uniform(0, 0.4, len(names))
    np.save(tmp_path / "e.npy", np.eye(PERSONS)[WHO] + noise[:, None] * rng.normal(size=(len(names), PERSONS)))
    (tmp_path / "q.txt").write_text("".join(f"{name} {-of:.6f}\n" for name, of in zip(names, noise, strict=True)))
    lines = [f"p{person:02},{'=old' if person % 2 else 'new'}\n" for person in range(PERSONS)]
    (tmp_path / "cameras.csv").write_text("person,camera\n" + "".join(lines))
    return tmp_path


def evaluate(people, *arguments):
    options = [
        "--methods",
        "",
        "--scores",
        f"q={people / 'q.txt'}",
        "--embeddings",
        str(people / "e.npy"),
        "--no-cache",
    ]
    fixed = ["--resamples", "20", "--max-discard", "0.3", "-o", str(people / "out")]
    return CliRunner().invoke(main, ["evaluate", str(people / "people"), *options, *fixed, *arguments])


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_of_groups(people):
    result = evaluate(people, "--groups", str(people / "cameras.csv"), "--latex")
    assert result.exit_code == 0, result.output
    assert "by camera, with 0.3 of the pairs discarded" in result.output
    rows = read_csv(people / "out" / "groups.csv")
    assert {row["group"] for row in rows} == {"all images", "new", "'=old"}  # no formula for a spreadsheet
    (last,) = (row for row in rows if (row["group"], row["fmr"], row["ratio"]) == ("new", "0.01", "0.3"))
    assert float(last["low"]) <= float(last["fnmr"]) <= float(last["high"])
    everyone = [row for row in rows if row["group"] == "all images" and row["fmr"] == "0.01"]
    report = json.loads((people / "out" / "edc.json").read_text())
    (curve,) = (curve for curve in report["results"][0]["curves"]["q"] if curve["fmr"] == 0.01)
    assert [float(row["fnmr"]) for row in everyone] == pytest.approx(curve["fnmr"])  # what the curve of all images says
    text = (people / "out" / "edc.tex").read_text()
    assert text.startswith("%") or "\\begin{tabular}" in text
    with Image.open(people / "out" / "groups.png") as picture:
        assert min(picture.size) > 300
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # something is drawn
    before = text
    assert evaluate(people, "--groups", str(people / "cameras.csv"), "--latex").exit_code == 0
    assert (people / "out" / "edc.tex").read_text() == before


def test_a_wrong_table_is_refused_before_anything_is_computed(people):
    (people / "cameras.csv").write_text("person,camera\nnobody,new\n")
    result = evaluate(people, "--groups", str(people / "cameras.csv"))
    assert result.exit_code == 1
    assert "got 1 lines that name none of the images, the first 'nobody'" in result.output
    assert not (people / "out").exists()


def test_dataframes(people, monkeypatch):
    options = EvaluationOptions(
        people / "people",
        methods=(),
        scores=(ScoreFile("q", people / "q.txt"),),
        embeddings=people / "e.npy",
        groups=people / "cameras.csv",
        max_discard=0.3,
        resamples=0,
        use_cache=False,
    )
    evaluation = run_evaluation(options)
    frame = make_dataframe(evaluation)
    assert list(frame["method"]) == ["q"] * 3
    assert pd.api.types.is_float_dtype(frame["pauc"])
    groups = make_dataframe(evaluation, "groups")
    new = groups[(groups.group == "new") & (groups.fmr == 0.01)]
    assert new.discarded.is_monotonic_increasing
    assert set(groups.group) == {"all images", "new", "=old"}
    with pytest.raises(InputError, match=r"expected a table of edc, .*groups, got 'roc'"):
        make_dataframe(evaluation, "roc")
    monkeypatch.setattr(optional_packages, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match="pandas"):
        make_dataframe(evaluation)
