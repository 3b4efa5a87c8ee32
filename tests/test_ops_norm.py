"""dense_norm against torch in float64, in every layout; the same bits in any batch and by any number of threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prefiqs_ext import ops
from tests import oracle

# Runs of 32 squares are added in float32, everything else in double. The errors of a row's many runs cancel for the
# most part; those of a short row are at most 33 roundings of the sum, half as many of the norm: 1e-6.
TOLERANCE = 1e-6

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "channels in another tensor": lambda t: torch.cat([t, t + 1], dim=1)[:, : t.shape[1]],
    "rows in another tensor": lambda t: torch.stack([t, t + 1], dim=1)[:, 0],
    "columns first": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "rows last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
}


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (6, 33, 1, 1), (2, 7, 13, 11), (4, 24, 37, 41)])
def test_norm(shape: tuple[int, ...], layout: str) -> None:
    src = LAYOUTS[layout](randn(*shape))
    for paired in (False, True):
        got, expected = ops.dense_norm(src, paired=paired), oracle.expected_dense_norm(src.double(), paired)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE, atol=0.0)


@pytest.mark.parametrize("shape", [(3,), (5, 511), (2, 17, 31), (2, 3, 5, 7, 9), (1, 3 * 16384 + 5)])
def test_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    src = randn(*shape)
    torch.testing.assert_close(
        ops.dense_norm(src).double(), oracle.expected_dense_norm(src.double(), False), rtol=TOLERANCE, atol=0.0
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_has_the_same_bits_in_any_batch_and_by_any_number_of_threads(layout: str) -> None:
    src = LAYOUTS[layout](randn(5, 24, 37, 41))  # three blocks a row
    norm = ops.dense_norm(src)
    for begin, end in ((0, 1), (2, 3), (1, 4)):
        assert torch.equal(ops.dense_norm(src[begin:end]), norm[begin:end])
    assert torch.equal(ops.dense_norm(torch.cat([src, src + 1]), paired=True), ops.dense_norm(src + 0))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(ops.dense_norm(src), norm)
    finally:
        torch.set_num_threads(threads)


def test_special_rows() -> None:
    src = torch.ones(8, 5000)
    src[0] = 0
    src[1, 4999] = torch.nan
    src[2, 17] = -torch.inf
    src[3] = 1e18
    src[4:] = torch.nan  # the pruned rows, which are not read
    norm = ops.dense_norm(src, paired=True)
    assert norm[0] == 0
    assert norm[1].isnan()
    assert norm[2] == torch.inf
    assert float(norm[3]) == pytest.approx(1e18 * 5000**0.5)


def test_nothing_to_read() -> None:
    assert ops.dense_norm(torch.empty(0, 3, 4, 5), paired=True).shape == (0,)
    assert ops.dense_norm(torch.empty(3, 0)).tolist() == [0, 0, 0]


def test_opcheck() -> None:
    for paired in (False, True):
        src = randn(6, 4, 5, 3).contiguous(memory_format=torch.channels_last)
        torch.library.opcheck(torch.ops.prefiqs_ext.dense_norm.default, (src, paired))
