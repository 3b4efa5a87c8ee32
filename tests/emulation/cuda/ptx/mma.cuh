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
        float a[16][16], b[8][16];
        const auto value = [](uint32_t word, int i) { return to_float(T{static_cast<uint16_t>(word >> (i * 16))}); };
        for (int lane = 0; lane < 32; ++lane) {
          const auto* own = static_cast<const Operands*>(lanes[lane]);
          for (int i = 0; i < 2; ++i) {
            const int k = lane % 4 * 2 + i;
            for (int half = 0; half < 2; ++half) {
              a[lane / 4][k + half * 8] = value(own->a[half * 2], i);
              a[lane / 4 + 8][k + half * 8] = value(own->a[half * 2 + 1], i);
              b[lane / 4][k + half * 8] = value(own->b[half], i);
            }
          }
        }
        for (int lane = 0; lane < 32; ++lane) {
          float* acc = static_cast<const Operands*>(lanes[lane])->acc;
          for (int i = 0; i < 4; ++i) {
            const float *row = a[lane / 4 + i / 2 * 8], *column = b[lane % 4 * 2 + i % 2];
            for (int k = 0; k < 16; ++k) acc[i] += row[k] * column[k];
          }
        }
      },
      &operands);
}

}  // namespace prefiqs::cuda
