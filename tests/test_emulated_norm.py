"""The CUDA dense_norm kernels, emulated, against torch in float64."""

from __future__ import annotations

import pytest
import torch

from tests.emulated import Kernels, library_of_this_tree

# Sums are in double, and the norm is rounded to float32 once: 6e-8.
TOLERANCE = 7e-8


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(library_of_this_tree())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "features"), [(1, 1), (5, 33), (3, 4096), (2, 3 * 4096 + 17)])
def test_norm(kernels: Kernels, rows: int, features: int, dtype: torch.dtype) -> None:
    src = torch.randn(rows, features, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.linalg.vector_norm(src.double(), dim=1)
    torch.testing.assert_close(kernels.dense_norm(src, src.shape[1]).double(), expected, rtol=TOLERANCE, atol=0.0)


def test_special_rows(kernels: Kernels) -> None:
    src = torch.ones(3, 5000)
    src[0] = 0
    src[1, 4999] = torch.nan
    src[2] = 1e30  # whose square float32 cannot hold
    norm = kernels.dense_norm(src, src.shape[1])
    assert norm[0] == 0
    assert norm[1].isnan()
    assert float(norm[2]) == pytest.approx(1e30 * 5000**0.5)


def test_rows_without_numbers_have_norm_zero(kernels: Kernels) -> None:
    assert kernels.dense_norm(torch.empty(3, 2), 0).tolist() == [0, 0, 0]


def test_a_row_has_the_same_bits_in_any_batch(kernels: Kernels) -> None:
    src = torch.randn(5, 4500, generator=torch.Generator().manual_seed(1))
    together = kernels.dense_norm(src, src.shape[1])
    assert all(torch.equal(together[row : row + 1], kernels.dense_norm(src[row : row + 1], 4500)) for row in range(5))
