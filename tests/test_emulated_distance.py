"""The CUDA embedding_distance kernel, emulated, against torch in float64."""

from __future__ import annotations

import pytest
import torch

from tests import oracle
from tests.emulated import Kernels, library_of_this_tree

# Everything is computed in double and rounded to float32 once: 6e-8 of numbers up to 2.
TOLERANCE = 1.5e-7


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(library_of_this_tree())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "features"), [(1, 1), (1, 128), (3, 31), (4, 512), (9, 33)])
def test_distance(kernels: Kernels, rows: int, features: int, dtype: torch.dtype) -> None:
    pair = torch.randn(2 * rows, features).to(dtype)
    pair[rows:] = (0.9 * pair[:rows] + 0.1 * pair[rows:]).to(dtype)
    for got, expected in zip(
        kernels.embedding_distance(pair), oracle.expected_embedding_distance(pair.double()), strict=True
    ):
        assert got.shape == expected.shape
        torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_close_pairs_do_not_cancel(kernels: Kernels) -> None:
    dense = torch.randn(4, 512)
    pair = torch.cat([dense, dense * (1 + 1e-6 * torch.randn(4, 512))])
    distance, *_ = kernels.embedding_distance(pair)
    expected, *_ = oracle.expected_embedding_distance(pair.double())
    assert float(expected.max()) < 2e-6
    torch.testing.assert_close(distance.double(), expected, rtol=TOLERANCE, atol=0.0)


def test_zero_rows_stay_zero(kernels: Kernels) -> None:
    pair = torch.randn(6, 40)
    pair[4] = 0  # a pruned row
    pair[2] = 0  # a dense row
    pair[5] = 0  # its twin
    distance, embedding, pruned, norm = kernels.embedding_distance(pair)
    assert distance[1:].tolist() == pytest.approx([1.0, 0.0])
    assert not pruned[1].any()
    assert not embedding[2].any()
    assert norm[2] == 0


def test_nan_passes_on(kernels: Kernels) -> None:
    pair = torch.randn(6, 40)
    pair[1, 39] = float("nan")
    pair[5, 0] = float("nan")
    distance, embedding, pruned, norm = kernels.embedding_distance(pair)
    assert distance.isnan().tolist() == [False, True, True]
    assert bool(embedding[1].isnan().all())
    assert bool(pruned[2].isnan().all())
    assert norm.isnan().tolist() == [False, True, False]


def test_a_row_has_the_same_bits_in_any_batch(kernels: Kernels) -> None:
    pair = torch.randn(10, 70)
    together = kernels.embedding_distance(pair)
    for row in range(5):
        alone = kernels.embedding_distance(pair[[row, row + 5]])
        assert all(torch.equal(whole[row : row + 1], part) for whole, part in zip(together, alone, strict=True))
