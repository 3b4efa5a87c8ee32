// Large linear layers: dst[row, co] = sum over k of src[row, k] * weight[co, k]. At the batch sizes of scoring, reading
// the weights takes longer than multiplying by them: each is read from memory once, for the rows of both branches.
//
// In fast memory: `k_block` inputs of `row_block` rows of both branches; the weights stream by unpacked. Tile loop: for
// each block of rows, for each block of k, for each two filters, for each few rows: a vector of weights, dense and
// masked in registers, by the rows' inputs; the lanes are added up at the end and the blocks' sums in dst. Lanes and
// blocks depend on the layer alone: neither the batch nor the number of threads changes a bit.
#pragma once
#include "cpu/epilogue.h"
#include "cpu/kernels.h"

namespace prefiqs {
namespace {

constexpr int lanes = Vec::width;
constexpr int most_rows = Vec::width == 16 ? 6 : 2;  // by 2 filters and 2 branches, and what they need, in registers
constexpr int64_t k_block = 2048;
constexpr int64_t row_block = 24;               // 24 rows of 2048 inputs of two branches: 400 KB
constexpr int64_t fewest_weights = 256 * 1024;  // 1 MiB: fewer stay in the second-level cache anyway

// Two filters and one block of k.
struct FilterPair {
  const float* weight[2];
  const uint32_t* mask[2];  // null: all weights are kept
  int64_t k_count;
};

// Adds to dst the products of a few rows, or stores them if these are the `first`. `src` and `dst`: of each branch.
template <int rows, int branches>
void multiply_rows(int64_t row_count,
                   const FilterPair& pair,
                   const float* const* src,
                   int64_t src_stride,
                   float* const* dst,
                   int64_t dst_stride,
                   int64_t filters,
                   bool first) {
  if (row_count < rows) {
    if constexpr (rows > 1) {
      multiply_rows<rows - 1, branches>(row_count, pair, src, src_stride, dst, dst_stride, filters, first);
    }
    return;
  }
  Vec sum[rows][2][branches];
  for (int m = 0; m < rows; ++m) {
    for (int j = 0; j < 2; ++j) {
      for (int b = 0; b < branches; ++b) sum[m][j][b] = Vec::zero();
    }
  }
  for (int64_t k = 0; k < pair.k_count; k += lanes) {
    const int64_t n = min_of(lanes, pair.k_count - k);
    const auto load = [n](const float* from) { return n == lanes ? Vec::load(from) : Vec::load(from, n); };
    Vec weight[2][branches];
    for (int j = 0; j < 2; ++j) {
      weight[j][0] = load(pair.weight[j] + k);
      if (branches == 1) continue;
      const uint32_t bits = pair.mask[j] == nullptr ? ~0u : pair.mask[j][k / 32] >> (k % 32);
      weight[j][branches - 1] = Vec::keep(weight[j][0], bits);
    }
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 2
      for (int b = 0; b < branches; ++b) {
        const Vec x = load(src[b] + m * src_stride + k);
        sum[m][0][b] = Vec::fma(x, weight[0][b], sum[m][0][b]);
        sum[m][1][b] = Vec::fma(x, weight[1][b], sum[m][1][b]);
      }
    }
  }
  for (int m = 0; m < rows; ++m) {
    for (int b = 0; b < branches; ++b) {
      for (int64_t j = 0; j < filters; ++j) {
        float& at = dst[b][m * dst_stride + j];
        at = first ? sum[m][j][b].sum() : at + sum[m][j][b].sum();
      }
    }
  }
}

// Filters [begin, end) for rows [row_begin, row_end) of each branch.
template <int branches>
void linear_rows(const ConvParams& p, int64_t begin, int64_t end, int64_t row_begin, int64_t row_end) {
  for (int64_t k = 0; k < p.in_c; k += k_block) {
    for (int64_t c = begin; c < end; c += 2) {
      const int64_t filters = min_of(2, end - c), other = c + filters - 1;  // a last filter alone is its own partner
      FilterPair pair{{p.weight + c * p.in_c + k, p.weight + other * p.in_c + k}, {}, min_of(k_block, p.in_c - k)};
      if (p.mask != nullptr) {
        pair.mask[0] = p.mask + c * p.mask_words + k / 32;
        pair.mask[1] = p.mask + other * p.mask_words + k / 32;
      }
      for (int64_t row = row_begin; row < row_end; row += most_rows) {
        const float* const src[2] = {p.branch_src(0) + row * p.in_c + k, p.branch_src(1) + row * p.in_c + k};
        float* const dst[2] = {p.branch_dst(0) + row * p.out_c + c, p.branch_dst(1) + row * p.out_c + c};
        multiply_rows<most_rows, branches>(min_of(most_rows, row_end - row), pair, src, p.in_c, dst, p.out_c, filters,
                                           k == 0);
      }
    }
  }
}

template <bool full>
void finish_vector(
    const ConvParams& p, int64_t branch, int64_t channel, int64_t count, int64_t row_begin, int64_t row_end) {
  const Epilogue<full> epilogue(p, branch, channel, count);
  for (int64_t row = row_begin; row < row_end; ++row) {
    epilogue.finish(epilogue.stored(row * p.out_c), row * p.out_c, 0);
  }
}

void finish_rows(const ConvParams& p, int64_t begin, int64_t end, int64_t row_begin, int64_t row_end) {
  for (int64_t branch = 0; branch < p.branches; ++branch) {
    for (int64_t c = begin; c < end; c += lanes) {
      (c + lanes <= end ? finish_vector<true> : finish_vector<false>)(p, branch, c, end - c, row_begin, row_end);
    }
  }
}

bool linear_fits(const ConvParams& p) {
  const bool one_pixel = p.in_h == 1 && p.in_w == 1 && p.out_h == 1 && p.out_w == 1 && p.taps() == 1;
  return one_pixel && p.groups == 1 && p.in_c * p.out_c >= fewest_weights;
}

int64_t linear_work_items(const ConvParams& p) { return ceil_div(p.out_c, lanes); }

// An item is a vector of filters, so that threads do not write the same cache line.
void linear_run(const ConvParams& p, int64_t begin, int64_t end) {
  const int64_t filter_begin = begin * lanes, filter_end = min_of(end * lanes, p.out_c);
  for (int64_t row = 0; row < p.images; row += row_block) {
    const int64_t row_end = min_of(row + row_block, p.images);
    const auto multiply = p.branches == 2 ? linear_rows<2> : linear_rows<1>;
    multiply(p, filter_begin, filter_end, row, row_end);
    finish_rows(p, filter_begin, filter_end, row, row_end);
  }
}

}  // namespace
}  // namespace prefiqs
