// The tile instructions of AMX as functions, and a twin of them in plain C++ for processors without AMX. A tile is 16
// rows of 64 bytes: sums [16][16] in float32, a factor A [16][32] in bfloat16, or a factor B [16 pairs of k][16][2].
//
// Tiles belong to the thread, like registers. Between `Tiles tiles;` and the end of its life they may be used.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "bfloat16.h"

namespace prefiqs {
namespace {

constexpr int64_t tile_rows = 16, tile_row_bytes = 64, tile_bytes = tile_rows * tile_row_bytes;
constexpr int64_t tile_k = 32;  // of one product

#if defined(__AMX_BF16__)

// Written out, because the compiler's own functions want literal numbers and do not say that they read memory.
class Tiles {
 public:
  Tiles() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof config == 64);
    for (int tile = 0; tile < 8; ++tile) config.row_bytes[tile] = tile_row_bytes, config.rows[tile] = tile_rows;
    __asm__ volatile("ldtilecfg\t%0" ::"m"(config) : "memory");
  }
  ~Tiles() { __asm__ volatile("tilerelease" ::); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int tile>
  static void zero() {
    __asm__ volatile("tilezero\t%%tmm%c0" ::"i"(tile));
  }
  // `stride`: bytes from row to row.
  template <int tile>
  static void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd\t(%1,%2,1), %%tmm%c0" ::"i"(tile), "r"(from), "r"(stride) : "memory");
  }
  template <int tile>
  static void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored\t%%tmm%c0, (%1,%2,1)" ::"i"(tile), "r"(to), "r"(stride) : "memory");
  }
  // sums += a * b
  template <int sums, int a, int b>
  static void multiply() {
    __asm__ volatile("tdpbf16ps\t%%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(a), "i"(b));
  }
};

#else

// What the instructions do by Intel's manual: even and odd k are summed apart from zero on, in fused multiply-adds; the
// two are added, then added to what was there. Denormal numbers count as zero, going in and coming out.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int tile>
  static void zero() {
    std::memset(tile_memory[tile], 0, tile_bytes);
  }
  template <int tile>
  static void load(const void* from, int64_t stride) {
    for (int64_t row = 0; row < tile_rows; ++row) {
      std::memcpy(tile_memory[tile] + row * tile_row_bytes, static_cast<const char*>(from) + row * stride,
                  tile_row_bytes);
    }
  }
  template <int tile>
  static void store(void* to, int64_t stride) {
    for (int64_t row = 0; row < tile_rows; ++row) {
      std::memcpy(static_cast<char*>(to) + row * stride, tile_memory[tile] + row * tile_row_bytes, tile_row_bytes);
    }
  }
  template <int sums, int a, int b>
  static void multiply() {
    float total[16][16], left[16][32], right[16][32];
    std::memcpy(total, tile_memory[sums], tile_bytes);
    widen(tile_memory[a], left);
    widen(tile_memory[b], right);
    for (int row = 0; row < 16; ++row) {
      float parts[32] = {};  // [column][even or odd k]
      for (int pair = 0; pair < 16; ++pair) {
        for (int i = 0; i < 32; ++i) {
          parts[i] = flush_denormal(std::fma(left[row][2 * pair + i % 2], right[pair][i], parts[i]));
        }
      }
      for (int column = 0; column < 16; ++column) {
        const float both = flush_denormal(parts[2 * column] + parts[2 * column + 1]);
        total[row][column] = flush_denormal(flush_denormal(total[row][column]) + both);
      }
    }
    std::memcpy(tile_memory[sums], total, tile_bytes);
  }

 private:
  static void widen(const unsigned char* tile, float (*to)[32]) {
    for (int64_t row = 0; row < 16; ++row) {
      BFloat16 numbers[32];
      std::memcpy(numbers, tile + row * tile_row_bytes, tile_row_bytes);
      for (int i = 0; i < 32; ++i) to[row][i] = flush_denormal(to_float(numbers[i]));
    }
  }

  static inline thread_local unsigned char tile_memory[8][tile_bytes];
};

#endif

}  // namespace
}  // namespace prefiqs
