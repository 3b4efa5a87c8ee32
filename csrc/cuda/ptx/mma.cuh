// mma.m16n8k16: acc[16 x 8] += a[16 x 16] * b[16 x 8], 16-bit factors, float32 sums. With g = lane / 4, t = lane % 4,
// a lane holds a: rows g, g + 8, g, g + 8 at k = 2t, 2t, 2t + 8, 2t + 8 (and k + 1); b: column g at k = 2t, 2t + 8 (and
// k + 1); acc: rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1.
#pragma once
#include <cstdint>

#include "cuda/ptx/convert.cuh"

namespace prefiqs::cuda {

template <class T>
__device__ void mma_m16n8k16(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ inline void mma_m16n8k16<Float16>(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void mma_m16n8k16<BFloat16>(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace prefiqs::cuda
