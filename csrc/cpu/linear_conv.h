// Large linear layers: dst[row, co] = sum over k of src[row, k] * weight[co, k]. At small batches reading the weights
// takes longer than multiplying by them, so each weight is read from memory once for the rows of both branches.
//
// Layout: src, weight and dst as they are, rows of k or co; masked weights [filter][k of the block].
// In fast memory: the weights of a block of filters by a block of k, dense and masked, in second-level cache.
// Loop: for each block of k, for each block of filters: mask; for each branch, for a few rows, for two filters:
// multiply vectors along k, add up the lanes, add the sum to dst. At the end: bias and activation. Lanes and blocks of
// k depend on the layer alone, so neither the batch nor the number of threads changes a bit.
#pragma once
#include "cpu/epilogue.h"
#include "cpu/heuristics.h"
#include "cpu/kernels.h"

namespace prefiqs {
namespace {

constexpr int lanes = Vec::width;
constexpr int most_rows = Vec::width == 16 ? 12 : 6;  // sums of so many rows by two filters fit the registers
constexpr int64_t k_block = heuristics::linear_k_block, filter_block = heuristics::linear_filter_block;

// A few rows by two filters of one branch, for one block of k.
struct RowsTask {
  const float* src;    // of the first row
  int64_t src_stride;  // floats
  const float* weight[2];
  int64_t k_count;
  float* dst;  // of the first row and filter
  int64_t dst_stride;
  int64_t filters;  // 1 or 2
  bool first;       // of the blocks of k
};

// Adds the products of `rows` rows to dst, or stores them there for the first block of k.
template <int rows>
void multiply_rows(const RowsTask& t) {
  Vec sum[rows][2];
  for (int m = 0; m < rows; ++m) sum[m][0] = sum[m][1] = Vec::zero();
  const auto add = [&](int64_t k, const auto& load) __attribute__((always_inline)) {
    const Vec first = load(t.weight[0] + k), second = load(t.weight[1] + k);
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
      const Vec x = load(t.src + m * t.src_stride + k);
      sum[m][0] = Vec::fma(x, first, sum[m][0]);
      sum[m][1] = Vec::fma(x, second, sum[m][1]);
    }
  };
  int64_t k = 0;
  for (; k + lanes <= t.k_count; k += lanes) add(k, [](const float* from) { return Vec::load(from); });
  const int64_t left = t.k_count - k;
  if (left > 0) add(k, [left](const float* from) { return Vec::load(from, left); });
  for (int m = 0; m < rows; ++m) {
    for (int64_t j = 0; j < t.filters; ++j) {
      float& at = t.dst[m * t.dst_stride + j];
      at = t.first ? sum[m][j].sum() : at + sum[m][j].sum();
    }
  }
}

// The same for any number of rows, at most `most`.
template <int most>
void multiply_some_rows(const RowsTask& t, int64_t rows) {
  if (rows == most) {
    multiply_rows<most>(t);
  } else if constexpr (most > 1) {
    multiply_some_rows<most - 1>(t, rows);
  }
}

// Copies `count` weights of filter `channel` from k on, with the pruned ones as zeros. Meanwhile the next filter's are
// fetched.
void mask_weights(const ConvParams& p, int64_t channel, int64_t k, int64_t count, float* dst) {
  const float* weight = p.weight + channel * p.in_c + k;
  const uint32_t* mask = p.mask + channel * p.mask_words + k / 32;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    __builtin_prefetch(weight + i + p.in_c);
    Vec::keep(Vec::load(weight + i), mask[i / 32] >> (i % 32)).store(dst + i);
  }
  if (i < count) Vec::keep(Vec::load(weight + i, count - i), mask[i / 32] >> (i % 32)).store(dst + i, count - i);
}

// Multiplies all rows by filters [begin, end), at most `filter_block`, for k_count inputs from k on. `masked` is memory
// for the masked weights.
void linear_block(const ConvParams& p, int64_t begin, int64_t end, int64_t k, int64_t k_count, float* masked) {
  if (p.mask != nullptr) {
    for (int64_t c = begin; c < end; ++c) mask_weights(p, c, k, k_count, masked + (c - begin) * k_block);
  }
  for (int64_t branch = 0; branch < p.branches; ++branch) {
    const bool use_masked = branch == 1 && p.mask != nullptr;
    const float* weights = use_masked ? masked : p.weight + begin * p.in_c + k;
    const int64_t weight_stride = use_masked ? k_block : p.in_c;
    for (int64_t row = 0; row < p.images; row += most_rows) {
      for (int64_t c = begin; c < end; c += 2) {
        const int64_t filters = min_of(2, end - c);
        const float* weight = weights + (c - begin) * weight_stride;
        // A last filter without a partner is its own partner.
        const RowsTask task{p.branch_src(branch) + row * p.in_c + k,
                            p.in_c,
                            {weight, weight + (filters - 1) * weight_stride},
                            k_count,
                            p.branch_dst(branch) + row * p.out_c + c,
                            p.out_c,
                            filters,
                            k == 0};
        multiply_some_rows<most_rows>(task, min_of(most_rows, p.images - row));
      }
    }
  }
}

template <bool full>
void finish_vector(const ConvParams& p, int64_t branch, int64_t channel, int64_t count) {
  const Epilogue<full> epilogue(p, branch, channel, count);
  for (int64_t row = 0; row < p.images; ++row) {
    epilogue.finish(epilogue.stored(row * p.out_c), row * p.out_c, 0);
  }
}

bool linear_fits(const ConvParams& p) {
  const bool one_pixel = p.in_h == 1 && p.in_w == 1 && p.out_h == 1 && p.out_w == 1 && p.taps() == 1;
  return one_pixel && p.groups == 1 && p.in_c * p.out_c >= heuristics::linear_least_weights;
}

int64_t linear_work_items(const ConvParams& p) { return ceil_div(p.out_c, lanes); }

// An item of work is one vector of filters, so that threads do not write to the same cache line.
void linear_run(const ConvParams& p, int64_t begin, int64_t end) {
  const int64_t filter_begin = begin * lanes, filter_end = min_of(end * lanes, p.out_c);
  float* masked = thread_workspace(static_cast<size_t>(filter_block * k_block));
  for (int64_t k = 0; k < p.in_c; k += k_block) {
    for (int64_t c = filter_begin; c < filter_end; c += filter_block) {
      linear_block(p, c, min_of(c + filter_block, filter_end), k, min_of(k_block, p.in_c - k), masked);
    }
  }
  for (int64_t branch = 0; branch < p.branches; ++branch) {
    for (int64_t c = filter_begin; c < filter_end; c += lanes) {
      const int64_t left = filter_end - c;
      (left >= lanes ? finish_vector<true> : finish_vector<false>)(p, branch, c, left);
    }
  }
}

}  // namespace
}  // namespace prefiqs
