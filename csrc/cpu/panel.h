// A panel: the weights of two vectors of filters as [k][filter], packed from the weight tensor and pruned in place. Its
// unit is a float32, or a pair of bfloat16 numbers for two k; a Product says which, and how units are multiplied.
#pragma once
#include <cstring>

#include "cpu/vec.h"

namespace prefiqs {
namespace {

constexpr int lanes = Vec::width;
constexpr int panel_width = 2 * lanes;
constexpr int tile_pixels = Vec::tile_pixels;

struct Float32Product {
  static constexpr int64_t numbers = 1;  // in a unit
  static Vec add(Vec x, Vec weight, Vec sum) { return Vec::fma(x, weight, sum); }
};

// Packs panel[k][j] = weight[j][k]; filters past the last one become zeros.
template <class Weight>
void pack_panel(const Weight* weight, int64_t depth, int64_t filters, int64_t k_count, float* panel) {
  for (int64_t k = 0; k < k_count; k += lanes) {
    const int64_t count = min_of(lanes, k_count - k);
    for (int64_t half = 0; half < panel_width; half += lanes) {
      Vec square[lanes];
      for (int64_t j = 0; j < lanes; ++j) {
        const Weight* src = weight + (half + j) * depth + k;
        __builtin_prefetch(src + 8 * lanes);  // the processor does not follow 32 streams by itself
        square[j] = half + j >= filters ? Vec::zero() : count == lanes ? Vec::load(src) : Vec::load(src, count);
      }
      Vec::transpose(square);
      for (int64_t i = 0; i < count; ++i) square[i].store(panel + (k + i) * panel_width + half);
    }
  }
}

// The bits of a unit that stay: all of a float32 or none, or the halves of a pair. `kept` begins with their mask bits.
template <class Product>
uint32_t unit_mask(uint32_t kept) {
  return Product::numbers == 1 ? 0u - (kept & 1u) : pair_mask(kept);
}

// Sets the panel's pruned weights to zero; it has k_count units of each filter. `mask` points to the first filter's
// word for the panel's first k.
template <class Product>
void prune_panel(const uint32_t* mask, int64_t mask_words, int64_t filters, int64_t k_count, float* panel) {
  constexpr int64_t word_units = 32 / Product::numbers;
  uint32_t words[panel_width];
  for (int64_t k0 = 0; k0 < k_count; k0 += word_units) {
    for (int64_t j = 0; j < panel_width; ++j) words[j] = j < filters ? mask[j * mask_words + k0 / word_units] : 0;
    const int64_t count = min_of(word_units, k_count - k0);
    for (int64_t k = 0; k < count; ++k) {
      float* row = panel + (k0 + k) * panel_width;
      for (int64_t j = 0; j < panel_width; ++j) {
        uint32_t bits;
        std::memcpy(&bits, row + j, sizeof bits);
        bits &= unit_mask<Product>(words[j] >> (k * Product::numbers));
        std::memcpy(row + j, &bits, sizeof bits);
      }
    }
  }
}

// The inputs of a tile's pixels: that of pixel m for k is data[k / lanes * k_step + m * pixel_step + k % lanes].
struct TileInputs {
  const float* data;
  int64_t depth, k_step, pixel_step;
};

// A packed tile is [k / lanes][pixel][lanes], which is read as one stream of memory.
constexpr int64_t tile_step = tile_pixels * lanes;
TileInputs packed_tile(const float* data, int64_t depth) { return {data, depth, tile_step, lanes}; }

// The sums of a tile's first pixels by one panel, all of them in registers.
template <int pixel_count, class Product = Float32Product>
struct Sums {
  Vec acc[pixel_count][2];

  Sums() {
#pragma GCC unroll 16
    for (int m = 0; m < pixel_count; ++m) acc[m][0] = acc[m][1] = Vec::zero();
  }

  // acc[m] += tile[k][m] * panel[k] for k = 0 .. depth - 1 in order. If `ahead` is not 0, the part of a tile that lies
  // so many floats ahead is fetched from slow memory meanwhile. Returns where the panel goes on.
  __attribute__((always_inline)) const float* add(const TileInputs& tile, const float* panel, int64_t ahead) {
    const float* src = tile.data;
    for (int64_t depth = tile.depth; depth > 0; depth -= lanes, src += tile.k_step) {
      if (ahead != 0) {
#pragma GCC unroll 16
        for (int m = 0; m < pixel_count; ++m) __builtin_prefetch(src + ahead + m * tile.pixel_step);
      }
      const int64_t count = min_of(lanes, depth);
      for (int64_t k = 0; k < count; ++k, panel += panel_width) {
        const Vec w0 = Vec::load(panel), w1 = Vec::load(panel + lanes);
#pragma GCC unroll 16
        for (int m = 0; m < pixel_count; ++m) {
          const Vec x = Vec::broadcast(read_float(src + m * tile.pixel_step + k));
          acc[m][0] = Product::add(x, w0, acc[m][0]);
          acc[m][1] = Product::add(x, w1, acc[m][1]);
        }
      }
    }
    return panel;
  }
};

}  // namespace
}  // namespace prefiqs
