// Large linear layers by AMX tiles: dst[row, co] = sum over k of src[row, k] * weight[co, k]. Few rows use a weight, so
// reading the weights takes longer than multiplying: a weight is read from memory once, and never transposed.
//
// Layout: weights are the first factor as they lie, 16 filters by 32 k, dense and masked; rows of src are the second,
// packed X [branch][step][16 pairs of k][16 rows][2]; sums [pair of tiles of filters][branch][2][16 filters][16 rows].
// In fast memory: for 16 rows of both branches, X of a block of k; 32 filters of one step, dense and masked; the sums.
// Loop: for each 16 rows, for each block of k: pack X; for each 32 filters: for each step: copy the weights, mask the
// copy; four products. At the end, the sums of each row: bias and activation. A sum is one chain in the order of k.
#pragma once
#include "conv_params.h"
#include "cpu/amx_pixels.h"
#include "cpu/amx_tiles.h"
#include "cpu/epilogue.h"
#include "cpu/heuristics.h"
#include "cpu/kernels.h"

namespace prefiqs {
namespace {

constexpr int64_t pair_filters = 32, tile_numbers = tile_rows * tile_k, tile_sums = 16 * 16;

// The calling thread's memory.
struct AmxLinearWorkspace {
  BFloat16* rows;     // X of a block of k
  BFloat16* weights;  // [dense, masked][2 tiles of filters]
  float* sums;

  explicit AmxLinearWorkspace(const ConvParams& p, int64_t pairs) {
    const int64_t row_numbers = p.branches * heuristics::amx_linear_steps * tile_numbers;
    const int64_t weight_numbers = 4 * tile_numbers;
    float* memory =
        thread_workspace(static_cast<size_t>((row_numbers + weight_numbers) / 2 + pairs * p.branches * 2 * tile_sums));
    rows = reinterpret_cast<BFloat16*>(memory);
    weights = rows + row_numbers;
    sums = reinterpret_cast<float*>(weights + weight_numbers);
  }
};

// Packs `count` numbers of each row, [pair of k][row][2]; what is missing of a tile becomes zeros.
template <class Src>
void pack_rows(const Src* src, int64_t stride, int64_t rows, int64_t count, BFloat16* tile) {
  BFloat16 numbers[tile_k];
  for (int64_t row = 0; row < tile_rows; ++row) {
    if (row < rows) {
      copy_step(src + row * stride, count, numbers);
    } else {
      set_zeros(tile_k, numbers);
    }
    for (int64_t k = 0; k < tile_k; k += 2)
      std::memcpy(tile + (k / 2 * 16 + row) * 2, numbers + k, 2 * sizeof *numbers);
  }
}

// Copies the 32 numbers whose bit is set, and zeros for the others.
void keep_numbers(const BFloat16* src, uint32_t bits, BFloat16* dst) {
#if defined(__AVX512BW__)
  _mm512_storeu_si512(dst, _mm512_maskz_loadu_epi16(bits, src));
#else
  for (int64_t i = 0; i < tile_k; ++i) dst[i].bits = static_cast<uint16_t>(src[i].bits & (0u - ((bits >> i) & 1u)));
#endif
}

// Copies `count` weights of a filter from k on, and the same with the pruned ones as zeros.
void copy_weights(const ConvParams& p, int64_t channel, int64_t k, int64_t count, BFloat16* dense, BFloat16* masked) {
  const BFloat16* weight = p.filter<BFloat16>(channel) + k;
  __builtin_prefetch(weight + heuristics::amx_linear_ahead);
  copy_step(weight, count, dense);
  if (p.mask != nullptr) keep_numbers(dense, p.mask[channel * p.mask_words + k / 32], masked);
}

// Adds the products of one block of k to the sums of 32 filters. `paired`: of both branches.
template <bool paired>
void multiply_filters(
    const ConvParams& p, const AmxLinearWorkspace& ws, int64_t channel, int64_t k_begin, int64_t k_end, float* sums) {
  const bool first = k_begin == 0;
  constexpr int64_t row = 16 * static_cast<int64_t>(sizeof(float));
  const auto take = [&]<int tile>() {
    if (first) {
      Tiles::zero<tile>();
    } else {
      Tiles::load<tile>(sums + tile * tile_sums, row);
    }
  };
  take.template operator()<0>();
  take.template operator()<1>();
  if constexpr (paired) {
    take.template operator()<2>();
    take.template operator()<3>();
  }
  BFloat16* masked = ws.weights + (p.mask == nullptr ? 0 : 2 * tile_numbers);
  const int64_t filters = min_of(pair_filters, p.out_c - channel);
  const BFloat16* x = ws.rows;
  for (int64_t k = k_begin; k < k_end; k += tile_k, x += tile_numbers) {
    for (int64_t j = 0; j < filters; ++j) {
      copy_weights(p, channel + j, k, min_of(tile_k, k_end - k), ws.weights + j * tile_k, masked + j * tile_k);
    }
    Tiles::load<4>(ws.weights, tile_row_bytes);
    Tiles::load<5>(ws.weights + tile_numbers, tile_row_bytes);
    Tiles::load<6>(x, tile_row_bytes);
    Tiles::multiply<0, 4, 6>();
    Tiles::multiply<1, 5, 6>();
    if constexpr (paired) {
      Tiles::load<7>(x + heuristics::amx_linear_steps * tile_numbers, tile_row_bytes);
      Tiles::load<4>(masked, tile_row_bytes);
      Tiles::load<5>(masked + tile_numbers, tile_row_bytes);
      Tiles::multiply<2, 4, 7>();
      Tiles::multiply<3, 5, 7>();
    }
  }
  Tiles::store<0>(sums, row);
  Tiles::store<1>(sums + tile_sums, row);
  if constexpr (paired) {
    Tiles::store<2>(sums + 2 * tile_sums, row);
    Tiles::store<3>(sums + 3 * tile_sums, row);
  }
}

// Finishes up to 16 filters of some rows.
void finish_tile(
    const ConvParams& p, int64_t branch, int64_t channel, int64_t row_begin, int64_t rows, const float* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    alignas(64) float filters[16];
    for (int64_t j = 0; j < 16; ++j) filters[j] = sums[j * 16 + row];
    for (int64_t v = 0; v < min_of(16, p.out_c - channel); v += Vec::width) {
      const int64_t left = p.out_c - channel - v;
      const Vec sum = Vec::load(filters + v);
      const int64_t pixel = (row_begin + row) * p.out_c;
      if (left >= Vec::width) {
        Epilogue<BFloat16, true>(p, branch, channel + v, left).finish(sum, pixel, 0);
      } else {
        Epilogue<BFloat16, false>(p, branch, channel + v, left).finish(sum, pixel, 0);
      }
    }
  }
}

// Multiplies up to 16 rows of both branches by filters [begin, end).
template <class Src>
void multiply_rows(
    const ConvParams& p, const AmxLinearWorkspace& ws, int64_t row_begin, int64_t rows, int64_t begin, int64_t end) {
  constexpr int64_t k_block = heuristics::amx_linear_steps * tile_k;
  const int64_t pair_sums = p.branches * 2 * tile_sums;
  for (int64_t k_begin = 0; k_begin < p.in_c; k_begin += k_block) {
    const int64_t k_end = min_of(p.in_c, k_begin + k_block);
    for (int64_t branch = 0; branch < p.branches; ++branch) {
      const Src* src = p.branch_src<Src>(branch) + row_begin * p.in_c;
      BFloat16* x = ws.rows + branch * heuristics::amx_linear_steps * tile_numbers;
      for (int64_t k = k_begin; k < k_end; k += tile_k, x += tile_numbers) {
        pack_rows(src + k, p.in_c, rows, min_of(tile_k, k_end - k), x);
      }
    }
    float* sums = ws.sums;
    for (int64_t c = begin; c < end; c += pair_filters, sums += pair_sums) {
      (p.branches == 2 ? multiply_filters<true> : multiply_filters<false>)(p, ws, c, k_begin, k_end, sums);
    }
  }
  const float* sums = ws.sums;
  for (int64_t c = begin; c < end; c += pair_filters) {
    for (int64_t branch = 0; branch < p.branches; ++branch) {
      for (int64_t half = 0; half < pair_filters; half += 16, sums += tile_sums) {
        if (c + half < end) finish_tile(p, branch, c + half, row_begin, rows, sums);
      }
    }
  }
}

bool amx_linear_fits(const ConvParams& p) {
  const bool one_pixel = p.in_h == 1 && p.in_w == 1 && p.out_h == 1 && p.out_w == 1 && p.taps() == 1;
  return p.weight_format == Format::bfloat16 && one_pixel && p.groups == 1 &&
         p.in_c * p.out_c >= heuristics::linear_least_weights;
}

int64_t amx_linear_work_items(const ConvParams& p) { return ceil_div(p.out_c, pair_filters); }

// An item of work is 32 filters.
void amx_linear_run(const ConvParams& p, int64_t begin, int64_t end) {
  const AmxLinearWorkspace ws(p, end - begin);
  std::memset(ws.weights, 0, 4 * tile_numbers * sizeof(BFloat16));  // of filters past the last one
  [[maybe_unused]] const Tiles tiles;
  for (int64_t row = 0; row < p.images; row += tile_rows) {
    with_formats(p, [&]<class Src, class Weight>() {
      multiply_rows<Src>(p, ws, row, min_of(tile_rows, p.images - row), begin * pair_filters,
                         min_of(p.out_c, end * pair_filters));
    });
  }
}

}  // namespace
}  // namespace prefiqs
