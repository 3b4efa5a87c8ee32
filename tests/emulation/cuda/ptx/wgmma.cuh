#pragma once
#include <cstring>
#include <memory>

#include "cuda/ptx/convert.cuh"
#include "emulator.h"

namespace prefiqs::cuda {

inline void wgmma_fence() {}
inline void wgmma_commit() {
  emulation::collective("wgmma commit", [](void* const*) { emulation::matrix_commit(); }, nullptr);
}

template <int pending>
void wgmma_wait() {
  emulation::collective("wgmma wait", [](void* const*) { emulation::matrix_wait(pending); }, nullptr);
}

// Value (n, k) of the tile that a descriptor names, by the fields of the PTX manual: start, stride and swizzle of 128
// bytes, which exchanges bits 4 to 6 of an address with bits 7 to 9 of it.
template <class T>
float described(uint64_t b, int n, int k) {
  if (b >> 62 != 1 || (b >> 49 & 7) != 0) emulation::fail("wgmma: expected a swizzle of 128 bytes at its beginning");
  const auto start = static_cast<uint32_t>(b & 0x3fff) << 4, stride = static_cast<uint32_t>(b >> 32 & 0x3fff) << 4;
  const uint32_t plain = start + static_cast<uint32_t>(n / 8) * stride + static_cast<uint32_t>(n % 8 * 128 + k * 2);
  const uint32_t place = plain ^ (plain >> 7 & 7) << 4;
  T value;
  std::memcpy(&value, emulation::shared_at("wgmma", place, 2), 2);
  return to_float(value);
}

// A warp's 16 rows of the product, computed when they are waited for: until then the sums are as before.
template <class T>
void wgmma_m64n128k16(float (&sums)[64], const uint32_t (&a)[4], uint64_t b) {
  struct Operands {
    float* sums;
    const uint32_t* a;
    uint64_t b;
  } operands{sums, a, b};
  emulation::collective(
      "wgmma",
      [](void* const* lanes) {
        struct Warp {
          float a[16][16];
          float* sums[32];
        };
        auto warp = std::make_shared<Warp>();
        const uint64_t b = static_cast<const Operands*>(lanes[0])->b;
        for (int lane = 0; lane < 32; ++lane) {
          const auto* own = static_cast<const Operands*>(lanes[lane]);
          if (own->b != b) emulation::fail("wgmma: lanes with different descriptors");
          warp->sums[lane] = own->sums;
          for (int i = 0; i < 8; ++i) {
            const auto bits = static_cast<uint16_t>(own->a[i / 2] >> (i % 2 * 16));
            warp->a[lane / 4 + i / 2 % 2 * 8][lane % 4 * 2 + i % 2 + i / 4 * 8] = to_float(T{bits});
          }
        }
        emulation::matrix_async(b, [warp, b] {
          for (int n = 0; n < 128; ++n) {
            float column[16];
            for (int k = 0; k < 16; ++k) column[k] = described<T>(b, n, k);
            for (int row = 0; row < 16; ++row) {
              float& sum = warp->sums[row % 8 * 4 + n % 8 / 2][n / 8 * 4 + row / 8 * 2 + n % 2];
              for (int k = 0; k < 16; ++k) sum += warp->a[row][k] * column[k];
            }
          }
        });
      },
      &operands);
}

}  // namespace prefiqs::cuda
