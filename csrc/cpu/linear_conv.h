// Large linear layers: dst[row, co] = sum over k of src[row, k] * weight[co, k]. At small batches reading the weights
// takes longer than multiplying by them, so each weight is read from memory once for the rows of both branches.
//
// Layout: src, weight and dst as they are, rows of k or co; masked weights [filter][k of the block]; sums
// [branch][row][filter].
// In fast memory: the weights of a block of filters by a block of k, dense and masked, in second-level cache; the sums;
// a block of k of a few rows, if they have to be widened to float32.
// Loop: for each block of k, for each block of filters: mask; for each branch, for a few rows, for two filters:
// multiply vectors along k, add up the lanes, add to the sums. At the end: bias and activation. Lanes and blocks of k
// depend on the layer alone, so neither the batch nor the number of threads changes a bit.
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
template <class Weight>
struct RowsTask {
  const float* src;    // of the first row
  int64_t src_stride;  // floats
  const Weight* weight[2];
  int64_t k_count;
  float* sums;  // of the first row and filter
  int64_t sum_stride;
  int64_t filters;  // 1 or 2
  bool first;       // of the blocks of k
};

// Adds the products of `rows` rows to the sums, or stores them there for the first block of k.
template <int rows, class Weight>
void multiply_rows(const RowsTask<Weight>& t) {
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
  for (; k + lanes <= t.k_count; k += lanes) add(k, [](const auto* from) { return Vec::load(from); });
  const int64_t left = t.k_count - k;
  if (left > 0) add(k, [left](const auto* from) { return Vec::load(from, left); });
  for (int m = 0; m < rows; ++m) {
    for (int64_t j = 0; j < t.filters; ++j) {
      float& at = t.sums[m * t.sum_stride + j];
      at = t.first ? sum[m][j].sum() : at + sum[m][j].sum();
    }
  }
}

// The same for any number of rows, at most `most`.
template <int most, class Weight>
void multiply_some_rows(const RowsTask<Weight>& t, int64_t rows) {
  if (rows == most) {
    multiply_rows<most>(t);
  } else if constexpr (most > 1) {
    multiply_some_rows<most - 1>(t, rows);
  }
}

// Copies `count` weights of filter `channel` from k on, with the pruned ones as zeros. Meanwhile the next filter's are
// fetched.
template <class Weight>
void mask_weights(const ConvParams& p, int64_t channel, int64_t k, int64_t count, float* dst) {
  const Weight* weight = p.filter<Weight>(channel) + k;
  const uint32_t* mask = p.mask + channel * p.mask_words + k / 32;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    __builtin_prefetch(weight + i + p.in_c);
    Vec::keep(Vec::load(weight + i), mask[i / 32] >> (i % 32)).store(dst + i);
  }
  if (i < count) Vec::keep(Vec::load(weight + i, count - i), mask[i / 32] >> (i % 32)).store(dst + i, count - i);
}

// What one thread computes at a time: some rows by filters [filter_begin, filter_end).
struct LinearTask {
  int64_t row_begin, rows;
  int64_t filter_begin, filter_end;
  int64_t sum_stride;  // from row to row of the sums
  float* sums;         // [branch][row][sum_stride]
  float* masked;       // [filter_block][k_block]
  float* widened;      // [most_rows][k_block]

  float* row_sums(int64_t branch, int64_t row) const { return sums + (branch * rows + row) * sum_stride; }
};

// Gives rows of float32: those of src, or widened copies of them.
const float* take_rows(const float* src, int64_t, int64_t, int64_t, float*) { return src; }
const float* take_rows(const BFloat16* src, int64_t stride, int64_t rows, int64_t count, float* widened) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < count; k += lanes) {
      const BFloat16* from = src + row * stride + k;
      (k + lanes <= count ? Vec::load(from) : Vec::load(from, count - k)).store(widened + row * k_block + k);
    }
  }
  return widened;
}

// Multiplies the rows of one branch by filters [begin, end), whose weights for k .. k + k_count - 1 are given.
template <class Src, class Weight>
void multiply_filters(const ConvParams& p,
                      const LinearTask& t,
                      int64_t branch,
                      int64_t begin,
                      int64_t end,
                      int64_t k,
                      int64_t k_count,
                      const Weight* weights,
                      int64_t weight_stride) {
  for (int64_t row = 0; row < t.rows; row += most_rows) {
    const int64_t count = min_of(most_rows, t.rows - row);
    const Src* src = p.branch_src<Src>(branch) + (t.row_begin + row) * p.in_c + k;
    const float* taken = take_rows(src, p.in_c, count, k_count, t.widened);
    const int64_t taken_stride = static_cast<const void*>(taken) == src ? p.in_c : k_block;
    for (int64_t c = begin; c < end; c += 2) {
      const int64_t filters = min_of(2, end - c);
      const Weight* weight = weights + (c - begin) * weight_stride;
      // A last filter without a partner is its own partner.
      const RowsTask<Weight> task{taken,
                                  taken_stride,
                                  {weight, weight + (filters - 1) * weight_stride},
                                  k_count,
                                  t.row_sums(branch, row) + c - t.filter_begin,
                                  t.sum_stride,
                                  filters,
                                  k == 0};
      multiply_some_rows<most_rows>(task, count);
    }
  }
}

// Multiplies all rows by filters [begin, end), at most `filter_block`, for k_count inputs from k on.
template <class Src, class Weight>
void linear_block(const ConvParams& p, const LinearTask& t, int64_t begin, int64_t end, int64_t k, int64_t k_count) {
  if (p.mask != nullptr) {
    for (int64_t c = begin; c < end; ++c) mask_weights<Weight>(p, c, k, k_count, t.masked + (c - begin) * k_block);
  }
  for (int64_t branch = 0; branch < p.branches; ++branch) {
    if (branch == 1 && p.mask != nullptr) {
      multiply_filters<Src>(p, t, branch, begin, end, k, k_count, static_cast<const float*>(t.masked), k_block);
    } else {
      multiply_filters<Src>(p, t, branch, begin, end, k, k_count, p.filter<Weight>(begin) + k, p.in_c);
    }
  }
}

template <class Weight, bool full>
void finish_vector(const ConvParams& p, const LinearTask& t, int64_t branch, int64_t channel, int64_t count) {
  const Epilogue<Weight, full> epilogue(p, branch, channel, count);
  for (int64_t row = 0; row < t.rows; ++row) {
    const Vec sum = Vec::load(t.row_sums(branch, row) + channel - t.filter_begin);
    epilogue.finish(sum, (t.row_begin + row) * p.out_c, 0);
  }
}

template <class Src, class Weight>
void linear_rows(const ConvParams& p, const LinearTask& t) {
  for (int64_t k = 0; k < p.in_c; k += k_block) {
    for (int64_t c = t.filter_begin; c < t.filter_end; c += filter_block) {
      linear_block<Src, Weight>(p, t, c, min_of(c + filter_block, t.filter_end), k, min_of(k_block, p.in_c - k));
    }
  }
  for (int64_t branch = 0; branch < p.branches; ++branch) {
    for (int64_t c = t.filter_begin; c < t.filter_end; c += lanes) {
      const int64_t left = t.filter_end - c;
      (left >= lanes ? finish_vector<Weight, true> : finish_vector<Weight, false>)(p, t, branch, c, left);
    }
  }
}

bool linear_fits(const ConvParams& p) {
  const bool one_pixel = p.in_h == 1 && p.in_w == 1 && p.out_h == 1 && p.out_w == 1 && p.taps() == 1;
  return one_pixel && p.groups == 1 && p.in_c * p.out_c >= heuristics::linear_least_weights;
}

int64_t linear_work_items(const ConvParams& p) { return ceil_div(p.out_c, lanes); }

// An item of work is one vector of filters, so that threads do not write to the same cache line.
void linear_run(const ConvParams& p, int64_t begin, int64_t end) {
  LinearTask t{};
  t.filter_begin = begin * lanes, t.filter_end = min_of(end * lanes, p.out_c);
  t.sum_stride = (end - begin) * lanes;
  const int64_t most = min_of(p.images, heuristics::linear_most_rows);
  const int64_t sum_floats = p.branches * most * t.sum_stride;
  t.sums = thread_workspace(static_cast<size_t>(sum_floats + (filter_block + most_rows) * k_block));
  t.masked = t.sums + sum_floats;
  t.widened = t.masked + filter_block * k_block;
  for (t.row_begin = 0; t.row_begin < p.images; t.row_begin += t.rows) {
    t.rows = min_of(most, p.images - t.row_begin);
    with_formats(p, [&]<class Src, class Weight>() { linear_rows<Src, Weight>(p, t); });
  }
}

}  // namespace
}  // namespace prefiqs
