"""The emulator's and the tests' strictness: kernels with one seeded mistake each must be caught."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from prefiqs_ext.pruning_masks import pack_mask
from tests import oracle
from tests.emulated import EMULATION, EMULATOR, ROOT, EmulationError, Kernels, compile_sources, link

GEMM, LOADER, EPILOGUE = "dual_conv_sm80.cuh", "gemm_loader.cuh", "epilogue.cuh"
SM90, IM2COL = "dual_conv_sm90.cuh", "im2col.h"


class Mutant(NamedTuple):
    file: str
    text: str
    instead: str


MUTANTS = {
    "none": Mutant(GEMM, "constexpr int stages = 4;", "constexpr int stages = 4;"),
    # The ring
    "no barrier after the wait": Mutant(
        GEMM, "cp_async_wait<stages - 2>();\n    __syncthreads();", "cp_async_wait<stages - 2>();"
    ),
    "wait one group too few": Mutant(GEMM, "cp_async_wait<stages - 2>();", "cp_async_wait<stages - 1>();"),
    "no commit in the loop": Mutant(GEMM, "cp_async_commit();\n    multiply", "multiply"),
    "load into the stage in use": Mutant(
        GEMM, "ring + (step + stages - 1) % stages", "ring + (step + stages) % stages"
    ),
    "load past the last step": Mutant(GEMM, "if (step + stages - 1 < work.steps) loader", "loader"),
    "multiply the next stage": Mutant(GEMM, "ring + step % stages", "ring + (step + 1) % stages"),
    # Where things lie in shared memory
    "no swizzle where weights are stored": Mutant(
        LOADER,
        "stage + place_ + i * rows_step * row_bytes, filter",
        "stage + threadIdx.x * 16 + i * rows_step * row_bytes, filter",
    ),
    "wrong swizzle where pixels are read": Mutant(GEMM, "lane % 8, lane / 8 % 2)", "lane % 8, lane / 16)"),
    "the pixels of the first 16 k twice": Mutant(GEMM, "(pixels ^ k16 * 32)", "pixels"),
    "misaligned staging": Mutant(GEMM, "staged_floats = channels + 4;", "staged_floats = channels + 2;"),
    "no barrier before the staging": Mutant(GEMM, "__syncthreads();\n    stage_sums", "stage_sums"),
    "no barrier after the staging": Mutant(GEMM, "__syncthreads();\n    finish_half", "finish_half"),
    # Edges
    "padding not zero": Mutant(LOADER, "valid = deep && inside(i, tap_)", "valid = deep"),
    "weights past the last filter": Mutant(LOADER, "deep && row < channels_", "deep"),
    "weights past the last k": Mutant(LOADER, "const bool deep = k < p_.depth;", "const bool deep = true;"),
    "pixels past the last": Mutant(LOADER, "pixel < p.pixels ? row : outside", "row"),
    "masks past the last filter": Mutant(LOADER, "filter < channels_);", "true);"),
    "outputs past the last pixel": Mutant(
        GEMM, "min_of(first_pixel + Shape::pixels, p.pixels)", "first_pixel + Shape::pixels"
    ),
    "channels in the wrong step": Mutant(LOADER, "r = 0;\n    channel += k_step;", "r = 0;"),
    # The pair
    "the dense pixels twice": Mutant(LOADER, "src + p_.src_branch * value_bytes(), valid", "src, valid"),
    "mask one bit off": Mutant(GEMM, "word << (6 - lane", "word << (7 - lane"),
    "mask one byte off": Mutant(GEMM, "k16 * 2 + i / 2;", "k16 * 2 + i % 2;"),
    "the first mask word for ever": Mutant(LOADER, "words_ + static_cast<uint32_t>(k) / k_step", "words_"),
    "the dense residual twice": Mutant(EPILOGUE, "row < p_.residual_pixels ? row", "row < p_.residual_pixels ? pixel"),
    "the second half past the residual": Mutant(EPILOGUE, "row - p_.residual_pixels", "row"),
    "the dense tap shift twice": Mutant(EPILOGUE, "<int64_t>(branch) * p.out_c", "<int64_t>(0 * branch) * p.out_c"),
    # The scale and the bias of the pruned branch
    "the scale dropped": Mutant(EPILOGUE, "scaled ? p.pruned_scale[channel + i] : 1.f", "1.f"),
    "the dense branch scaled": Mutant(EPILOGUE, "scaled = branch == 1 &&", "scaled ="),
    "scaled after the bias": Mutant(
        EPILOGUE, "fmaf(scale_[i], sums[i], constant[i])", "scale_[i] * (sums[i] + constant[i])"
    ),
    "the scale of the first channels for ever": Mutant(EPILOGUE, "p.pruned_scale[channel + i]", "p.pruned_scale[i]"),
    "the dense bias twice": Mutant(EPILOGUE, "p.bias + branch * p.bias_branch", "p.bias + 0 * p.bias_branch"),
    # Sums
    "segments in another order": Mutant("sum_segments.cu", "partial + segment *", "partial + (segments - segment) *"),
    "the last segment left out": Mutant("sum_segments.cu", "segment < segments", "segment < segments - 1"),
    "totals not added": Mutant(GEMM, "step < cut.segment_steps)", "true)"),
    "a segment begins with the last one's sums": Mutant(GEMM, "sums[half][m][n][i] = 0;", ""),
    # The epilogue
    "all taps at the border": Mutant(EPILOGUE, "constants(border, rows.begin,", "constants(border, 0,"),
    "rows counted through the batch": Mutant(
        EPILOGUE, "p_.by_out_h.remainder(p_.by_out_w.quotient(pixel))", "p_.by_out_w.quotient(pixel)"
    ),
    "slope where positive": Mutant(EPILOGUE, "sums[i] >= 0.f", "sums[i] <= 0.f"),
    "the residual of the pixel before": Mutant(GEMM, "fetch_residual(pixel + step, end)", "fetch_residual(pixel, end)"),
    "residuals past the last pixel": Mutant(EPILOGUE, "!fetches_ || pixel >= end", "!fetches_"),
    "the first four tap shifts twice": Mutant(EPILOGUE, "place + copied_channels_ / 2", "place"),
    # Collectives
    "a lane missing from ldmatrix": Mutant(GEMM, "ldmatrix_x4(a,", "if (lane != 5) ldmatrix_x4(a,"),
    "a warp missing from a barrier": Mutant(
        GEMM, "    __syncthreads();\n    stage_sums", "    if (threadIdx.x >= 32) __syncthreads();\n    stage_sums"
    ),
    # The kernel for 9.0a
    "sm90: fill a stage in use": Mutant(SM90, "mbarrier_bytes, turn.parity ^ 1);", "mbarrier_bytes, turn.parity);"),
    "sm90: fill without waiting": Mutant(
        SM90, "wait_until_free<mode>(shared, turn);\n      if (threadIdx", "if (threadIdx"
    ),
    "sm90: masks into a stage in use": Mutant(
        SM90, "wait_until_free<mode>(shared, turn);\n      const uint32_t stage", "const uint32_t stage"
    ),
    "sm90: read one phase early": Mutant(SM90, "mbarrier_bytes, turn.parity);", "mbarrier_bytes, turn.parity ^ 1);"),
    "sm90: the phase never turns": Mutant(SM90, "parity ^= 1;", ""),
    "sm90: a stage is never freed": Mutant(SM90, "if (threadIdx.x % 32 == 0) mbarrier", "if (false) mbarrier"),
    "sm90: a stage is freed by each lane": Mutant(SM90, "if (threadIdx.x % 32 == 0) mbarrier", "mbarrier"),
    "sm90: a stage is freed too early": Mutant(SM90, "wgmma_wait<0>();", "wgmma_wait<1>();"),
    "sm90: no wait for the product": Mutant(SM90, "  wgmma_wait<0>();\n", ""),
    "sm90: no commit": Mutant(SM90, "  wgmma_commit();\n", ""),
    "sm90: too few bytes expected": Mutant(SM90, "expect(full, Place::copied)", "expect(full, weight_bytes)"),
    "sm90: full without the masks": Mutant(SM90, "mode == Mode::unmasked ? 1 : 1 + mask_threads);", "1);"),
    "sm90: wrong swizzle": Mutant(IM2COL, "chunk ^ (row & 7)", "chunk ^ (row & 3)"),
    "sm90: wrong stride in the descriptor": Mutant(IM2COL, "uint64_t{64} << 32", "uint64_t{32} << 32"),
    "sm90: the first columns for ever": Mutant(IM2COL, "static_cast<uint32_t>(k16) * 32", "0"),
    "sm90: lower corner": Mutant(IM2COL, "map.lower[0] = -p.pad_w;", "map.lower[0] = 0;"),
    "sm90: upper corner": Mutant(IM2COL, "map.upper[0] = p.pad_w -", "map.upper[0] ="),
    "sm90: steps exchanged": Mutant(
        IM2COL,
        "map.traversal[1] = static_cast<uint32_t>(p.stride_w",
        "map.traversal[1] = static_cast<uint32_t>(p.stride_h",
    ),
    "sm90: taps exchanged": Mutant(
        SM90, "const int s = step.s * p.dilation_w, r = step.r", "const int s = step.r * p.dilation_w, r = step.s"
    ),
    "sm90: the dense pixels twice": Mutant(SM90, "second.image += p.images;", ";"),
    "sm90: mask from its word's beginning": Mutant(SM90, "step.k(p) % 32", "0"),
    "sm90: masks past the last filter": Mutant(SM90, "inside && filter < filters", "inside"),
    "sm90: the dense weights twice": Mutant(SM90, "sums[1], a[masked][k16]", "sums[1], a[0][k16]"),
    "sm90: no barrier before the staging": Mutant(
        SM90, "named_barrier(1 + group, group_threads);\n    stage_sums", "stage_sums"
    ),
    "sm90: no barrier after the staging": Mutant(
        SM90, "named_barrier(1 + group, group_threads);\n    if (count", "if (count"
    ),
    "sm90: the residual of the pixel before": Mutant(
        SM90, "fetch_residual(pixel + staged_pixels, end)", "fetch_residual(pixel, end)"
    ),
    "sm90: tap shifts exchanged too early": Mutant(SM90, "named_barrier(1 + group, group_threads);  // the", "//"),
    "sm90: tap shifts read too early": Mutant(
        SM90, "named_barrier(1 + group, group_threads);\n  const Epilogue", "const Epilogue"
    ),
    # The other kernels
    "depthwise: no barrier after fetching": Mutant("depthwise_conv.cu", "weights);\n    __syncthreads();", "weights);"),
    "depthwise: no barrier before fetching": Mutant(
        "depthwise_conv.cu", "__syncthreads();\n    fetch_weights", "fetch_weights"
    ),
    "depthwise: the dense weight twice": Mutant("depthwise_conv.cu", "keep ? weight : 0.f", "keep ? weight : weight"),
    "plain: padding not zero": Mutant(LOADER, "k + j < p_.depth && inside(i, tap)", "k + j < p_.depth"),
    "sums: half of the lanes": Mutant("row_kernels.cuh", "distance = 16;", "distance = 8;"),
    "norm: the first block for ever": Mutant("dense_norm.cu", "p.step + first;", "p.step;"),
    "norm: no gap between the rows": Mutant("dense_norm.cu", "* p.step", "* p.features"),
    "norm: past the last number": Mutant(
        "dense_norm.cu", "p.features - first < norm_block ? p.features - first : norm_block", "norm_block"
    ),
    "norm: the last block left out": Mutant("dense_norm.cu", "i < p.blocks", "i < p.blocks - 1"),
}


# The sources of the library the mutants are in, and which of them a header changes. Of a template that several have,
# such as the epilogue, the linker takes the first, unoptimised as it is here: compiling that one anew is enough.
KERNELS = [
    ROOT / "csrc" / "cuda" / f"{name}.cu"
    for name in ("dispatch", "sum_segments", "depthwise_conv", "dense_norm", "distance")
]
SOURCES = [EMULATION / "narrow_only.cpp", EMULATION / "paired_only.cpp", *EMULATOR, *KERNELS]
READERS = {
    GEMM: ["narrow_only.cpp"],
    LOADER: ["narrow_only.cpp"],
    EPILOGUE: ["narrow_only.cpp"],
    "row_kernels.cuh": ["dense_norm.cu", "distance.cu"],
    SM90: ["paired_only.cpp"],
    IM2COL: ["paired_only.cpp"],
}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of the kernels as they are, by the name of their source."""
    compiled = compile_sources(tmp_path_factory.mktemp("objects"), ROOT / "csrc", SOURCES, "-O0")
    return {source.name: file for source, file in zip(SOURCES, compiled, strict=True)}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str, objects: dict[str, Path], tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", csrc, ignore=shutil.ignore_patterns("cpu"))
    file = csrc / "cuda" / mutant.file
    text = file.read_text()
    assert text.count(mutant.text) == 1
    file.write_text(text.replace(mutant.text, mutant.instead))
    changed = [
        csrc / "cuda" / source.name if source in KERNELS else source
        for source in SOURCES
        if source.name in READERS.get(mutant.file, [mutant.file])
    ]
    fresh = compile_sources(tmp_path, csrc, changed, "-O0", "-w")
    replaced = objects | {source.name: file for source, file in zip(changed, fresh, strict=True)}
    library = link(list(replaced.values()), tmp_path / "mutant.so")
    assert passes(Kernels(library)) == (name == "none")


def passes(kernels: Kernels) -> bool:
    """The standard small test: one layer of each kind with everything an epilogue can have."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Eleven steps of K, the last one half full; edges in filters and pixels; a paired residual.
        layer = conv(40, 20, 3, image=(4, 9), paired=True)
        if not close(kernels, layer):
            return False
        # Three segments, in one block and in three.
        deep = conv(192, 20, 3, image=(3, 4), paired=True)
        if not close(kernels, deep) or not torch.equal(kernels.conv2d(**deep, split=False), kernels.conv2d(**deep)):
            return False
        # Residuals that are fetched ahead, one for both branches: nothing follows its last pixel.
        if not close(kernels, conv(3, 24, 3, image=(3, 4), paired=False, dst_dtype=torch.float16)):
            return False
        if not close(kernels, conv(16, 16, 7, image=(5, 6), paired=True, groups=16)):
            return False
        if not close(kernels, sm90_conv()):
            return False
        rows = torch.randn(3, 4096 + 80)
        if not torch.allclose(kernels.dense_norm(rows, 4096 + 70), rows[:, : 4096 + 70].norm(dim=1), rtol=1e-6):
            return False
        pair = torch.randn(6, 70)
        distances = kernels.embedding_distance(pair)
        expected = oracle.expected_embedding_distance(pair.double())
        return all(
            torch.allclose(*both, atol=1e-6) for both in zip(distances, (e.float() for e in expected), strict=True)
        )
    except EmulationError:
        return False
    finally:
        torch.set_num_threads(threads)


def conv(
    channels: int,
    filters: int,
    kernel: int,
    *,
    image: tuple[int, int],
    paired: bool,
    groups: int = 1,
    dst_dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    weight = torch.randn(filters, channels // groups, kernel, kernel)
    weight = (weight / weight[0].numel() ** 0.5).half()
    return {
        "src": torch.randn(4, channels, *image).half(),
        "weight": weight,
        "mask": pack_mask(torch.rand(weight.shape) < 0.6),
        "pruned_scale": torch.randn(filters),
        "bias": torch.randn(2, filters),
        "tap_shift": torch.randn(2, filters, kernel, kernel),
        "slope": torch.rand(filters) - 0.3,
        "residual": torch.randn(4, filters, *image).to(dst_dtype),
        "dst_dtype": dst_dtype,
        "padding": (kernel // 2, kernel // 2),
        "groups": groups,
        "paired": paired,
    }


def sm90_conv() -> dict[str, Any]:
    """Several tiles for one block, several rounds of the ring, and no word of a mask that begins with a step.

    Of 128 pixels 120 are used: the last ones staged have a border, and so read tap shifts.
    """
    weight = (torch.randn(136, 40, 3, 3) / 360**0.5).half()
    return {
        "src": torch.randn(10, 40, 9, 6).half(),
        "weight": weight,
        "mask": pack_mask(torch.rand(weight.shape) < 0.6),
        "tap_shift": torch.randn(2, 136, 3, 3),
        "residual": torch.randn(10, 136, 4, 6).half(),
        "dst_dtype": torch.float16,
        "stride": (2, 1),
        "padding": (0, 1),
        "paired": True,
        "sm90": True,
        "multiprocessors": 1,
    }


def close(kernels: Kernels, inputs: dict[str, Any]) -> bool:
    """Float32 sums of at most 1728 products of unit variance in all: 1e-5 is far above their error.

    Results of 16 bits are rounded once more.
    """
    rounding = 2.0**-11 if inputs["dst_dtype"] == torch.float16 else 0.0
    wide = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    for only_ours in ("sm90", "multiprocessors", "dst_dtype"):
        wide.pop(only_ours, None)
    expected = oracle.expected_dual_conv2d(**wide)
    allowed = 1e-5 * expected.abs().max() + rounding * expected.abs()
    return bool(((kernels.conv2d(**inputs).double() - expected).abs() <= allowed).all())
