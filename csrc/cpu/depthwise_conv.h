// Depthwise convolution: one filter a channel, dst[pixel, c] = sum over taps of src[pixel + tap, c] * weight[c, tap].
//
// In fast memory: the filters as [tap][c], dense and masked, packed once a thread (2 * taps * channels floats).
// Tile loop: for each output row, for both branches, for each block of pixels along the row, for each vector of
// channels: the sums of all the block's pixels stay in registers while its taps go by, in order. Pixels with taps on
// padding are blocks of their own and leave those taps out.
#pragma once
#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace prefiqs {
namespace {

constexpr int most_pixels = 8;
constexpr int64_t prefetch_channels = 64;  // four cache lines ahead

void pack_filters(const ConvParams& p, bool masked, float* dst) {
  for (int64_t c = 0; c < p.out_c; ++c) {
    for (int64_t k = 0; k < p.taps(); ++k) {
      const bool keep = !masked || ((p.mask[c * p.mask_words + k / 32] >> (k % 32)) & 1u) != 0;
      dst[k * p.out_c + c] = keep ? p.weight[c * p.taps() + k] : 0.0f;
    }
  }
}

// Some of the taps of one dimension: those that fall inside the image.
struct TapRange {
  int64_t begin, end;

  // Of the output at `out` (a row or a column).
  TapRange(int64_t out, int64_t in_size, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
    const int64_t first = out * stride - pad;  // where tap 0 falls
    begin = min_of(taps, first < 0 ? ceil_div(-first, dilation) : 0);
    end = max_of(begin, min_of(taps, ceil_div(in_size - first, dilation)));
  }
};

// What one branch reads and writes for one output row.
struct DepthwiseRow {
  const float* src;  // of the image
  const float* filters;
  const float* bias;      // of the row's class
  const float* residual;  // of the row, or null
  float* dst;             // of the row
  int64_t row;
};

// `count` pixels from column `col` on, n channels from c on.
template <int count>
__attribute__((always_inline)) inline void depthwise_block(const ConvParams& p,
                                                           const DepthwiseRow& at,
                                                           const TapRange& rows,
                                                           const TapRange& cols,
                                                           int64_t col,
                                                           int64_t c,
                                                           int64_t n) {
  const auto load = [n](const float* from) { return n == Vec::width ? Vec::load(from) : Vec::load(from, n); };
  const int64_t step = p.stride_w * p.in_c;
  const auto tap = [&](int64_t r, int64_t s) {
    const int64_t row = at.row * p.stride_h - p.pad_h + r * p.dilation_h;
    return at.src + (row * p.in_w + col * p.stride_w - p.pad_w + s * p.dilation_w) * p.in_c + c;
  };
  // The last row of taps and dst are new to the caches, and lie a pixel apart: more than the processor foresees.
  if (rows.end > rows.begin && cols.end > cols.begin) {
    for (int m = 0; m < count; ++m) {
      __builtin_prefetch(tap(rows.end - 1, cols.end - 1) + m * step + prefetch_channels);
    }
  }
  for (int m = 0; m < count; ++m) __builtin_prefetch(at.dst + (col + m) * p.out_c + c + prefetch_channels, 1);
  Vec sum[count];
  for (int m = 0; m < count; ++m) sum[m] = Vec::zero();
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t s = cols.begin; s < cols.end; ++s) {
      const float* src = tap(r, s);
      const Vec weight = load(at.filters + (r * p.kernel_w + s) * p.out_c + c);
#pragma GCC unroll 8
      for (int m = 0; m < count; ++m) sum[m] = Vec::fma(load(src + m * step), weight, sum[m]);
    }
  }
  const Epilogue epilogue{p.slope, p.slope_stride};
  for (int m = 0; m < count; ++m) {
    const int64_t pixel = (col + m) * p.out_c;
    const float* bias = at.bias + p.col_class[col + m] * p.out_c;
    const Vec result = epilogue(sum[m], bias, at.residual == nullptr ? nullptr : at.residual + pixel, c, n);
    if (n == Vec::width) {
      result.store(at.dst + pixel + c);
    } else {
      result.store(at.dst + pixel + c, n);
    }
  }
}

// `count` pixels, at most `most`, that all have the taps `cols`.
template <int most>
void depthwise_pixels(const ConvParams& p,
                      const DepthwiseRow& at,
                      const TapRange& rows,
                      const TapRange& cols,
                      int64_t col,
                      int64_t count) {
  if (count < most) {
    if constexpr (most > 1) depthwise_pixels<most - 1>(p, at, rows, cols, col, count);
    return;
  }
  int64_t c = 0;
  for (; c + Vec::width <= p.out_c; c += Vec::width) depthwise_block<most>(p, at, rows, cols, col, c, Vec::width);
  if (c < p.out_c) depthwise_block<most>(p, at, rows, cols, col, c, p.out_c - c);
}

void depthwise_row(const ConvParams& p, int64_t branch, int64_t image, int64_t row, const float* filters) {
  const int64_t first = (image * p.out_h + row) * p.out_w * p.out_c;
  const float* residual = p.branch_residual(branch);
  const DepthwiseRow at{p.branch_src(branch) + image * p.in_plane(),
                        filters,
                        p.branch_bias(branch) + p.row_class[row] * p.col_classes * p.out_c,
                        residual == nullptr ? nullptr : residual + first,
                        p.branch_dst(branch) + first,
                        row};
  const auto cols_at = [&p](int64_t col) {
    return TapRange(col, p.in_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w);
  };
  const TapRange rows(row, p.in_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h);
  for (int64_t col = 0; col < p.out_w;) {
    const TapRange cols = cols_at(col);
    int64_t count = 1;
    if (cols.begin == 0 && cols.end == p.kernel_w) {
      // The pixels without padding, in as few blocks as registers allow, of nearly equal size.
      const int64_t inside = 1 + (p.in_w - 1 - (p.kernel_w - 1) * p.dilation_w + p.pad_w) / p.stride_w - col;
      count = ceil_div(inside, ceil_div(inside, most_pixels));
    }
    depthwise_pixels<most_pixels>(p, at, rows, cols, col, count);
    col += count;
  }
}

bool depthwise_fits(const ConvParams& p) { return p.group_in_c() == 1 && p.in_c == p.out_c && p.groups > 1; }

int64_t depthwise_work_items(const ConvParams& p) { return p.images * p.out_h; }

// An item is one output row of one image, both branches.
void depthwise_run(const ConvParams& p, int64_t begin, int64_t end) {
  const int64_t filter_floats = p.taps() * p.out_c;
  const bool masked = p.mask != nullptr;
  float* filters = thread_workspace(static_cast<size_t>((masked ? 2 : 1) * filter_floats));
  pack_filters(p, false, filters);
  if (masked) pack_filters(p, true, filters + filter_floats);
  for (int64_t item = begin; item < end; ++item) {
    for (int64_t branch = 0; branch < p.branches; ++branch) {
      depthwise_row(p, branch, item / p.out_h, item % p.out_h, filters + (masked ? branch * filter_floats : 0));
    }
  }
}

}  // namespace
}  // namespace prefiqs
