#pragma once
#include "cuda/ptx/convert.cuh"
#include "emulator.h"

namespace prefiqs::cuda {

// Products of 16-bit factors are exact in float32; they are added one by one in the order of k.
template <class T>
void mma_m16n8k16(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    float* acc;
    const uint32_t* a;
    uint32_t b[2];
  } operands{acc, a, {b0, b1}};
  emulation::collective(
      "mma",
      [](void* const* lanes) {
        float a[16][16], b[16][8], c[16][8];
        const auto value = [](uint32_t word, int i) { return to_float(T{static_cast<uint16_t>(word >> (i * 16))}); };
        for (int lane = 0; lane < 32; ++lane) {
          const auto* own = static_cast<const Operands*>(lanes[lane]);
          const int row = lane / 4, column = lane % 4 * 2;
          for (int i = 0; i < 2; ++i) {
            for (int half = 0; half < 2; ++half) {
              const int k = column + i + half * 8;
              a[row][k] = value(own->a[half * 2], i);
              a[row + 8][k] = value(own->a[half * 2 + 1], i);
              b[k][row] = value(own->b[half], i);
              c[row + half * 8][column + i] = own->acc[half * 2 + i];
            }
          }
        }
        for (int k = 0; k < 16; ++k) {
          for (int m = 0; m < 16; ++m) {
            for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
          }
        }
        for (int lane = 0; lane < 32; ++lane) {
          float* acc = static_cast<const Operands*>(lanes[lane])->acc;
          for (int i = 0; i < 4; ++i) acc[i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
        }
      },
      &operands);
}

}  // namespace prefiqs::cuda
