// A panel: the weights of two vectors of filters, [k][filter], packed from the weight tensor and pruned where they lie.
#pragma once
#include <cstring>

#include "cpu/vec.h"

namespace prefiqs {
namespace {

constexpr int lanes = Vec::width;
constexpr int panel_width = 2 * lanes;
constexpr int tile_pixels = Vec::tile_pixels;

// panel[k][j] = weight[co + j][k0 + k]; filters past the last one are zero.
void pack_panel(const float* weight, int64_t depth, int64_t filters, int64_t k_count, float* panel) {
  constexpr int64_t step = 16;  // one cache line of each filter at a time
  for (int64_t k0 = 0; k0 < k_count; k0 += step) {
    const int64_t count = min_of(step, k_count - k0);
    for (int64_t j = 0; j < panel_width; ++j) {
      float* dst = panel + k0 * panel_width + j;
      if (j < filters) {
        const float* src = weight + j * depth + k0;
        for (int64_t k = 0; k < count; ++k) dst[k * panel_width] = src[k];
      } else {
        for (int64_t k = 0; k < count; ++k) dst[k * panel_width] = 0;
      }
    }
  }
}

// Zeroes the panel's pruned weights in place. `mask` is at the first filter's word of the panel's first k.
void prune_panel(const uint32_t* mask, int64_t mask_words, int64_t filters, int64_t k_count, float* panel) {
  uint32_t words[panel_width];
  for (int64_t k0 = 0; k0 < k_count; k0 += 32) {
    for (int64_t j = 0; j < panel_width; ++j) words[j] = j < filters ? mask[j * mask_words + k0 / 32] : 0;
    const int64_t count = min_of(32, k_count - k0);
    for (int64_t k = 0; k < count; ++k) {
      float* row = panel + (k0 + k) * panel_width;
      for (int64_t j = 0; j < panel_width; ++j) {
        uint32_t bits;
        std::memcpy(&bits, row + j, sizeof bits);
        bits &= 0u - ((words[j] >> k) & 1u);
        std::memcpy(row + j, &bits, sizeof bits);
      }
    }
  }
}

// The sums of a tile: a few rows by one panel, all in registers.
template <int row_count>
struct Sums {
  Vec acc[row_count][2];

  Sums() {
#pragma GCC unroll 16
    for (int m = 0; m < row_count; ++m) acc[m][0] = acc[m][1] = Vec::zero();
  }

  // acc[m] += rows[m][k] * weights[k] for k = 0 .. length - 1 in order. Returns where the weights go on.
  __attribute__((always_inline)) const float* add(const float* const* rows, int64_t length, const float* weights) {
    for (int64_t k = 0; k < length; ++k) {
      const Vec w0 = Vec::load(weights), w1 = Vec::load(weights + lanes);
      weights += panel_width;
#pragma GCC unroll 16
      for (int m = 0; m < row_count; ++m) {
        const Vec x = Vec::broadcast(rows[m][k]);
        acc[m][0] = Vec::fma(x, w0, acc[m][0]);
        acc[m][1] = Vec::fma(x, w1, acc[m][1]);
      }
    }
    return weights;
  }
};

}  // namespace
}  // namespace prefiqs
