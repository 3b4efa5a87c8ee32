// Depthwise convolution: one filter a channel, dst[pixel, c] = sum over taps of src[pixel + tap, c] * weight[c, tap].
//
// In fast memory: the filters as [tap][c], dense and masked, packed once a thread (2 * taps * channels floats).
// Tile loop: for each output row, for both branches, for each pixel: the taps that fall inside the image, then vectors
// of channels, each summed over those taps in order in one register.
#pragma once
#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace prefiqs {
namespace {

constexpr int64_t most_taps = 64;

struct DepthwiseTap {
  const float* src;
  const float* weight;
};

void pack_filters(const ConvParams& p, bool masked, float* dst) {
  for (int64_t c = 0; c < p.out_c; ++c) {
    for (int64_t k = 0; k < p.taps(); ++k) {
      const bool keep = !masked || ((p.mask[c * p.mask_words + k / 32] >> (k % 32)) & 1u) != 0;
      dst[k * p.out_c + c] = keep ? p.weight[c * p.taps() + k] : 0.0f;
    }
  }
}

void depthwise_pixel(const DepthwiseTap* taps,
                     int64_t count,
                     int64_t channels,
                     const Epilogue& epilogue,
                     const float* bias,
                     const float* residual,
                     float* dst) {
  int64_t c = 0;
  for (; c + Vec::width <= channels; c += Vec::width) {
    Vec sum = Vec::zero();
    for (int64_t i = 0; i < count; ++i) sum = Vec::fma(Vec::load(taps[i].src + c), Vec::load(taps[i].weight + c), sum);
    epilogue(sum, bias, residual, c, Vec::width).store(dst + c);
  }
  if (const int64_t n = channels - c; n > 0) {
    Vec sum = Vec::zero();
    for (int64_t i = 0; i < count; ++i) {
      sum = Vec::fma(Vec::load(taps[i].src + c, n), Vec::load(taps[i].weight + c, n), sum);
    }
    epilogue(sum, bias, residual, c, n).store(dst + c, n);
  }
}

void depthwise_row(const ConvParams& p, int64_t branch, int64_t image, int64_t row, const float* filters) {
  const Epilogue epilogue{p.slope, p.slope_stride};
  const float* src = p.branch_src(branch) + image * p.in_plane();
  const float* residual = p.branch_residual(branch);
  for (int64_t col = 0; col < p.out_w; ++col) {
    DepthwiseTap taps[most_taps];
    int64_t count = 0;
    for (int64_t r = 0; r < p.kernel_h; ++r) {
      const int64_t in_row = row * p.stride_h - p.pad_h + r * p.dilation_h;
      if (in_row < 0 || in_row >= p.in_h) continue;
      for (int64_t s = 0; s < p.kernel_w; ++s) {
        const int64_t in_col = col * p.stride_w - p.pad_w + s * p.dilation_w;
        if (in_col < 0 || in_col >= p.in_w) continue;
        taps[count++] = {src + (in_row * p.in_w + in_col) * p.in_c, filters + (r * p.kernel_w + s) * p.out_c};
      }
    }
    const int64_t pixel = ((image * p.out_h + row) * p.out_w + col) * p.out_c;
    const float* bias = p.branch_bias(branch) + (p.row_class[row] * p.col_classes + p.col_class[col]) * p.out_c;
    depthwise_pixel(taps, count, p.out_c, epilogue, bias, residual == nullptr ? nullptr : residual + pixel,
                    p.branch_dst(branch) + pixel);
  }
}

bool depthwise_fits(const ConvParams& p) {
  return p.group_in_c() == 1 && p.in_c == p.out_c && p.groups > 1 && p.taps() <= most_taps;
}

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
