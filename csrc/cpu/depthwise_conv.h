// Depthwise convolution, one filter for each channel: dst[pixel, c] = sum over taps of src[pixel + tap, c] *
// weight[c, tap].
//
// Layout: a ring of source rows [row][column][channel] with padding; filters [c / lanes][tap][lanes], dense and masked.
// In fast memory: for one block of channels, the ring of the rows under the kernel, and the filters.
// Loop: for each image, branch and block of channels, for each output row: copy the source rows that are new; for each
// few pixels, for each vector of channels: add up the taps in order, in registers; finish.
// The rows are copied because pixels of many channels lie a power of two apart in src and would crowd a few sets of the
// first-level cache.
#pragma once
#include "cpu/epilogue.h"
#include "cpu/heuristics.h"
#include "cpu/kernels.h"

namespace prefiqs {
namespace {

constexpr int lanes = Vec::width;
constexpr int most_pixels = heuristics::depthwise_most_pixels;
constexpr int64_t cache_line = heuristics::cache_line;

struct DepthwisePlan {
  int64_t ring_rows, ring_cols;  // what the taps of one output row span, padding included
  int64_t block;                 // channels of the ring

  explicit DepthwisePlan(const ConvParams& p)
      : ring_rows((p.kernel_h - 1) * p.dilation_h + 1),
        ring_cols((p.out_w - 1) * p.stride_w + (p.kernel_w - 1) * p.dilation_w + 1) {
    const int64_t lines = ceil_div(p.out_c, cache_line);
    const int64_t fitting = max_of(1, heuristics::depthwise_ring_floats / cache_line / ring_cols / ring_rows);
    block = ceil_div(lines, ceil_div(lines, fitting)) * cache_line;
  }
  int64_t ring_floats() const { return ring_rows * ring_cols * block; }
};

// Packs the filters as [c / lanes][tap][lanes]; channels past the last one get zeros.
template <class Weight>
void pack_filters(const ConvParams& p, bool masked, float* dst) {
  for (int64_t vector = 0; vector < ceil_div(p.out_c, lanes); ++vector) {
    for (int64_t k = 0; k < p.taps(); ++k) {
      for (int64_t c = vector * lanes; c < (vector + 1) * lanes; ++c, ++dst) {
        const bool keep = c < p.out_c && (!masked || ((p.mask[c * p.mask_words + k / 32] >> (k % 32)) & 1u) != 0);
        *dst = keep ? to_float(p.filter<Weight>(c)[k]) : 0.0f;
      }
    }
  }
}

// Some rows of one image, for one block of channels of one branch.
template <class Src>
struct DepthwiseTask {
  const Src* src;        // of the image, at the block's first channel
  const float* filters;  // of the block
  int64_t branch, image, row_begin, row_end;
  int64_t channel, channels;  // the block's first, and how many it has
};

// Copies row `row` of the padded image to its place in the ring. Meanwhile the next row is fetched from slow memory.
template <class Src>
void fill_ring_row(
    const ConvParams& p, const DepthwisePlan& plan, const DepthwiseTask<Src>& t, int64_t row, float* ring) {
  float* dst = ring + row % plan.ring_rows * plan.ring_cols * plan.block;
  const int64_t src_row = row - p.pad_h, line = p.in_w * p.in_c;
  const bool inside = src_row >= 0 && src_row < p.in_h;
  for (int64_t col = 0; col < plan.ring_cols; ++col, dst += plan.block) {
    const int64_t src_col = col - p.pad_w;
    if (!inside || src_col < 0 || src_col >= p.in_w) {
      for (int64_t c = 0; c < plan.block; c += lanes) Vec::zero().store(dst + c);
      continue;
    }
    const Src* src = t.src + src_row * line + src_col * p.in_c;
    for (int64_t c = 0; c < t.channels; c += cache_line) __builtin_prefetch(src + line + c);
    int64_t c = 0;
    for (; c + lanes <= t.channels; c += lanes) Vec::load(src + c).store(dst + c);
    if (c < t.channels) Vec::load(src + c, t.channels - c).store(dst + c);
  }
}

// A few neighbouring output pixels: where their inputs are, and where the outputs go.
struct DepthwisePixels {
  const float* ring;
  int64_t slot;   // the row of the ring that holds the first tap
  int64_t col;    // of the first pixel
  int64_t place;  // of the first pixel in dst
  int64_t bias;   // of the row's class, in the bias table
};

// Computes `count` pixels of one vector of channels, which `filters` and the ring point to.
template <int count, class Weight, bool full>
__attribute__((always_inline)) inline void depthwise_vector(const ConvParams& p,
                                                            const DepthwisePlan& plan,
                                                            const DepthwisePixels& at,
                                                            const float* filters,
                                                            const Epilogue<Weight, full>& epilogue) {
  Vec sum[count];
  for (int m = 0; m < count; ++m) {
    sum[m] = Vec::zero();
    epilogue.prefetch(at.place + (m + count) * p.out_c);
  }
  const int64_t step = p.stride_w * plan.block;
  int64_t slot = at.slot;
  for (int64_t r = 0; r < p.kernel_h; ++r) {
    const float* tap = at.ring + (slot * plan.ring_cols + at.col * p.stride_w) * plan.block;
    for (int64_t s = 0; s < p.kernel_w; ++s, tap += p.dilation_w * plan.block, filters += lanes) {
      const Vec weight = Vec::load(filters);
#pragma GCC unroll 8
      for (int m = 0; m < count; ++m) sum[m] = Vec::fma(Vec::load(tap + m * step), weight, sum[m]);
    }
    slot += p.dilation_h;
    if (slot >= plan.ring_rows) slot -= plan.ring_rows;
  }
#pragma GCC unroll 8
  for (int m = 0; m < count; ++m) {
    epilogue.finish(sum[m], at.place + m * p.out_c, at.bias + p.col_class[at.col + m] * p.out_c);
  }
}

// Computes `count` pixels, at most `most`, of all channels of the block.
template <class Weight, int most, class Src>
void depthwise_pixels(
    const ConvParams& p, const DepthwisePlan& plan, const DepthwiseTask<Src>& t, DepthwisePixels at, int64_t count) {
  if (count < most) {
    if constexpr (most > 1) depthwise_pixels<Weight, most - 1>(p, plan, t, at, count);
    return;
  }
  const float* filters = t.filters;
  for (int64_t c = 0; c < t.channels; c += lanes, at.ring += lanes, filters += p.taps() * lanes) {
    const int64_t left = t.channels - c;
    if (left >= lanes) {
      depthwise_vector<most>(p, plan, at, filters, Epilogue<Weight, true>(p, t.branch, t.channel + c, left));
    } else {
      depthwise_vector<most>(p, plan, at, filters, Epilogue<Weight, false>(p, t.branch, t.channel + c, left));
    }
  }
}

template <class Weight, class Src>
void depthwise_rows(const ConvParams& p, const DepthwisePlan& plan, const DepthwiseTask<Src>& t, float* ring) {
  int64_t filled = 0;  // the first row of the padded image that was not copied yet
  for (int64_t row = t.row_begin; row < t.row_end; ++row) {
    const int64_t first = row * p.stride_h, last = first + plan.ring_rows;
    for (filled = max_of(filled, first); filled < last; ++filled) fill_ring_row(p, plan, t, filled, ring);
    // As few blocks of pixels as the registers allow, of nearly equal size.
    const int64_t blocks = ceil_div(p.out_w, most_pixels);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t col = p.out_w * i / blocks, count = p.out_w * (i + 1) / blocks - col;
      const DepthwisePixels at{ring, first % plan.ring_rows, col, ((t.image * p.out_h + row) * p.out_w + col) * p.out_c,
                               p.row_class[row] * p.col_classes * p.out_c};
      depthwise_pixels<Weight, most_pixels>(p, plan, t, at, count);
    }
  }
}

// A ring cannot hold the rows and columns between taps or pixels that lie far apart.
bool depthwise_fits(const ConvParams& p) {
  const DepthwisePlan plan(p);
  const bool ring_fits = plan.ring_rows <= heuristics::depthwise_most_ring / cache_line / plan.ring_cols;
  return p.group_in_c() == 1 && p.in_c == p.out_c && p.groups > 1 && ring_fits;
}

int64_t depthwise_work_items(const ConvParams& p) { return p.images * p.out_h; }

template <class Src, class Weight>
void depthwise_items(const ConvParams& p, int64_t begin, int64_t end) {
  const DepthwisePlan plan(p);
  const int64_t filter_floats = ceil_div(p.out_c, lanes) * lanes * p.taps();
  const int64_t tables = p.mask == nullptr ? 1 : 2;
  float* filters = thread_workspace(static_cast<size_t>(tables * filter_floats + plan.ring_floats()));
  float* ring = filters + tables * filter_floats;
  for (int64_t table = 0; table < tables; ++table) {
    pack_filters<Weight>(p, table == 1, filters + table * filter_floats);
  }
  while (begin < end) {
    const int64_t image = begin / p.out_h, row = begin % p.out_h, rows = min_of(p.out_h - row, end - begin);
    for (int64_t branch = 0; branch < p.branches; ++branch) {
      const float* branch_filters = filters + (tables == 2 ? branch * filter_floats : 0);
      for (int64_t c = 0; c < p.out_c; c += plan.block) {
        const DepthwiseTask<Src> task{p.branch_src<Src>(branch) + image * p.in_plane() + c,
                                      branch_filters + c * p.taps(),
                                      branch,
                                      image,
                                      row,
                                      row + rows,
                                      c,
                                      min_of(plan.block, p.out_c - c)};
        depthwise_rows<Weight>(p, plan, task, ring);
      }
    }
    begin += rows;
  }
}

// An item of work is one output row of one image, for both branches.
void depthwise_run(const ConvParams& p, int64_t begin, int64_t end) {
  with_formats(p, [&]<class Src, class Weight>() { depthwise_items<Src, Weight>(p, begin, end); });
}

}  // namespace
}  // namespace prefiqs
