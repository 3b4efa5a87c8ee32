"""The bootstrap against one that lists every pair of every draw."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prefiqs_ext.evaluation import bootstrap as bootstrap_module
from prefiqs_ext.evaluation import pair_blocks as blocks_module
from prefiqs_ext.evaluation.all_pairs import compute_all_pairs_curves
from prefiqs_ext.evaluation.bootstrap import resample_persons
from tests.test_evaluation_edc import faces


def listed(embeddings, who, quality, drawn, fmr, ratio):
    place = np.argsort(np.argsort(quality, kind="stable"))
    order = np.argsort(place)
    pairs = []
    for i in range(len(who)):
        for j in range(i + 1, len(who)):
            a, b = order[i], order[j]
            mated = who[a] == who[b]
            count = drawn[who[a]] * (1 if mated else drawn[who[b]])
            low, high = min(a, b), max(a, b)
            pairs.append((count, mated, float(embeddings[low] @ embeddings[high])))
    limit, gone, kept = int(ratio * sum(p[0] for p in pairs) + 1e-9), 0, []
    for pair in pairs:
        if gone >= limit:
            kept.append(pair)
        gone += pair[0]
    others = sorted((s for count, mated, s in kept if not mated for _ in range(count)), reverse=True)
    limit = others[int(fmr * len(others) + 1e-9)]
    own = [s for count, mated, s in kept if mated for _ in range(count)]
    # The score itself may differ by rounding from that of the matrix product: nothing mated is that near (see below).
    assert min(abs(s - limit) for s in own) > 1e-6
    return sum(s <= limit for s in own) / len(own)


@pytest.mark.parametrize("fmr", [0.2, 0.02])
def test_agrees_with_listed_pairs(fmr):
    embeddings, who, quality = faces(11)
    other = np.random.default_rng(1).integers(0, 5, len(who)).astype(float)
    result = resample_persons(embeddings, who, {"a": quality, "b": other}, fmrs=[fmr], resamples=5, seed=3)[fmr]
    draws = np.random.default_rng(3).multinomial(9, np.full(9, 1 / 9), 5)
    ratios = np.arange(7) / 20
    for name, values in {"a": quality, "b": other}.items():
        curves = [[listed(embeddings, who, values, drawn, fmr, r) for r in ratios] for drawn in draws]
        np.testing.assert_allclose(result.pauc[name], 1000 * np.trapezoid(curves, ratios), rtol=1e-12)
        np.testing.assert_allclose(result.useless, 300 * np.array(curves)[:, 0], rtol=1e-12)


def test_centred_on_the_curve_and_paired():
    embeddings, who, quality = faces(2, identities=40)
    result = resample_persons(embeddings, who, {"a": quality, "same": quality + 1}, fmrs=[0.05], resamples=200)[0.05]
    (curve,) = compute_all_pairs_curves(embeddings, who, quality, fmrs=(0.05,))
    low, high = np.percentile(result.pauc["a"], [0.5, 99.5])
    assert low < curve.area(0.3) < high
    assert result.interval("a", "same") == (0, 0)
    low, high = result.interval("a")
    assert low < 0 < high  # a random quality neither helps nor harms


def test_a_part_of_the_tail_stands_for_it(monkeypatch):
    rng = np.random.default_rng(4)
    who = np.repeat(np.arange(200), 4)
    quality = rng.normal(size=800)
    embeddings = rng.normal(size=(200, 32))[who] + np.exp(-quality / 3)[:, None] * rng.normal(size=(800, 32))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    settings = {"fmrs": [0.05], "resamples": 20}
    exact = resample_persons(embeddings, who, {"a": quality}, **settings)[0.05]
    monkeypatch.setattr(bootstrap_module, "_MOST", 20_000)  # of 64,000
    some, again = (resample_persons(embeddings, who, {"a": quality}, **settings)[0.05] for _ in range(2))
    np.testing.assert_array_equal(some.pauc["a"], again.pauc["a"])
    # 5,000 above the threshold, weights of mean square 4: an FMR off by 3 % (one sigma), a pAUC by less than that.
    assert not np.array_equal(some.pauc["a"], exact.pauc["a"])
    np.testing.assert_allclose(some.pauc["a"], exact.pauc["a"], rtol=0.1)
    np.testing.assert_allclose(some.useless, exact.useless, rtol=0.1)


@pytest.mark.parametrize("block", [1, 37, 1 << 23])
def test_blocks_agree(monkeypatch, block):
    """With scores that are exact in any order of addition, and tied."""
    rng = np.random.default_rng(5)
    embeddings = rng.permuted(np.tile([0.5] * 4 + [0.0] * 4, (60, 1)), axis=1) * rng.choice([-1, 1], (60, 8))
    who, quality = rng.integers(0, 12, 60), rng.normal(size=60)
    expected = resample_persons(embeddings, who, {"a": quality}, fmrs=[0.05], resamples=5)[0.05]
    monkeypatch.setattr(blocks_module, "_BLOCK", block)
    result = resample_persons(embeddings, who, {"a": quality}, fmrs=[0.05], resamples=5)[0.05]
    np.testing.assert_array_equal(result.pauc["a"], expected.pauc["a"])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pairs(tmp_path):
    peaks = {}
    for images in (3_000, 12_000):
        file = tmp_path / f"{images}.json"
        command = ["-m", "benchmarks.all_pairs", "--images", str(images), "--resamples", "2", "--json", str(file)]
        subprocess.run([sys.executable, *command], cwd=Path(__file__).parents[1], check=True)
        peaks[images] = {result["name"]: result["peak_bytes"] for result in json.loads(file.read_text())["results"]}
    # 4.5 and 72 million pairs: their scores alone would be 270 MB more. Embeddings take 5 MB more, a million pairs
    # that the bootstrap keeps 40 with what is computed of them.
    assert peaks[12_000]["all_pairs"] - peaks[3_000]["all_pairs"] < 60e6
    assert peaks[12_000]["bootstrap"] - peaks[3_000]["bootstrap"] < 100e6


def test_refused():
    embeddings, who, quality = faces(2)
    with pytest.raises(ValueError, match="as many"):
        resample_persons(embeddings, who, {"a": quality[:-1]})
    with pytest.raises(ValueError, match="as many"):
        resample_persons(embeddings, who, {})
    with pytest.raises(ValueError, match="normalised"):
        resample_persons(np.full_like(embeddings, np.nan), who, {"a": quality})
    with pytest.raises(ValueError, match="no mated pair"):
        resample_persons(embeddings, np.arange(len(who)), {"a": quality}, fmrs=[0.1], resamples=2)
